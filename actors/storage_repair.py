"""Makes a damaged storage folder usable again, at the price of what cannot be read.

Nothing is deleted: what is damaged is moved below `damaged/`, with its bytes as they were found. A
repair that was cut short is taken up by the next one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.checked_json import checked_json, read_checked_json
from actors.checked_segment import SegmentWriter, batches_behind, read_segment
from actors.durable_files import remove_file, replace_file
from actors.high_water import HighWater
from actors.item_log import ITEM_SCHEMA
from actors.log_repair import repair_log
from actors.log_scan import Span
from actors.messages import StorageError
from actors.set_aside import Aside, Repair, damaged
from actors.storage_check import (
    check_items,
    check_registry,
    shard_folders,
)
from actors.storage_folder import FORMAT_VERSION
from actors.version_repair import renumber_head, repair_versions


def repair_storage(data_dir: Path, segment_bytes: int) -> Iterator[Repair]:
    """Repair every part; nothing is done to what is whole.

    Args:
        data_dir: The storage folder. No process may be at work on it, see `hold_all`.
        segment_bytes: Size of the segments that are written.

    Raises:
        StorageError: If a part is of another installation, or writing failed.
    """
    aside = Aside(data_dir)
    yield from _repair_registry(data_dir, aside)
    lost: dict[int, list[Span]] = {}
    for shard in shard_folders(data_dir):
        for repair in repair_log(shard, aside, segment_bytes):
            lost[int(shard.name.removeprefix("shard-"))] = list(repair.lost)
            yield repair
    yield from _repair_items(data_dir / "items", aside)
    if (data_dir / "models").exists():
        yield from repair_versions(data_dir / "models", aside)
        yield from renumber_head(data_dir / "models", lost)


def _repair_registry(data_dir: Path, aside: Aside) -> Iterator[Repair]:
    broken = damaged(check_registry(data_dir))
    path = data_dir / "installation.json"
    parts = [str(shard.relative_to(data_dir)) for shard in shard_folders(data_dir)]
    parts += [name for name in ("items", "models") if (data_dir / name).exists()]
    identities = {}
    for name in parts:
        identity = data_dir / name / "identity.json"
        if identity in broken and "of installation" in broken[identity].detail:
            raise StorageError(f"{identity}: {broken[identity].detail}; put the right folder there")
        if identity not in broken and identity.exists():
            identities[name] = read_checked_json(identity)
    if path in broken:
        ids = [identity["install_id"] for identity in identities.values()]
        install_id = ids[0] if ids else uuid.uuid4().hex
        aside.take(path)
        replace_file(path, checked_json({"install_id": install_id, "initialised": parts}))
        yield Repair(path, "written again from the parts that are there")
    installation = read_checked_json(path)
    gone = [name for name in installation["initialised"] if name not in parts]
    if gone:
        left = [name for name in installation["initialised"] if name in parts]
        replace_file(path, checked_json({**installation, "initialised": left}))
        yield Repair(path, f"gone, and begun afresh at the next start: {', '.join(gone)}")
    num_shards = [i["num_shards"] for i in identities.values() if "num_shards" in i]
    num_shards = num_shards or [len(shard_folders(data_dir))]
    for name in parts:
        folder = data_dir / name
        if folder / "identity.json" in broken:
            aside.take(folder / "identity.json")
            written = _identity(name, installation["install_id"], num_shards)
            replace_file(folder / "identity.json", checked_json(written))
            yield Repair(folder / "identity.json", "written again from its folder's name")
        if folder / "epoch.json" in broken:
            aside.take(folder / "epoch.json")
            yield Repair(folder / "epoch.json", "set aside: the next start counts from 1")


def _identity(name: str, install_id: str, num_shards: Sequence[int]) -> dict[str, Any]:
    identity = {"install_id": install_id, "name": name, "format_version": FORMAT_VERSION}
    if not name.startswith("events/"):
        return identity
    shard = int(name.rpartition("-")[2])
    return {**identity, "shard": shard, "num_shards": num_shards[0]}


def _repair_items(folder: Path, aside: Aside) -> Iterator[Repair]:
    broken = damaged(check_items(folder)) if folder.exists() else {}
    items, vectors = folder / "items.arrow", folder / "vectors.arrow"
    if vectors in broken:
        aside.take(vectors)
        yield Repair(vectors, "set aside: its texts are read again")
    if items in broken or folder / "high_water.json" in broken:
        new = folder / "repaired.arrow"
        if items.exists() or not new.exists():  # otherwise an earlier repair got no further
            _write_items_again(items, new)
        aside.take(items)
        aside.take(folder / "high_water.json")
        if new.exists():
            new.rename(items)
        num_rows = 0
        if items.exists():
            num_rows = read_segment(items, ITEM_SCHEMA, 0, is_last=True).num_rows
        HighWater(folder / "high_water.json").save(num_rows)
        yield Repair(
            items,
            f"{num_rows} changes of items kept. Put the catalogue again; versions know items by "
            "their order in it, so if a new item is lost, do not serve versions from before",
        )


def _write_items_again(items: Path, new: Path) -> None:
    remove_file(new)
    found = items.read_bytes() if items.exists() else b""
    if batches := [part.batch for part in batches_behind(found, 0, ITEM_SCHEMA)]:
        writer = SegmentWriter(new, ITEM_SCHEMA)
        num_rows = 0
        for batch in batches:
            writer.append(batch, num_rows)
            num_rows += batch.num_rows
        writer.close()
