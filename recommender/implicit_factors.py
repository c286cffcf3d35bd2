"""Implicit matrix factorisation (iALS): item factors refitted now and then, users folded in.

Source: Hu, Koren and Volinsky 2008, doi:10.1109/ICDM.2008.22; fitted by the package `implicit`
(the extra `ials`). Axes: N events, U users, V items, F factors, H items of a history.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.settings import FactorSettings

IALS = "ials"
_INITIAL_SCALE = 0.01


@dataclass(frozen=True)
class ItemFactors:
    """One fit, ready to score; needs neither `implicit` nor a table of users.

    Attributes:
        items_VF: float32, zeros for an item that had no event.
        gram_FF: `items_VF.T @ items_VF` plus the regularisation on its diagonal.
        alpha: Confidence in an item that the user had; others have 1.
    """

    items_VF: NDArray[np.float32]
    gram_FF: NDArray[np.float32]
    alpha: float

    @classmethod
    def of(cls, items_VF: NDArray[np.float32], settings: FactorSettings) -> ItemFactors:
        """Factors as `implicit` fitted them under these settings."""
        regularisation_FF = np.float32(settings.regularisation) * np.eye(
            items_VF.shape[1], dtype=np.float32
        )
        return cls(items_VF, items_VF.T @ items_VF + regularisation_FF, settings.alpha)

    def scores(self, rows_H: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores of all items, [V], for a user with these items; rows without factors say nothing.

        Solves the user's half of the alternation on the whole history, so that the user's latest
        item counts at once, however old the fit is.
        """
        rows_H = np.unique(rows_H)
        history_HF = self.items_VF[rows_H[(rows_H >= 0) & (rows_H < len(self.items_VF))]]
        weighted_FF = self.gram_FF + np.float32(self.alpha - 1.0) * (history_HF.T @ history_HF)
        wanted_F = np.float32(self.alpha) * history_HF.sum(axis=0)
        user_F = np.linalg.solve(weighted_FF, wanted_F)
        return np.asarray(self.items_VF @ user_F, np.float32)


@dataclass
class FactorLearner:
    """Collects who had what, and fits it anew every `settings.refit_events` events.

    A fit starts where the last one ended, so three sweeps are enough to follow the stream. Between
    two fits only the users' side moves. Keeps 8 bytes an event.
    """

    num_items: int
    settings: FactorSettings = field(default_factory=FactorSettings)
    seed: int = 0
    factors: ItemFactors = field(init=False)

    def __post_init__(self) -> None:
        self._users = array("i")
        self._rows = array("i")
        self._num_fits = 0
        self._users_UF = np.zeros((0, self.settings.factors), np.float32)
        items_VF = np.zeros((self.num_items, self.settings.factors), np.float32)
        self.factors = ItemFactors.of(items_VF, self.settings)

    def update(self, user: int, row: int, seen_rows: NDArray[np.int32]) -> None:
        """Count an event of a user, who had `seen_rows` before it; repeats add nothing."""
        self._users.append(user)
        self._rows.append(row)
        if len(self._rows) % self.settings.refit_events == 0:
            self.refit()

    def scores(self, rows_H: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores of all items, [V], by the last fit; zeros before the first."""
        return self.factors.scores(rows_H)

    def refit(self) -> None:
        """Some sweeps over everything so far.

        Raises:
            ImportError: If `implicit` is not installed: it comes with the extra `ials`.
        """
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        users_N, rows_N = np.asarray(self._users), np.asarray(self._rows)
        self.num_items = max(self.num_items, int(rows_N.max()) + 1)
        shape = (int(users_N.max()) + 1, self.num_items)
        had_UV = csr_matrix((np.ones(len(rows_N), np.float32), (users_N, rows_N)), shape)
        had_UV.data[:] = 1.0  # a repeat was added up
        rng = np.random.default_rng((self.seed, self._num_fits))
        # implicit has threads of its own; those of BLAS on top of them would only wait.
        with threadpool_limits(1, "blas"):
            solver: Any = AlternatingLeastSquares(
                factors=self.settings.factors,
                regularization=self.settings.regularisation,
                alpha=self.settings.alpha,
                iterations=self.settings.sweeps,
                num_threads=1,
            )
            solver.user_factors = _grown(self._users_UF, shape[0], rng)
            solver.item_factors = _grown(self.factors.items_VF, shape[1], rng)
            solver.fit(had_UV, show_progress=False)
        self._num_fits += 1
        self._users_UF = solver.user_factors
        self.factors = ItemFactors.of(solver.item_factors, self.settings)


def _grown(
    factors_NF: NDArray[np.float32], num_rows: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The factors with small random ones for rows that are new or all zero."""
    grown_NF = np.zeros((num_rows, factors_NF.shape[1]), np.float32)
    grown_NF[: len(factors_NF)] = factors_NF
    is_new_N = ~grown_NF.any(axis=1)
    shape = (int(is_new_N.sum()), factors_NF.shape[1])
    grown_NF[is_new_N] = _INITIAL_SCALE * rng.random(shape, dtype=np.float32)
    return grown_NF
