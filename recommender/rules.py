"""A sparse matrix that is only ever added to and read by row: the weights of sequential rules.

Axes: K additions, E stored entries, S rows that are read, V items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_SMALLEST_ROW = 8


class RuleTable:
    """Row x holds a log of (column, weight), 8 bytes each, in one shared arena.

    Reading a row is a weighted sum, which does not mind a column that occurs twice, so an addition
    is a plain append. A full row first merges its repeated columns, and moves to a larger place
    only if that frees less than a quarter. A full arena is packed again without the holes. So a
    distinct pair costs 8 to 16 bytes (holes up to a quarter aside), however often it is added to.
    """

    def __init__(self) -> None:
        self._starts_V = np.zeros(0, np.int64)
        self._lengths_V = np.zeros(0, np.int64)
        self._capacities_V = np.zeros(0, np.int64)
        self._columns_E = np.zeros(0, np.int32)
        self._weights_E = np.zeros(0, np.float32)
        self._end = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._columns_E.nbytes + self._weights_E.nbytes + 3 * self._starts_V.nbytes

    @property
    def num_entries(self) -> int:
        """Stored entries; at least the number of distinct pairs."""
        return int(self._lengths_V.sum())

    def grow(self, num_rows: int) -> None:
        """Make room for rows below `num_rows`."""
        more = max(0, num_rows - self._starts_V.size)
        self._starts_V = np.pad(self._starts_V, (0, more))
        self._lengths_V = np.pad(self._lengths_V, (0, more))
        self._capacities_V = np.pad(self._capacities_V, (0, more))

    def add(
        self,
        rows_K: NDArray[np.int32],
        columns_K: NDArray[np.int32],
        weights_K: NDArray[np.float32],
    ) -> None:
        """Add `weights_K[k]` at (`rows_K[k]`, `columns_K[k]`), in order."""
        if len(rows_K) == 0:
            return
        order_K = np.argsort(rows_K, kind="stable")
        rows, firsts, counts = np.unique(rows_K[order_K], return_index=True, return_counts=True)
        for index in np.flatnonzero(self._lengths_V[rows] + counts > self._capacities_V[rows]):
            self._make_room(int(rows[index]), int(counts[index]))
        places_K = np.repeat(self._starts_V[rows] + self._lengths_V[rows] - firsts, counts)
        places_K += np.arange(len(rows_K))
        self._columns_E[places_K] = columns_K[order_K]
        self._weights_E[places_K] = weights_K[order_K]
        self._lengths_V[rows] += counts

    def weighted_sum(
        self, rows_S: NDArray[np.int32], factors_S: NDArray[np.float64], num_columns: int
    ) -> NDArray[np.float64]:
        """Sum over s of `factors_S[s]` times row `rows_S[s]`, as a dense vector."""
        spans = [self._span(int(row)) for row in rows_S]
        if not spans:
            return np.zeros(num_columns)
        columns = np.concatenate([self._columns_E[span] for span in spans])
        weights = np.concatenate(
            [self._weights_E[span] * factor for span, factor in zip(spans, factors_S, strict=True)]
        )
        return np.bincount(columns, weights, minlength=num_columns).astype(np.float64, copy=False)

    def state(self, num_rows: int) -> dict[str, NDArray[np.generic]]:
        """A copy of the first `num_rows` rows without the unused places."""
        live_E = _places(self._starts_V, self._lengths_V)
        return {
            "lengths": self._lengths_V[:num_rows].copy(),
            # With the same capacities the same rows merge at the same addition, so that a restored
            # table rounds as the first one does.
            "capacities": self._capacities_V[:num_rows].copy(),
            "columns": self._columns_E[live_E],
            "weights": self._weights_E[live_E],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> RuleTable:
        """The table that `state` was taken from."""
        table = cls()
        table._lengths_V = np.array(state["lengths"], np.int64)
        table._capacities_V = np.array(state["capacities"], np.int64)
        table._lay_out(
            np.asarray(state["columns"], np.int32),
            np.asarray(state["weights"], np.float32),
            spare=0,
        )
        return table

    def _span(self, row: int) -> slice:
        start = int(self._starts_V[row])
        return slice(start, start + int(self._lengths_V[row]))

    def _make_room(self, row: int, num_more: int) -> None:
        span = self._span(row)
        columns, inverse = np.unique(self._columns_E[span], return_inverse=True)
        weights = np.bincount(inverse, self._weights_E[span], minlength=len(columns))
        needed = len(columns) + num_more
        if needed > 0.75 * self._capacities_V[row]:
            self._move(row, max(_SMALLEST_ROW, needed + needed // 2))
        start = int(self._starts_V[row])
        self._lengths_V[row] = len(columns)
        self._columns_E[start : start + len(columns)] = columns
        self._weights_E[start : start + len(columns)] = weights

    def _move(self, row: int, capacity: int) -> None:
        """Give a row an empty place of its own at the end of the arena."""
        self._lengths_V[row] = 0
        if self._end + capacity > self._columns_E.size:
            self._capacities_V[row] = 0
            live_E = _places(self._starts_V, self._lengths_V)
            in_use = int(self._capacities_V.sum()) + capacity
            self._lay_out(
                self._columns_E[live_E], self._weights_E[live_E], spare=capacity + in_use // 4
            )
        self._starts_V[row] = self._end
        self._capacities_V[row] = capacity
        self._end += capacity

    def _lay_out(
        self, columns_E: NDArray[np.int32], weights_E: NDArray[np.float32], spare: int
    ) -> None:
        """Pack all rows, whose live entries are given row by row, into a new arena."""
        self._end = int(self._capacities_V.sum())
        self._starts_V = np.cumsum(self._capacities_V) - self._capacities_V
        places_E = _places(self._starts_V, self._lengths_V)
        self._columns_E = np.zeros(self._end + spare, np.int32)
        self._weights_E = np.zeros(self._end + spare, np.float32)
        self._columns_E[places_E] = columns_E
        self._weights_E[places_E] = weights_E


def _places(starts_V: NDArray[np.int64], lengths_V: NDArray[np.int64]) -> NDArray[np.int64]:
    """Arena places of the live entries of every row, row by row."""
    firsts_V = np.cumsum(lengths_V) - lengths_V
    return np.repeat(starts_V - firsts_V, lengths_V) + np.arange(int(lengths_V.sum()))
