"""Counters that are exact at every event: decayed popularity and sequential rules.

Axes: N events, P previous items, V items, M half-lives, S last items of a user, K pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recommender.named_arrays import put_under, under
from recommender.rules import RuleTable
from recommender.windows import PAD, Windows

DEFAULT_HALF_LIVES = (500.0, 2_000.0, 10_000.0, 100_000.0)

RULE_SOURCES = 20
"""Latest items of a user that speak in `rule_scores`."""

_RULE_FADE = 0.9
_RULE_DAMPING = 0.3
# Counts are kept multiplied by 2^(age / half-life); float64 ends at 2^1023.
_LARGEST_EXPONENT = 512.0


def previous_items(windows: Windows) -> NDArray[np.int32]:
    """What `Counters.update` wants from windows that end at events: [N, T - 1], newest first."""
    _, num_columns = windows.items_BT.shape
    columns_BP = windows.lengths_B[:, None] - 2 - np.arange(num_columns - 1)
    previous_BP = np.take_along_axis(windows.items_BT, np.maximum(columns_BP, 0), axis=1)
    return np.where(columns_BP >= 0, previous_BP, PAD).astype(np.int32)


class Counters:
    """Decayed popularity at several half-lives, and rules "after this item comes that one".

    An update costs microseconds and takes effect at once, so a click changes every ranking long
    before any weight does. The counts depend on the events and their order alone, never on how they
    were split into calls (rules up to float32 rounding). Not safe for concurrent writers.
    """

    def __init__(
        self, half_lives: Sequence[float] = DEFAULT_HALF_LIVES, num_items: int = 0
    ) -> None:
        """Start with nothing counted.

        Args:
            half_lives: In events, each above zero; row m of `popularity` decays with the m-th.
            num_items: Items known so far; updates grow it on demand.

        Raises:
            ValueError: If a half-life is not positive, or there is none.
        """
        if not half_lives or min(half_lives) <= 0.0:
            raise ValueError(f"half-lives must be positive, got {tuple(half_lives)}")
        self.half_lives = tuple(float(half_life) for half_life in half_lives)
        self.num_items = 0
        self.num_events = 0
        self._half_lives_M1 = np.array(self.half_lives)[:, None]
        self._events_per_rescale = max(1, int(_LARGEST_EXPONENT * min(self.half_lives)))
        self._scaled_since = 0
        self._scaled_MV = np.zeros((len(self.half_lives), 0))
        self._events_V = np.zeros(0, np.int64)
        self._rules = RuleTable()
        self.grow(num_items)

    def grow(self, num_items: int) -> None:
        """Make room for catalogue rows below `num_items`; never shrinks."""
        if num_items <= self.num_items:
            return
        room = self._events_V.size
        if num_items > room:
            more = max(num_items, room + room // 2) - room
            self._scaled_MV = np.pad(self._scaled_MV, ((0, 0), (0, more)))
            self._events_V = np.pad(self._events_V, (0, more))
            self._rules.grow(room + more)
        self.num_items = num_items

    def update(self, rows_N: NDArray[np.int32], previous_NP: NDArray[np.int32]) -> None:
        """Count events, in order.

        Args:
            rows_N: Catalogue row of each event's item.
            previous_NP: Items its user had before, newest first, padded with -1. P may be 0.
                `previous_items` makes it from windows.

        Raises:
            ValueError: If a row is negative or the two disagree in length.
        """
        if len(rows_N) != len(previous_NP):
            raise ValueError(f"{len(rows_N)} events but previous items of {len(previous_NP)}")
        if len(rows_N) == 0:
            return
        if rows_N.min() < 0:
            raise ValueError(f"catalogue rows start at 0, got {rows_N.min()}")
        self.grow(1 + max(int(rows_N.max()), int(previous_NP.max(initial=PAD))))
        self._count_popularity(rows_N)
        np.add.at(self._events_V, rows_N, 1)
        event_K, rank_K = np.nonzero(previous_NP >= 0)
        self._rules.add(
            previous_NP[event_K, rank_K], rows_N[event_K], (1.0 / (1 + rank_K)).astype(np.float32)
        )

    def popularity(self) -> NDArray[np.float32]:
        """Decayed counts as of the last event, [M, V]; an event just counted weighs 1."""
        age = self.num_events - self._scaled_since
        scale_M1 = np.exp2(-age / self._half_lives_M1)
        return (self._scaled_MV[:, : self.num_items] * scale_M1).astype(np.float32)

    def touched(self) -> NDArray[np.bool_]:
        """Which items ever had an event, [V]."""
        return self._events_V[: self.num_items] > 0

    def rule_scores(self, history_rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """How much the user's last 20 items speak for each item, [V].

        With x_a the item a places before the last, C the summed 1 / distance and n the events of
        an item: sum over a of 0.9^a * C[x_a, j] / ((n[x_a] + 1)^0.3 * (n[j] + 5)^0.3).

        Args:
            history_rows: Oldest first; rows that the counters do not know yet say nothing.
        """
        sources_S, factors_S = self._rule_factors(history_rows[-RULE_SOURCES:])
        known_S = factors_S > 0
        return self._rule_sum(sources_S[known_S][::-1], factors_S[known_S][::-1])

    def rule_contributions(
        self, history_rows: NDArray[np.int32], targets_K: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """What each of the user's last 20 items adds to the `rule_scores` of some items.

        Returns:
            [S, K], sources oldest first as in `history_rows`; sums over S to the scores.
        """
        sources_S, factors_S = self._rule_factors(history_rows[-RULE_SOURCES:])
        contributions_SK = np.zeros((len(sources_S), len(targets_K)), np.float32)
        for place in np.flatnonzero(factors_S).tolist():
            one = slice(place, place + 1)
            contributions_SK[place] = self._rule_sum(sources_S[one], factors_S[one])[targets_K]
        return contributions_SK

    def _rule_factors(
        self, sources_S: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Sources, oldest first, and how much each counts; 0 for a row that is not known yet."""
        known_S = (sources_S >= 0) & (sources_S < self.num_items)
        sources_S = np.where(known_S, sources_S, 0)
        fade_S = np.power(_RULE_FADE, np.arange(len(sources_S)))[::-1]
        num_events_S = self._events_V[sources_S] if known_S.any() else np.zeros(len(sources_S))
        return sources_S, known_S * fade_S / np.power(num_events_S + 1.0, _RULE_DAMPING)

    def _rule_sum(
        self, sources_S: NDArray[np.int32], factors_S: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        scores_V = self._rules.weighted_sum(sources_S, factors_S, self.num_items)
        scores_V /= np.power(self._events_V[: self.num_items] + 5.0, _RULE_DAMPING)
        return scores_V.astype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._scaled_MV.nbytes + self._events_V.nbytes + self._rules.nbytes

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of everything, for `from_state`; goes on to the last bit as this one would."""
        return {
            "half_lives": np.array(self.half_lives),
            **self.popularity_state(),
            "events": self._events_V[: self.num_items].copy(),
            **put_under("rules.", self._rules.state(self.num_items)),
        }

    def popularity_state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of the part that depends on the order of the events, for `take_popularity`."""
        return {
            "num_events": np.array([self.num_events, self._scaled_since]),
            "scaled": self._scaled_MV[:, : self.num_items].copy(),
        }

    def take_popularity(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Have counted the same events in the order in which `popularity_state` had.

        Nothing changes if they cannot be the same, or if `state` is empty.
        """
        if not state or int(state["num_events"][0]) != self.num_events:
            return
        if state["scaled"].shape != (len(self.half_lives), self.num_items):
            return
        self._scaled_since = int(state["num_events"][1])
        self._scaled_MV[:, : self.num_items] = state["scaled"]

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> Counters:
        """Counters that continue where `state` was taken."""
        counters = cls([float(half_life) for half_life in state["half_lives"]])
        counters.num_events, counters._scaled_since = (int(n) for n in state["num_events"])
        counters._scaled_MV = np.array(state["scaled"], np.float64)
        counters._events_V = np.array(state["events"], np.int64)
        counters.num_items = len(counters._events_V)
        counters._rules = RuleTable.from_state(under("rules.", state))
        return counters

    def _count_popularity(self, rows_N: NDArray[np.int32]) -> None:
        while len(rows_N):
            age = self.num_events - self._scaled_since
            if age == self._events_per_rescale:
                self._scaled_MV *= np.exp2(-age / self._half_lives_M1)
                self._scaled_since, age = self.num_events, 0
            now_N, rows_N = np.split(rows_N, [self._events_per_rescale - age])
            ages_N = age + 1 + np.arange(len(now_N))
            for counts_V, half_life in zip(self._scaled_MV, self.half_lives, strict=True):
                np.add.at(counts_V, now_N, np.exp2(ages_N / half_life))
            self.num_events += len(now_N)
