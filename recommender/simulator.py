"""A stream of events whose truth is known, for demonstrations and tests without shipped data.

Legend: N events, U users, V items, K topics.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recommender.datasets import Dataset
from recommender.events import feedback_codes
from recommender.simulator_world import GroundTruth, SimulatorSettings, user_id

__all__ = ["GroundTruth", "SimulatorSettings", "simulate"]


def simulate(settings: SimulatorSettings) -> Dataset:
    """Play the world of `GroundTruth(settings)` and record its events.

    Nobody has two events on one item. Fewer than `num_events` come out only if all users have
    seen everything.
    """
    stream = _Stream(GroundTruth(settings))
    users_N, rows_N = stream.play()
    rng = np.random.default_rng([settings.seed, 3])
    gaps_s_N = rng.exponential(settings.mean_gap_s, len(users_N))
    timestamps_ms_N = settings.start_ms + np.cumsum(np.ceil(gaps_s_N * 1000)).astype(np.int64)
    event_types_N = np.where(rng.random(len(users_N)) < 0.3, "like", "click")
    values_N = np.ones(len(users_N), dtype=np.float32)
    codes_N, users = pd.factorize(users_N)
    return Dataset(
        name=f"simulated-{settings.seed}",
        items=stream.truth.items,
        user_ids=tuple(user_id(user) for user in users.tolist()),
        users_N=codes_N.astype(np.int32),
        rows_N=rows_N,
        feedback_N=feedback_codes(event_types_N, values_N),
        values_N=values_N,
        event_types_N=event_types_N,
        timestamps_ms_N=timestamps_ms_N,
    )


class _Stream:
    """The state of a world while it is played: open sessions and what each user has seen."""

    def __init__(self, truth: GroundTruth) -> None:
        settings = truth.settings
        self.truth = truth
        self._settings = settings
        self._rng = np.random.default_rng([settings.seed, 2])
        self._rows_K = [np.flatnonzero(truth.topics_V == k) for k in range(settings.num_topics)]
        self._activity_U = self._rng.lognormal(0.0, 0.7, settings.num_users).cumsum()
        self._seen_UV: dict[int, NDArray[np.bool_]] = {}
        self._previous_U: dict[int, int] = {}
        self._num_greeted = 0
        self._sessions: list[tuple[int, int]] = []  # user, events left

    def play(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        users: list[int] = []
        rows: list[int] = []
        exhausted = 0
        while len(users) < self._settings.num_events and exhausted < 100:
            user = self._next_user(at_event=len(users))
            row = self._next_row(user, at_event=len(users))
            if row is None:
                exhausted += 1
                continue
            exhausted = 0
            self._seen_UV[user][row] = True
            self._previous_U[user] = row
            users.append(user)
            rows.append(row)
        return np.array(users), np.array(rows, dtype=np.int32)

    def _next_user(self, at_event: int) -> int:
        while len(self._sessions) < self._settings.num_concurrent:
            length = int(self._rng.geometric(1.0 / self._settings.session_length))
            self._sessions.append((self._visitor(at_event), length))
        slot = int(self._rng.integers(len(self._sessions)))
        user, left = self._sessions[slot]
        self._sessions[slot] = (user, left - 1)
        if left <= 1:
            self._sessions.pop(slot)
        return user

    def _visitor(self, at_event: int) -> int:
        """A user who has just arrived, else one who is there, by activity."""
        num_there = int(np.searchsorted(self.truth.user_arrivals_U, at_event, side="right"))
        if self._num_greeted < num_there:
            self._num_greeted += 1
            user = self._num_greeted - 1
            self._seen_UV[user] = np.zeros(self._settings.num_items, dtype=np.bool_)
            return user
        return _draw(self._activity_U[:num_there], self._rng)

    def _next_row(self, user: int, at_event: int) -> int | None:
        seen_V = self._seen_UV[user]
        previous = self._previous_U.get(user)
        if previous is not None:
            next_part = int(self.truth.next_part_V[previous])
            takes_it = self._rng.random() < self._settings.series_probability
            if next_part >= 0 and not seen_V[next_part] and takes_it:
                return next_part
        regime = self.truth.regime(at_event)
        num_there = int(np.searchsorted(self.truth.item_arrivals_V, at_event, side="right"))
        tastes_K = regime.tastes_UK[user].copy()
        while tastes_K.any():
            topic = _draw(tastes_K.cumsum(), self._rng)
            rows = self._rows_K[topic]
            rows = rows[: np.searchsorted(rows, num_there)]
            weights_V = np.where(seen_V[rows], 0.0, regime.popularity_V[rows])
            if weights_V.any():
                return int(rows[_draw(weights_V.cumsum(), self._rng)])
            tastes_K[topic] = 0.0
        return None


def _draw(cumulative: NDArray[np.float64], rng: np.random.Generator) -> int:
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
