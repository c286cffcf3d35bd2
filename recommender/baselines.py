"""Classical rankings to compare with, kept as of every event: item neighbours and EASE.

Both hold a dense V by V matrix, so they are for catalogues of some thousands. Popularity and
sequential rules are in `counters`. Axes: V items, H items of a history.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_NEIGHBOUR_ITEMS = 20
_NEIGHBOUR_FADE = 0.9


class Baseline(Protocol):
    """A ranking that is updated by every event."""

    def scores(self, rows_H: NDArray[np.int32]) -> NDArray[np.floating]:
        """Scores of all items, [V], for a user with these items, oldest first."""

    def update(self, user: int, row: int, seen_rows: NDArray[np.int32]) -> None:
        """Count an event of a user who had `seen_rows` before it."""


class CoOccurrence:
    """How many users had both of two items, [V, V]; on the diagonal, how many had the item."""

    def __init__(self, num_items: int) -> None:
        self.users_VV = np.zeros((num_items, num_items), np.float32)

    def update(self, row: int, seen_rows: NDArray[np.int32]) -> None:
        """Count an event; a repeat changes nothing."""
        seen_rows = np.unique(seen_rows)
        if row in seen_rows:
            return
        self.users_VV[row, seen_rows] += 1
        self.users_VV[seen_rows, row] += 1
        self.users_VV[row, row] += 1


class ItemNeighbours:
    """Item-kNN by cosine over users: the a-th last of a user's last 20 items weighs 0.9^a."""

    def __init__(self, num_items: int) -> None:
        self._together = CoOccurrence(num_items)

    def update(self, user: int, row: int, seen_rows: NDArray[np.int32]) -> None:
        """Count an event of a user who had `seen_rows` before it."""
        self._together.update(row, seen_rows)

    def scores(self, rows_H: NDArray[np.int32]) -> NDArray[np.floating]:
        """Scores of all items, [V], for a user with these items, oldest first."""
        users_VV = self._together.users_VV
        latest_S = rows_H[-_NEIGHBOUR_ITEMS:][::-1]
        norms_V = np.sqrt(np.maximum(users_VV.diagonal(), 1.0))
        weights_S = np.power(_NEIGHBOUR_FADE, np.arange(len(latest_S))) / norms_V[latest_S]
        return np.asarray(weights_S @ users_VV[latest_S] / norms_V)


class Ease:
    """EASE, solved anew when it is asked after `refit_every` or more events.

    Source: Steck 2019, Embarrassingly shallow autoencoders for sparse data, arXiv:1905.03375.
    """

    def __init__(
        self, num_items: int, *, refit_every: int = 2_000, regularisation: float = 500.0
    ) -> None:
        self._together = CoOccurrence(num_items)
        self._weights_VV = np.zeros((num_items, num_items), np.float32)
        self._refit_every = refit_every
        self._regularisation = regularisation
        self._num_unfitted = 0

    def update(self, user: int, row: int, seen_rows: NDArray[np.int32]) -> None:
        """Count an event of a user who had `seen_rows` before it."""
        self._together.update(row, seen_rows)
        self._num_unfitted += 1

    def scores(self, rows_H: NDArray[np.int32]) -> NDArray[np.floating]:
        """Scores of all items, [V], for a user with these items, oldest first."""
        if self._num_unfitted >= self._refit_every:
            self._refit()
            self._num_unfitted = 0
        return np.asarray(self._weights_VV[np.unique(rows_H)].sum(axis=0))

    def _refit(self) -> None:
        gram_VV = self._together.users_VV.copy()
        gram_VV[np.diag_indices_from(gram_VV)] += self._regularisation
        inverse_VV = np.linalg.inv(gram_VV)
        weights_VV = inverse_VV / -inverse_VV.diagonal()
        np.fill_diagonal(weights_VV, 0.0)
        self._weights_VV = weights_VV
