"""How far a log got for certain, noted beside it: a lost end is not taken for a torn one."""

from __future__ import annotations

import logging
from pathlib import Path

from actors.checked_json import checked_json, read_checked_json
from actors.durable_files import replace_file
from actors.messages import CorruptStorage, StorageError, StorageFull
from actors.once_a_minute import OnceAMinute

logger = logging.getLogger(__name__)

_FIELD = "next_offset"


class HighWater:
    """A lower bound of a log's length, on disk.

    It is saved when the log is opened and closed and when a new file has its first rows, so that a
    missing file is always noticed. Rows behind it, in the last file, may be a torn tail.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_due = False
        self._failures = OnceAMinute()

    def read(self, *, has_rows: bool) -> int:
        """The offset that was reached.

        Raises:
            CorruptStorage: If it cannot be read, or is gone where there are rows.
        """
        if not self._path.exists():
            if has_rows:
                raise CorruptStorage(f"{self._path} is gone: how long the log was is not known")
            return 0
        record = read_checked_json(self._path)
        offset = record.get(_FIELD)
        if set(record) != {_FIELD} or not isinstance(offset, int):
            raise CorruptStorage(f"{self._path} does not hold an offset")
        return offset

    def save(self, next_offset: int) -> None:
        """Note an offset.

        Raises:
            StorageError: If that failed.
        """
        replace_file(self._path, checked_json({_FIELD: next_offset}))
        self._is_due = False

    def save_on_opening(self, next_offset: int) -> None:
        """Note an offset; on a full disk the note that is there will do until there is space.

        Raises:
            StorageError: If that failed, and there is no note or another reason.
        """
        try:
            self.save(next_offset)
        except StorageFull:
            if not self._path.exists():
                raise
            self._is_due = True

    def set_due(self) -> None:
        """A new file was begun: `save_if_due` is to note its first rows."""
        self._is_due = True

    def save_if_due(self, next_offset: int) -> None:
        """Note an offset if a new file was begun; if that fails, the next call tries again.

        No row depends on it, so none is refused for it.
        """
        if self._is_due:
            self.save_if_possible(next_offset)

    def save_if_possible(self, next_offset: int) -> None:
        """Note an offset; a failure is logged, once a minute."""
        try:
            self.save(next_offset)
        except StorageError as error:
            if num := self._failures.num_to_tell():
                logger.warning(
                    "high water not noted path=%s times=%d error=%s", self._path, num, error
                )
