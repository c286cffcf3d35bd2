"""A storage folder with something of everything, and reading all of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from crash_disk import Tree, picked_up, put_down
from crash_runs import scratch_folder
from item_oracle import ItemLedger, open_items
from log_oracle import LogLedger, open_log, rows_of
from recorder import recorded
from store_oracle import StoreLedger, open_store
from work import compact_all

from actors.messages import CorruptStorage, UnknownVersion
from actors.version_files import MODEL, TRAINER

Contents = dict[str, Any]


@pytest.fixture(scope="module")
def storage() -> Tree:
    """The files of a system that was stopped: Parquet, an open segment, items, three versions."""
    with scratch_folder() as folder, recorded(folder / "data") as recording:
        events, versions, items = LogLedger(), StoreLedger(), ItemLedger()
        with open_log(folder / "data") as log:
            for _ in range(12):
                events.append(log, 10)
            compact_all(log)
            for _ in range(3):
                events.append(log, 6)
        with open_store(folder / "data") as store:
            for _ in range(3):
                versions.publish(store)
            store.versions.rollback("to the first one that is kept")
        with open_items(folder / "data") as opened:
            for size in (3, 2, 2):
                items.put(opened, size)
        recording.check_complete()
        return picked_up(folder / "data")


def contents_of(data_dir: Path) -> Contents:
    """Everything that the log, the store and the catalogue would give.

    Raises:
        CorruptStorage: If anything is not what was written.
    """
    contents: Contents = {}
    with open_log(data_dir) as log:
        contents["events"] = rows_of(log)
        contents["cut_bytes"] = log.cut_bytes
    with open_store(data_dir) as store:
        if store.versions.warning:
            raise CorruptStorage(store.versions.warning)
        contents["head"] = asdict(store.versions.record)
        try:
            for number in store.files.numbers():
                contents[f"manifest {number}"] = asdict(store.files.manifest(number))
                for file in (MODEL, TRAINER):
                    arrays = store.files.read(number, file)
                    contents[f"{file} {number}"] = {
                        name: (array.dtype.str, array.shape, array.tobytes())
                        for name, array in arrays.items()
                    }
        except UnknownVersion as error:
            raise CorruptStorage(str(error)) from error
    with open_items(data_dir) as opened:
        contents["items"] = opened.items
    return contents


def read_back(tree: Tree) -> tuple[Contents | None, str]:
    """What a disk gives, or why it is refused."""
    with scratch_folder() as folder:
        put_down(tree, folder / "data")
        try:
            return contents_of(folder / "data"), ""
        except CorruptStorage as error:
            return None, str(error)
