"""Putting items into the catalogue's file, what the caller was told, and whether a disk agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.high_water import HighWater
from actors.item_log import ITEM_SCHEMA, AppendOnlyFile, item_batch, items_of
from actors.storage_folder import StorageFolder
from recommender.events import Item


@dataclass(frozen=True)
class OpenItems:
    """The opened file and what it had."""

    file: AppendOnlyFile
    items: list[Item]


@contextmanager
def open_items(data_dir: Path) -> Iterator[OpenItems]:
    """The file of the items, opened and closed as the catalogue does."""
    folder = StorageFolder.claim(data_dir, "items", {}, lock_wait_s=0.0)
    try:
        file = AppendOnlyFile(
            folder.path / "items.arrow",
            ITEM_SCHEMA,
            folder.epoch,
            HighWater(folder.path / "high_water.json"),
        )
        yield OpenItems(file, [item for batch in file.open() for item in items_of(batch)])
        file.close()
    finally:
        folder.close()


@dataclass
class ItemLedger:
    """Every item has its number in its id. `puts` are (sent at, acknowledged at, items)."""

    now: Callable[[], int] = lambda: 0
    puts: list[tuple[int, int, list[Item]]] = field(default_factory=list)
    _next_number: int = 0

    def put(self, opened: OpenItems, size: int) -> None:
        """Put new items."""
        first = self._next_number
        self._next_number += size
        self.send(opened, [_item(number) for number in range(first, first + size)])

    def send(self, opened: OpenItems, items: list[Item]) -> None:
        """Put items; they are acknowledged when this returns."""
        never = 1 << 60
        self.puts.append((self.now(), never, items))
        opened.file.append(item_batch(items))
        self.puts[-1] = (self.puts[-1][0], self.now(), items)

    def go_on(self, opened: OpenItems) -> None:
        """Put again what was not acknowledged; what is there is acknowledged by that."""
        outcomes = self.position(self.now())
        assert opened.items in outcomes, "the file is not what a crash may leave"
        if len(outcomes) > 1:
            sent_at, _, items = self.puts.pop()
            if opened.items == outcomes[1]:
                self.puts.append((sent_at, self.now(), items))
            else:
                self.send(opened, items)

    def position(self, moment: int) -> Any:
        """As `Ledger.position`: the acknowledged items, and those with the put on its way."""
        done = [item for _, at, items in self.puts if at <= moment for item in items]
        going = [items for sent_at, at, items in self.puts if sent_at <= moment < at]
        return [done, *(done + items for items in going)]

    def check(self, data_dir: Path, moment: int) -> None:
        """Raise if an acknowledged item is missing, one was never put, or the file is stuck."""
        with open_items(data_dir) as opened:
            assert opened.items in self.position(moment), f"{len(opened.items)} items"
            opened.file.append(item_batch([_item(1_000_000)]))
        with open_items(data_dir) as again:
            assert again.items == [*opened.items, _item(1_000_000)]


def _item(number: int) -> Item:
    return Item(f"item-{number}", f"text {number}", "title", ("a", "b"), {"price": number})
