"""The catalogue in memory: a dense row for each item, and which changes are visible.

Axes: V rows, N changes, D text dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from actors.messages import CatalogChanges
from recommender.events import Item


class ItemTable:
    """Items by row. A change is accepted first and becomes visible with its text vector, in order.

    A row never changes its item. Revision r means that the first r changes are visible, so
    revisions are the same after a restart.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._rows: dict[str, int] = {}
        self._items: list[Item] = []
        self._pending: deque[Item] = deque()
        self._visible: list[Item] = []
        self._changed_V: list[int] = []
        self._vectors_VD: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    @property
    def num_items(self) -> int:
        """Items accepted."""
        return len(self._items)

    @property
    def num_changes(self) -> int:
        """Changes accepted: the revision once nothing is pending."""
        return self.revision + len(self._pending)

    @property
    def num_pending(self) -> int:
        """Changes without a text vector yet."""
        return len(self._pending)

    def get(self, item_id: str) -> Item | None:
        """The item as accepted last, None if there is none."""
        row = self._rows.get(item_id)
        return None if row is None else self._items[row]

    def new_or_changed(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """The items that change something, in order, and how many of them are new."""
        latest: dict[str, Item] = {}
        changed = []
        num_new = 0
        for item in items:
            before = latest.get(item.item_id) or self.get(item.item_id)
            if before != item:
                num_new += before is None
                latest[item.item_id] = item
                changed.append(item)
        return changed, num_new

    def accept(self, items: Sequence[Item]) -> None:
        """Take changes in; they are pending until `show`."""
        for item in items:
            row = self._rows.setdefault(item.item_id, len(self._items))
            if row == len(self._items):
                self._items.append(item)
            else:
                self._items[row] = item
            self._pending.append(item)

    def next_pending(self, limit: int) -> list[Item]:
        """The next changes to show."""
        return list(islice(self._pending, limit))

    def visible_vector(self, item: Item) -> NDArray[np.float32] | None:
        """The vector shown for this item, if its text is the same."""
        row = self._rows[item.item_id]
        if row < len(self._visible) and self._visible[row].text == item.text:
            vector: NDArray[np.float32] = self._vectors_VD[row]
            return vector
        return None

    def show(self, vectors_ND: NDArray[np.float32]) -> None:
        """Make the next N pending changes visible, with their text vectors."""
        for vector_D in vectors_ND:
            item = self._pending.popleft()
            row = self._rows[item.item_id]
            self.revision += 1
            if row == len(self._visible):
                self._visible.append(item)
                self._changed_V.append(self.revision)
                self._reserve(row + 1, len(vector_D))
            else:
                self._visible[row] = item
                self._changed_V[row] = self.revision
            self._vectors_VD[row] = vector_D

    def changes_after(self, revision: int) -> CatalogChanges:
        """Visible rows that are new or changed after a revision."""
        rows = np.flatnonzero(np.array(self._changed_V, np.int64) > revision)
        return CatalogChanges(
            revision=self.revision,
            num_items=len(self._visible),
            rows=rows,
            items=tuple(self._visible[row] for row in rows.tolist()),
            vectors=self._vectors_VD[rows],
        )

    def ids_from(self, row: int) -> list[str]:
        """The item ids of the rows from `row` on, visible or not: a row is fixed once accepted."""
        return [item.item_id for item in self._items[row:]]

    def _reserve(self, num_rows: int, dim: int) -> None:
        """Room for more rows; doubles, so that growing row by row does not copy each time."""
        room = len(self._vectors_VD)
        if num_rows > room:
            grown_VD = np.zeros((max(64, 2 * room), dim), np.float32)
            if room:
                grown_VD[:room] = self._vectors_VD
            self._vectors_VD = grown_VD
