"""Reads everything in a storage folder and says of each file whether it is what was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.checked_json import read_checked_json
from actors.checked_segment import read_segment
from actors.durable_files import TEMPORARY
from actors.high_water import HighWater
from actors.item_log import ITEM_SCHEMA, VECTOR_SCHEMA
from actors.log_scan import LogFile, Span, scan_log
from actors.messages import CorruptStorage, Manifest
from actors.version_files import MODEL, TRAINER, VersionFiles


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file, or a part that is gone.

    Attributes:
        path: Of the file.
        is_damaged: Whether it is not what was written.
        detail: What it holds, or what is wrong with it and where.
        lost: Offsets of acknowledged events that are in no file because of it.
    """

    path: Path
    is_damaged: bool
    detail: str
    lost: tuple[Span, ...] = ()


def check_storage(data_dir: Path) -> Iterator[FileReport]:
    """A report on every file of the log, the catalogue and the version store.

    Nothing is written. No process may be at work on the folder, see `storage_folder.hold_all`.
    """
    yield from check_registry(data_dir)
    for shard in shard_folders(data_dir):
        yield from check_shard(shard)
    if (data_dir / "items").exists():
        yield from check_items(data_dir / "items")
    if (data_dir / "models").exists():
        yield from check_versions(data_dir / "models")


def shard_folders(data_dir: Path) -> list[Path]:
    """The folders of the shards, in the order of their numbers."""
    folders = (path for path in (data_dir / "events").glob("shard-*") if path.is_dir())
    return sorted(folders, key=lambda path: int(path.name.removeprefix("shard-")))


def check_registry(data_dir: Path) -> Iterator[FileReport]:
    """Whether every part that was in use is there, with its identity."""
    path = data_dir / "installation.json"
    parts = [str(shard.relative_to(data_dir)) for shard in shard_folders(data_dir)]
    parts += [name for name in ("items", "models") if (data_dir / name).exists()]
    try:
        installation = read_checked_json(path)
        in_use = [str(name) for name in installation["initialised"]]
        yield FileReport(path, False, f"{len(in_use)} parts")
    except (CorruptStorage, KeyError, TypeError) as error:
        yield FileReport(path, True, str(error))
        installation, in_use = {}, []
    for name in dict.fromkeys([*in_use, *parts]):
        report = _json_report(data_dir / name / "identity.json")
        if not report.is_damaged:
            identity = read_checked_json(report.path)
            found = identity.get("install_id")
            if installation and found != installation["install_id"]:
                report = FileReport(report.path, True, f"it is of installation {found}")
            elif identity.get("name") != name or len(identity) != (5 if "/" in name else 3):
                report = FileReport(report.path, True, f"it is not the identity of {name}")
        yield report
        if (data_dir / name / "epoch.json").exists():  # a start makes a new one
            yield _json_report(data_dir / name / "epoch.json")


def check_shard(shard: Path) -> Iterator[FileReport]:
    """The log of a shard."""
    scan = scan_log(shard)
    lost = scan.lost()
    high_water = shard / "high_water.json"
    if scan.high_water_reason or high_water.exists():
        detail = scan.high_water_reason or f"the log has {scan.reached} events or more"
        yield FileReport(high_water, bool(scan.high_water_reason), detail)
    for path, reason in scan.manifests.items():
        yield FileReport(path, True, reason)
    explained: list[Span] = []
    for place, file in enumerate(scan.files):
        stop = scan.files[place + 1].first_offset if place + 1 < len(scan.files) else scan.end()
        its_lost = _within(lost, file.first_offset, max(stop, file.first_offset))
        its_lost = its_lost if file.reason else ()
        explained.extend(its_lost)
        yield FileReport(file.path, bool(file.reason), _detail(file), its_lost)
    for path in sorted(shard.rglob("*" + TEMPORARY)):
        yield FileReport(path, False, "left by a crash; the next start removes it")
    missing = [span for span in lost if span not in explained]
    if missing:
        detail = "files with these events are gone"
        yield FileReport(shard / "open", True, detail, tuple(missing))


def check_items(folder: Path) -> Iterator[FileReport]:
    """The catalogue's items and the vectors of their texts."""
    high_water = HighWater(folder / "high_water.json")
    num_certain = 0
    try:
        num_certain = high_water.read(has_rows=False)
    except CorruptStorage as error:
        yield FileReport(folder / "high_water.json", True, str(error))
    for name, schema, certain in (
        ("items.arrow", ITEM_SCHEMA, num_certain),
        ("vectors.arrow", VECTOR_SCHEMA, 0),
    ):
        path = folder / name
        if not path.exists():
            if certain:
                yield FileReport(path, True, f"it is gone, and had {certain} rows or more")
            continue
        try:
            contents = read_segment(path, schema, 0, is_last=True, num_certain=certain)
            if contents.num_rows < certain:
                raise CorruptStorage(f"{contents.num_rows} rows, expected {certain} or more")
        except CorruptStorage as error:
            yield FileReport(path, True, str(error))
        else:
            yield FileReport(path, False, _sized(f"{contents.num_rows} rows", contents.cut_bytes))


def check_versions(folder: Path) -> Iterator[FileReport]:
    """The head and every version, weights included."""
    files = VersionFiles(folder, is_read_only=True)
    head = 0
    try:
        head = files.read_head().version
        if (folder / "head.json").exists():
            yield FileReport(folder / "head.json", False, f"version {head} is served")
    except CorruptStorage as error:
        yield FileReport(folder / "head.json", True, str(error))
    for number in files.numbers():
        yield from check_version(files, folder, number)
    if head and head not in files.numbers():
        path = folder / "versions" / f"{head:08d}"
        yield FileReport(path, True, f"version {head}, the head, is gone")


def check_version(files: VersionFiles, folder: Path, number: int) -> Iterator[FileReport]:
    """The files of one version."""
    version = folder / "versions" / f"{number:08d}"
    try:
        manifest: Manifest = files.manifest(number)
    except CorruptStorage as error:
        yield FileReport(version / "manifest.json", True, str(error))
        return
    yield FileReport(version / "manifest.json", False, f"version {number}, {manifest.reason}")
    for name in (MODEL, TRAINER):
        try:
            arrays = files.read(number, name)
        except CorruptStorage as error:
            yield FileReport(version / name, True, str(error))
        else:
            yield FileReport(version / name, False, f"{len(arrays)} arrays")


def _json_report(path: Path) -> FileReport:
    try:
        read_checked_json(path)
    except CorruptStorage as error:
        return FileReport(path, True, str(error))
    return FileReport(path, False, "as written")


def _detail(file: LogFile) -> str:
    if file.reason:
        return file.reason
    num_events = sum(stop - first for first, stop in file.spans)
    return _sized(f"{num_events} events from offset {file.first_offset}", file.torn_bytes)


def _sized(text: str, torn_bytes: int) -> str:
    if not torn_bytes:
        return text
    return f"{text}; then {torn_bytes} bytes of a write that was not finished, which a start cuts"


def _within(lost: Sequence[Span], first: int, stop: int) -> tuple[Span, ...]:
    return tuple(span for span in lost if first <= span[0] < max(stop, first + 1))
