"""Where a repair puts what is damaged, with its bytes as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.durable_files import fsync_folder, make_folder
from actors.log_scan import Span
from actors.storage_check import FileReport


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to a file or a part, and the offsets of events that are lost by it."""

    path: Path
    done: str
    lost: tuple[Span, ...] = ()


class Aside:
    """A new folder below `damaged/`, into which files are moved under their own paths."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        number = 1
        while (data_dir / "damaged" / str(number)).exists():
            number += 1
        self.folder = data_dir / "damaged" / str(number)

    def take(self, path: Path) -> None:
        """Move a file or a folder here; one that is not there is fine."""
        if not path.exists():
            return
        target = self.folder / path.relative_to(self._data_dir)
        make_folder(target.parent)
        path.rename(target)
        fsync_folder(target.parent)
        fsync_folder(path.parent)


def damaged(reports: Iterator[FileReport]) -> dict[Path, FileReport]:
    """The reports on what is damaged, by path."""
    return {report.path: report for report in reports if report.is_damaged}
