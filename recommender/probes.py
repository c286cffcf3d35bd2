"""Held-out events of every period of the stream, to measure what learning forgets.

A probe is an event that no lesson ends at (`hold_out`), with the window before it and the
popularity as they were: so a slice's quality changes with the weights alone. Each period's slice is
measured when it closes, by the version of then, and again by every later one.

Axes: B probes, M popularity half-lives, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.metrics import ndcg_at_k
from recommender.named_arrays import put_under, under
from recommender.replay import windows_before
from recommender.scorer import Scorer
from recommender.votes import votes
from recommender.windows import Windows, concatenate, select

_COLUMNS = ("items_BT", "feedback_BT", "gaps_BT", "lengths_B")


@dataclass(frozen=True)
class Slice:
    """Probes of one period.

    Attributes:
        windows: Each ends at a held-out event.
        popularity_MV: Decayed counts when the period closed.
        level_B: NDCG@10 of each probe by the version that was served then.
    """

    windows: Windows
    popularity_MV: NDArray[np.float32]
    level_B: NDArray[np.float64]


class ProbeBook:
    """Slices of equally long periods that together cover the stream, at most `max_periods`.

    When there are more, every second one is dropped and periods become twice as long. Among the
    newest events a user has a few votes at most, so that a few who flood the stream are not taken
    for a world that has changed. `state` has everything.
    """

    def __init__(
        self,
        *,
        period_events: int,
        probes_per_period: int,
        max_periods: int = 8,
        newest: int = 128,
        newest_per_user: int = 4,
        seed: int = 0,
    ) -> None:
        self.slices: dict[int, Slice] = {}
        self.period_events = period_events
        self._probes_per_period = probes_per_period
        self._max_periods = max_periods
        self._num_newest = newest
        self._newest_per_user = newest_per_user
        self._newest: Windows | None = None
        self._newest_users: NDArray[np.int64] = np.empty(0, np.int64)
        self._open: Windows | None = None
        self._num_in_period = 0
        self._num_events = 0
        self._seed = seed

    @property
    def newest(self) -> Windows | None:
        """The latest held-out events, over all periods; None before there is one."""
        return self._newest

    def add(self, num_events: int, held_out: Windows, users_B: NDArray[Any]) -> None:
        """Take in the held-out ones among so many fresh events, oldest first, and whose they are.

        No window may be empty.
        """
        self._num_events += num_events
        self._num_in_period += num_events
        if not len(held_out):
            return
        self._open = _joined(self._open, held_out)
        users_B = np.concatenate([self._newest_users, users_B.astype(np.int64)])
        kept = votes(users_B, self._newest_per_user)[-self._num_newest :]
        self._newest = select(_joined(self._newest, held_out), kept)
        self._newest_users = users_B[kept]

    def close_period(self, scorer: Scorer, popularity_MV: NDArray[np.float32]) -> None:
        """If the open period is over, make its slice and let the served version set its level."""
        if self._num_in_period < self.period_events:
            return
        windows, self._open, self._num_in_period = self._open, None, 0
        if windows is None:
            return
        if len(windows) > self._probes_per_period:
            rng = np.random.default_rng((self._seed, self._num_events))
            chosen = rng.permutation(len(windows))[: self._probes_per_period]
            windows = select(windows, np.sort(chosen))
        popularity_MV = popularity_MV.copy()
        level_B = probe_ndcg(scorer, windows, popularity_MV)
        self.slices[self._num_events] = Slice(windows, popularity_MV, level_B)
        if len(self.slices) > self._max_periods:
            self.slices = dict(list(self.slices.items())[::2])
            self.period_events *= 2

    def measure(
        self, scorer: Scorer, periods: Collection[int] | None = None
    ) -> dict[int, NDArray[np.float64]]:
        """NDCG@10 of the probes of some or all periods by a version.

        A period is named by the number of events when it closed.
        """
        return {
            period: probe_ndcg(scorer, probes.windows, probes.popularity_MV)
            for period, probes in self.slices.items()
            if periods is None or period in periods
        }

    def changes(self, measured: Mapping[int, NDArray[np.float64]]) -> dict[int, float]:
        """By period, how far the mean NDCG@10 is above its level, as a share of it."""
        return {
            period: float(ndcg_B.mean() / self.slices[period].level_B.mean() - 1.0)
            for period, ndcg_B in measured.items()
            if self.slices[period].level_B.any()
        }

    def metrics(self, measured: Mapping[int, NDArray[np.float64]]) -> dict[str, float]:
        """NDCG@10 of each period's probes, and the mean of the changes since their levels."""
        metrics = {f"probe_{p}_ndcg_at_10": float(ndcg_B.mean()) for p, ndcg_B in measured.items()}
        if changes := self.changes(measured):
            metrics["probe_change"] = float(np.mean(list(changes.values())))
        return metrics

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for `load_state`."""
        state: dict[str, NDArray[Any]] = {
            "counts": np.array([self._num_events, self.period_events, self._num_in_period]),
            "newest_users": self._newest_users,
            **put_under("open.", _arrays_of(self._open)),
            **put_under("newest.", _arrays_of(self._newest)),
        }
        for period, probes in self.slices.items():
            state |= put_under(f"{period}.", _arrays_of(probes.windows))
            state[f"{period}.popularity_MV"] = probes.popularity_MV
            state[f"{period}.level_B"] = probes.level_B
        return state

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the book whose `state` this is; an empty one changes nothing."""
        if not state:
            return
        # A state from before there were more holds two counts and the slices.
        counts = [int(n) for n in state["counts"]]
        self._num_events, self.period_events, self._num_in_period = (*counts, 0)[:3]
        self._newest_users = np.array(state.get("newest_users", ()), np.int64)
        self._open = _windows_of(under("open.", state))
        self._newest = _windows_of(under("newest.", state))
        periods = sorted(int(n.split(".")[0]) for n in state if n.endswith(".level_B"))
        self.slices = {
            period: Slice(
                Windows(*(np.array(state[f"{period}.{name}"]) for name in _COLUMNS)),
                np.array(state[f"{period}.popularity_MV"]),
                np.array(state[f"{period}.level_B"]),
            )
            for period in periods
        }


class MemoryProbes:
    """Windows drawn evenly from replay, renewed now and then: the memory when no one is held out.

    Lessons may have ended at them, of both compared versions alike. So they tell that a candidate
    forgets, but not how well it foresees.
    """

    def __init__(
        self,
        draw: Callable[[int], Windows | None],
        *,
        num_windows: int = 128,
        num_rounds: int = 20,
    ) -> None:
        """`draw` samples so many windows, every `num_rounds` comparisons."""
        self._draw = draw
        self._num_windows = num_windows
        self._num_rounds = num_rounds
        self._round = 0
        self._windows: Windows | None = None

    def next(self) -> Windows | None:
        """Windows of two events and more for the next comparison, or None if none can be drawn."""
        if self._windows is None or self._round % self._num_rounds == 0:
            drawn = self._draw(self._num_windows)
            self._windows = None if drawn is None else select(drawn, drawn.lengths_B > 1)
        self._round += 1
        return self._windows

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for `load_state`."""
        return {"round": np.array(self._round), **_arrays_of(self._windows)}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on as the ones whose `state` this is; an empty one changes nothing."""
        if state:
            self._round, self._windows = int(state["round"]), _windows_of(state)


def probe_ndcg(
    scorer: Scorer, probes: Windows, popularity_MV: NDArray[np.float32]
) -> NDArray[np.float64]:
    """NDCG@10 of predicting the last item of each window from the ones before it, float64 [B].

    Items of the window before the last are left out, as serving would. Ties count half. No window
    may be empty.
    """
    row_B = np.arange(len(probes))
    targets_B = probes.items_BT[row_B, probes.lengths_B - 1]
    history = windows_before(probes)
    scores_BV = scorer.net_scores(history, popularity_MV)
    target_scores_B = scores_BV[row_B, targets_B]
    seen = history.items_BT >= 0
    rows, _ = np.nonzero(seen)
    scores_BV[rows, history.items_BT[seen]] = -np.inf
    scores_BV[row_B, targets_B] = target_scores_B
    better_B = (scores_BV > target_scores_B[:, None]).sum(axis=1)
    equal_B = (scores_BV == target_scores_B[:, None]).sum(axis=1) - 1
    rank_B = 1 + better_B + equal_B / 2
    return ndcg_at_k(rank_B, 10)


def _arrays_of(windows: Windows | None) -> dict[str, NDArray[Any]]:
    return {} if windows is None else {name: getattr(windows, name) for name in _COLUMNS}


def _windows_of(arrays: Mapping[str, NDArray[Any]]) -> Windows | None:
    if not all(name in arrays for name in _COLUMNS):
        return None
    return Windows(*(np.array(arrays[name]) for name in _COLUMNS))


def _joined(some: Windows | None, more: Windows) -> Windows:
    return more if some is None else concatenate([some, more])
