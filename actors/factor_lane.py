"""The factor learner as the training loop drives it; without one, every call changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from recommender.counters import Counters
from recommender.fresh_scoring import LiveState
from recommender.implicit_factors import FactorLearner, require_solver
from recommender.settings import FactorSettings
from recommender.windows import FreshEvents


class FactorLane:
    """iALS's part of the training loop, on the first worker only.

    Users are those of (shard, code). A shard gives codes in the order of its log, which holds all
    that it ever acknowledged, so a user's code is the same after a restart of the shard, and
    nothing has to be dropped or counted again then.

    A restart of the training job takes the factors from the head and who had what from the logs. A
    rollback takes nothing back here: replicas serve the factors of the head they go back to, and
    the learner goes on with its own, which the next version publishes again. As with the counters,
    events in quarantine are counted.
    """

    def __init__(self, learner: FactorLearner | None, num_shards: int) -> None:
        self._learner = learner
        self._num_shards = num_shards

    @classmethod
    def of(cls, settings: FactorSettings, num_shards: int, seed: int = 0) -> FactorLane:
        """The lane of a job.

        Raises:
            SolverMissing: If it is switched on and `implicit` is not installed.
        """
        require_solver(settings)
        learner = FactorLearner(0, settings, seed) if settings.enabled else None
        return cls(learner, num_shards)

    def live(self, counters: Counters) -> LiveState:
        """What `score_fresh` scores with, and lets learn the events of `known_users`."""
        return LiveState(counters, factors=self._learner)

    def known_users(self, shard: int, events: FreshEvents) -> FreshEvents:
        """A shard's events with a user code that no other shard has."""
        if self._learner is None:
            return events
        return dataclasses.replace(events, users_N=events.users_N * self._num_shards + shard)

    def collect(self, shard: int, events: FreshEvents) -> None:
        """Count events that nobody scores: before the first version, and after a rewind."""
        if self._learner is not None:
            self._learner.collect(self.known_users(shard, events).users_N, events.items_N)

    def rewind(self) -> None:
        """The logs are read from their start again."""
        if self._learner is not None:
            self._learner.forget_events()

    def begin(self, published: Mapping[str, NDArray[Any]]) -> None:
        """Go on from the factors of a head, before its logs are read; it may have none."""
        if self._learner is not None and published:
            self._learner.load_state(published)

    def catch_up(self) -> None:
        """The logs are read: fit if there is nothing to go on from."""
        if self._learner is not None:
            self._learner.catch_up()

    def state(self) -> dict[str, NDArray[Any]]:
        """What belongs into the payload of a version."""
        return {} if self._learner is None else self._learner.state()
