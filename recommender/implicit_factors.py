"""Implicit matrix factorisation (iALS): item factors refitted now and then, users folded in.

Source: Hu, Koren and Volinsky 2008, doi:10.1109/ICDM.2008.22; fitted by the package `implicit`
(the extra `ials`). Axes: N events, U users, V items, F factors, H items of a history.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.settings import FactorSettings

logger = logging.getLogger(__name__)

IALS = "ials"
_INITIAL_SCALE = 0.01
# What three sweeps from nothing lack of several fits in a row: 2 to 15 % of NDCG@10 on ml-100k.
_FIRST_SWEEPS = 10


class SolverMissing(ImportError):
    """The package that fits factors is not installed; the message says what to do."""


def require_solver(settings: FactorSettings) -> None:
    """Check that factors can be fitted, if they are wanted.

    Raises:
        SolverMissing: If `implicit` is not installed.
    """
    if settings.enabled:
        _solver_class()


@dataclass(frozen=True)
class ItemFactors:
    """One fit, ready to score; needs neither `implicit` nor a table of users.

    Attributes:
        items_VF: float32, zeros for an item that had no event; later items have no row.
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

    def scores(
        self, rows_H: NDArray[np.int32], num_items: int | None = None
    ) -> NDArray[np.float32]:
        """Scores of all items, [V], for a user with these items; rows without factors say nothing.

        Solves the user's half of the alternation on the whole history, so that the user's latest
        item counts at once, however old the fit is. With `num_items`, items beyond the factors
        score 0 up to there, as those do that had no event.
        """
        history_HF = self._known(np.unique(rows_H))
        wanted_F = np.float32(self.alpha) * history_HF.sum(axis=0)
        user_F = np.linalg.solve(self._weighted(history_HF), wanted_F)
        scores_V = np.asarray(self.items_VF @ user_F, np.float32)
        return np.pad(scores_V, (0, max(0, (num_items or 0) - len(scores_V))))

    def contributions(
        self, rows_H: NDArray[np.int32], targets_KF: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What each item of a history adds to the scores of some factors.

        The score is linear in what the user wanted, given the confidence in all of it, so the parts
        are exact. An item that the user had several times counts once, at its latest place.

        Returns:
            [H, K]; sums over H to the scores.
        """
        parts_HK = np.zeros((len(rows_H), len(targets_KF)), np.float32)
        rows, from_the_end = np.unique(rows_H[::-1], return_index=True)
        is_known = (rows >= 0) & (rows < len(self.items_VF))
        history_HF = self._known(rows)
        users_FH = np.linalg.solve(
            self._weighted(history_HF), np.float32(self.alpha) * history_HF.T
        )
        parts_HK[len(rows_H) - 1 - from_the_end[is_known]] = (targets_KF @ users_FH).T
        return parts_HK

    def vectors(self, num_items: int) -> NDArray[np.float32]:
        """Factors of the first `num_items` items, [V, F]; zeros for those without."""
        missing = max(0, num_items - len(self.items_VF))
        return np.pad(self.items_VF[:num_items], ((0, missing), (0, 0)))

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays of a published version, for `from_state`."""
        return {"items_VF": self.items_VF, "gram_FF": self.gram_FF, "alpha": np.array([self.alpha])}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> ItemFactors:
        """The factors of a published version, to the last bit."""
        return cls(state["items_VF"], state["gram_FF"], float(state["alpha"][0]))

    def _known(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.items_VF[rows[(rows >= 0) & (rows < len(self.items_VF))]]

    def _weighted(self, history_HF: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.gram_FF + np.float32(self.alpha - 1.0) * (history_HF.T @ history_HF)


@dataclass
class FactorLearner:
    """Collects who had what, and fits it anew every `settings.refit_events` events.

    A fit starts where the last one ended, so three sweeps are enough to follow the stream. Between
    two fits only the users' side moves. Keeps 8 bytes for each of the latest `settings.max_events`
    events (a quarter more in between), and the factors of their users and items. Fits within the
    call that makes one due.

    Attributes:
        num_events: Collected so far, those included that were dropped.
        factors: The last fit; zeros before the first.
    """

    num_items: int
    settings: FactorSettings = field(default_factory=FactorSettings)
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    num_events: int = field(init=False, default=0)
    factors: ItemFactors = field(init=False)

    def __post_init__(self) -> None:
        self._users = array("i")
        self._rows = array("i")
        self._num_fits = 0
        self._fitted_at: int | None = None  # `num_events` then
        self._known_users = np.zeros(0, np.int32)  # rising
        self._users_UF = np.zeros((0, self.settings.factors), np.float32)
        items_VF = np.zeros((self.num_items, self.settings.factors), np.float32)
        self.factors = ItemFactors.of(items_VF, self.settings)

    def update(self, user: int, row: int, seen_rows: NDArray[np.int32]) -> None:
        """Count an event of a user, who had `seen_rows` before it; repeats add nothing."""
        self._users.append(user)
        self._rows.append(row)
        self._collected(1)
        if self.num_events - (self._fitted_at or 0) >= self.settings.refit_events:
            self.refit()

    def collect(self, users_N: NDArray[np.int32], rows_N: NDArray[np.int32]) -> None:
        """Count events that are read again or in bulk, without a fit; see `catch_up`."""
        self._users.extend(users_N.tolist())
        self._rows.extend(rows_N.tolist())
        self._collected(len(rows_N))

    def catch_up(self) -> None:
        """After `collect`: the first fit, if there is none yet and anything to fit."""
        if self._fitted_at is None and self._rows:
            self.refit(max(_FIRST_SWEEPS, self.settings.sweeps))
        elif self._fitted_at is not None:
            self._fitted_at = min(self._fitted_at, self.num_events)

    def forget_events(self) -> None:
        """Nothing is collected any more; the factors stay until the next fit."""
        del self._users[:], self._rows[:]
        self.num_events = 0

    def scores(self, rows_H: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores of all items, [V], by the last fit; zeros before the first."""
        return self.factors.scores(rows_H)

    def refit(self, sweeps: int | None = None) -> None:
        """Some sweeps over the latest events.

        Raises:
            SolverMissing: If `implicit` is not installed: it comes with the extra `ials`.
        """
        solver_class = _solver_class()
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        started_s = self.clock()
        newest = slice(-self.settings.max_events, None)
        users, users_N = np.unique(np.asarray(self._users)[newest], return_inverse=True)
        rows_N = np.asarray(self._rows)[newest]
        self.num_items = max(self.num_items, int(rows_N.max()) + 1)
        shape = (len(users), self.num_items)
        had_UV = csr_matrix((np.ones(len(rows_N), np.float32), (users_N, rows_N)), shape)
        had_UV.data[:] = 1.0  # a repeat was added up
        rng = np.random.default_rng((self.seed, self._num_fits))
        # implicit has threads of its own; those of BLAS on top of them would only wait.
        with threadpool_limits(1, "blas"):
            solver: Any = solver_class(
                factors=self.settings.factors,
                regularization=self.settings.regularisation,
                alpha=self.settings.alpha,
                iterations=sweeps or self.settings.sweeps,
                num_threads=1,
            )
            solver.user_factors = _grown(self._factors_of(users), shape[0], rng)
            solver.item_factors = _grown(self.factors.items_VF, shape[1], rng)
            solver.fit(had_UV, show_progress=False)
        self._num_fits += 1
        self._fitted_at = self.num_events
        self._known_users, self._users_UF = users, solver.user_factors
        self.factors = ItemFactors.of(solver.item_factors, self.settings)
        logger.info(
            "factors fitted events=%d users=%d items=%d seconds=%.2f",
            len(rows_N),
            *shape,
            self.clock() - started_s,
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays to publish: those of the factors, and when they were fitted."""
        return {**self.factors.state(), "fitted_at": np.array([self._fitted_at or 0])}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from published factors; those of another size are not taken over.

        The events are not in it. Users start anew at the next fit, which therefore is that of a
        learner without a restart up to what three sweeps leave of the first users.
        """
        factors = ItemFactors.from_state(state)
        if factors.items_VF.shape[1] == self.settings.factors and state["fitted_at"][0]:
            self.factors = factors
            self.num_items = max(self.num_items, len(factors.items_VF))
            self._fitted_at = int(state["fitted_at"][0])

    def _collected(self, num_events: int) -> None:
        self.num_events += num_events
        bound = self.settings.max_events
        if len(self._rows) > bound + bound // 4:
            del self._users[:-bound], self._rows[:-bound]

    def _factors_of(self, users: NDArray[np.int32]) -> NDArray[np.float32]:
        """Factors of some users, rising; zeros for those who are new."""
        users_UF = np.zeros((len(users), self.settings.factors), np.float32)
        _, places, known = np.intersect1d(
            users, self._known_users, assume_unique=True, return_indices=True
        )
        users_UF[places] = self._users_UF[known]
        return users_UF


def _solver_class() -> Any:
    """The class that fits.

    Raises:
        SolverMissing: If `implicit` is not installed.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise SolverMissing(
            "iALS (`ials.enabled`) needs the package implicit: pip install 'rheos[ials]'"
        ) from error
    return AlternatingLeastSquares


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
