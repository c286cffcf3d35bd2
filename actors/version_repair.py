"""Sets damaged versions aside, finds another head, and follows a log that was repaired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from actors.log_scan import Span
from actors.messages import CorruptStorage, Manifest, UnknownVersion
from actors.set_aside import Aside, Repair, damaged
from actors.storage_check import check_version
from actors.version_files import MODEL, TRAINER, HeadRecord, VersionFiles

Lost = Mapping[int, Sequence[Span]]
"""Offsets of lost events by shard."""


def repair_versions(folder: Path, aside: Aside) -> Iterator[Repair]:
    files = VersionFiles(folder)
    before = files.numbers()
    for number in before:
        if damaged(check_version(files, folder, number)):
            aside.take(folder / "versions" / f"{number:08d}")
            yield Repair(folder / "versions" / f"{number:08d}", "set aside")
    head = folder / "head.json"
    try:
        record = files.read_head()
        is_new = False
    except CorruptStorage:
        aside.take(head)
        record, is_new = HeadRecord(), bool(before)
    numbers = files.numbers()
    if is_new or (record.version and record.version not in numbers):
        candidates = [v for v in record.previous if v in numbers] or numbers or [0]
        record = replace(
            record,
            sequence=record.sequence + 1,
            version=candidates[-1],
            reason="repaired",
            next_version=max([record.next_version, *(number + 1 for number in before)]),
        )
        files.write_head(record)
        yield Repair(head, f"version {record.version} is the head" if record.version else "no head")


def renumber_head(folder: Path, lost: Lost) -> Iterator[Repair]:
    """Publish the head again, as having learned up to where its last event is now."""
    files = VersionFiles(folder)
    record = files.read_head()
    if not record.version or not any(lost.values()):
        return
    try:
        manifest = files.manifest(record.version)
        arrays = [files.read(record.version, name) for name in (MODEL, TRAINER)]
    except (UnknownVersion, CorruptStorage):
        return
    number = record.next_version
    new = _renumbered(manifest, number, lost)
    if new.trained_through == manifest.trained_through:
        return
    files.write_head(replace(record, next_version=number + 1))
    files.write(new, *arrays)
    files.write_head(replace(record, next_version=number + 1).promoted(number, new.reason))
    yield Repair(
        folder / "versions" / f"{number:08d}",
        f"version {record.version} once more, with the new offset of the last event it learned",
    )


def _renumbered(manifest: Manifest, number: int, lost: Lost) -> Manifest:
    def moved(shard: int, offset: int) -> int:
        """The new offset of the last event at or before an old one."""
        gaps = lost.get(shard, [])
        return offset - sum(
            min(stop, offset + 1) - first for first, stop in gaps if first <= offset
        )

    quarantined = []
    for shard, first, last in manifest.quarantined:
        span = (shard, moved(shard, first - 1) + 1, moved(shard, last))
        if span[1] <= span[2]:
            quarantined.append(span)
    return replace(
        manifest,
        version=number,
        parent=manifest.version,
        reason="repaired",
        trained_through=tuple(
            moved(shard, offset) for shard, offset in enumerate(manifest.trained_through)
        ),
        quarantined=tuple(quarantined),
    )
