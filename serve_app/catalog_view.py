"""The replica's copy of the catalogue: ids to rows, text vectors, category masks.

Axes: V items, D text dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from actors.messages import CatalogChanges
from recommender.events import Item

_MAX_MASKS = 64


class CatalogView:
    """Grows in place, between requests. Rows never change their item, so a row is safe to keep."""

    def __init__(self) -> None:
        self.revision = 0
        self.items: list[Item] = []
        self._rows: dict[str, int] = {}
        self._vectors_VD: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._members: dict[str, set[int]] = {}
        self._masks: dict[str, NDArray[np.bool_]] = {}

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def categories(self) -> list[str]:
        """Every category that an item has, sorted."""
        return sorted(self._members)

    @property
    def vectors_VD(self) -> NDArray[np.float32]:
        """Text vectors as the catalogue made them, not standardised."""
        return self._vectors_VD[: self.num_items]

    def apply(self, changes: CatalogChanges) -> None:
        """Take over new and changed rows.

        Raises:
            ValueError: If a row beyond the next one comes: something between was missed.
        """
        if len(changes.rows):
            self._reserve(int(changes.rows.max()) + 1, changes.vectors.shape[1])
        for row, item, vector_D in zip(
            changes.rows.tolist(), changes.items, changes.vectors, strict=True
        ):
            self._put(row, item)
            self._vectors_VD[row] = vector_D
            self._masks.clear()
        self.revision = changes.revision

    def row(self, item_id: str) -> int | None:
        """The item's row, None if there is no such item."""
        return self._rows.get(item_id)

    def rows(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """The rows of those ids that exist, in the order given."""
        found = (self._rows.get(item_id) for item_id in item_ids)
        return np.array([row for row in found if row is not None], np.int64)

    def mask(self, categories: Iterable[str]) -> NDArray[np.bool_]:
        """Which items are in any of the categories, [V]."""
        mask_V = np.zeros(self.num_items, np.bool_)
        for name in categories:
            mask_V |= self._mask(name)
        return mask_V

    def page(self, after: str | None, limit: int) -> list[Item]:
        """Up to `limit` items by row, after the item `after` (from the start if it is unknown)."""
        start = 0 if after is None else self._rows.get(after, -1) + 1
        return self.items[start : start + limit]

    def _put(self, row: int, item: Item) -> None:
        if row > self.num_items:
            raise ValueError(f"catalogue row {row} came before row {self.num_items}")
        if row == self.num_items:
            self.items.append(item)
            self._rows[item.item_id] = row
        else:
            self._leave_categories(row)
            self.items[row] = item
        for name in item.categories:
            self._members.setdefault(name, set()).add(row)

    def _leave_categories(self, row: int) -> None:
        for name in set(self.items[row].categories):
            self._members[name].discard(row)
            if not self._members[name]:
                del self._members[name]

    def _mask(self, name: str) -> NDArray[np.bool_]:
        """Made once per category and revision; a bounded number is kept, whatever is asked for."""
        if name not in self._members:
            return np.zeros(self.num_items, np.bool_)
        if name not in self._masks:
            if len(self._masks) >= _MAX_MASKS:
                self._masks.clear()
            mask_V = np.zeros(self.num_items, np.bool_)
            mask_V[list(self._members[name])] = True
            self._masks[name] = mask_V
        return self._masks[name]

    def _reserve(self, num_rows: int, dim: int) -> None:
        """Doubles, so that a catalogue that grows item by item is not copied item by item."""
        room = len(self._vectors_VD)
        if num_rows <= room:
            return
        grown_VD = np.zeros((max(num_rows, 2 * room), dim), np.float32)
        if room:
            grown_VD[:room] = self._vectors_VD
        self._vectors_VD = grown_VD
