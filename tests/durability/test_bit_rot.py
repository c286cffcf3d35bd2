"""Bits that flip and blocks that go blank are never read as if nothing had happened."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_disk import Tree
from whole_storage import read_back, storage

__all__ = ["storage"]

pytestmark = pytest.mark.timeout(180)

_SEED = 5
_NUM_FAULTS = 2_000
_BLOCKS = (512, 4_096)


def faults(tree: Tree, seed: int, num_faults: int) -> Iterator[tuple[str, int, Tree]]:
    """Disks with one fault each, every file as often: its name, where it begins, the disk."""
    rng = random.Random(seed)
    names = [name for name, data in tree.items() if data]
    place = 0
    while place < num_faults:
        name = names[place % len(names)]
        data = bytearray(tree[name] or b"")
        if rng.random() < 0.7:
            at = rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)
        else:
            block = rng.choice(_BLOCKS)
            at = rng.randrange(0, len(data), block)
            blank = bytes(len(data[at : at + block]))
            if data[at : at + block] == blank:
                continue
            data[at : at + block] = blank
        yield name, at, {**tree, name: bytes(data)}
        place += 1


def test_no_fault_of_the_disk_changes_anything_silently(
    storage: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = read_back(storage)
    assert whole is not None
    outcomes: Counter[str] = Counter()
    silent = []
    for name, at, tree in faults(storage, _SEED, _NUM_FAULTS):
        found, reason = read_back(tree)
        if found is None:
            file = Path(name).name
            # The head names a version, a manifest is known by its folder.
            named = file in reason or Path(name).parent.name in reason
            outcomes["refused by name" if named else "refused"] += 1
        elif found == whole:
            outcomes["same contents"] += 1
        else:
            silent.append((name, at))
    with capsys.disabled():
        print(
            f"\nbit rot, {_NUM_FAULTS} faults, seed {_SEED}: {dict(outcomes)}, {len(silent)} silent"
        )
    assert silent == []
    assert outcomes["refused"] == 0
    assert outcomes["refused by name"] > 0.9 * _NUM_FAULTS
