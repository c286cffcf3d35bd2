"""The versions that training stands on and can go back to, and the events it must not learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.messages import Head, VersionInfo, Watermark
from recommender.guard import Guard
from recommender.hold_out import LeaveOut, Quarantine
from recommender.probes import MemoryProbes
from recommender.promotion import Decision
from recommender.scorer import Scorer
from recommender.settings import GuardSettings, ModelSettings

State = Mapping[str, NDArray[Any]]


class Lineage:
    """Follows the head as the guard decides: promoted, rejected, rolled back.

    What a version learned that had to go, or was never served, is in quarantine: the watermark
    stays past it, and neither fresh lessons nor replay end there. So poison is not learned again
    after every rollback, at the price that the honest events beside it are not either. They stay
    in the counters and in the users' histories.

    Attributes:
        head: The head as it was last seen; 0 before the first.
        version: The head if training stands on it; 0 before the first and after a rejection.
        guard: Decides.
        quarantine: Spans of the shards' logs.
    """

    def __init__(
        self, settings: GuardSettings, model: ModelSettings, *, num_shards: int, seed: int = 0
    ) -> None:
        self.head = self.version = 0
        self.guard = Guard(settings, seed=seed)
        self.quarantine = Quarantine()
        self._settings = settings
        self._model = model
        self._num_shards = num_shards
        self._head_state: State | None = None
        self._scorers: dict[int, Scorer] = {}

    @property
    def scorer(self) -> Scorer | None:
        """The served version, None before the first."""
        return self._scorers.get(self.head)

    @property
    def trusted_scorer(self) -> Scorer | None:
        """The version to go back to, None if that is the head itself."""
        trusted = self.guard.trusted
        return None if trusted in (None, self.head) else self._scorers.get(trusted)

    @property
    def kept(self) -> set[int]:
        """Versions that the store must keep."""
        return {v for v in (self.guard.trusted, self.guard.candidate) if v is not None}

    def begin(
        self,
        head: Head,
        state: State,
        stored: Iterable[VersionInfo],
        taken: Sequence[int],
        *,
        is_known: bool = False,
    ) -> Watermark:
        """Training goes on at a head that it does not stand on.

        Args:
            head: The version that is served.
            state: Its arrays.
            stored: All versions. One that is newer than the head was rejected or rolled back.
            taken: Last offset of each shard that was handed out by this process.
            is_known: Whether the guard has watched this head, if only in a process before this.

        Returns:
            Where to go on: after all that was learned or tried.
        """
        manifest = head.manifest
        marks = [
            version.manifest.trained_through
            for version in stored
            if version.manifest.version > manifest.version
        ]
        marks += [manifest.trained_through, tuple(taken)]
        through = tuple(max(offsets) for offsets in zip(*marks, strict=True))
        self.quarantine = Quarantine([*manifest.quarantined, *self.quarantine.spans()])
        self.quarantine.add_between(manifest.trained_through, through)
        is_new_head = manifest.version != self.head
        self.version = self.head = manifest.version
        self._head_state = state
        if is_new_head:
            self._scorers = {self.head: Scorer.from_state(state, self._model)}
            if not is_known:
                self.guard.begin(self.head)
        return through

    def hold(self, version: int, state: State) -> None:
        """Have a version at hand that may be gone back to."""
        self._scorers[version] = Scorer.from_state(state, self._model)

    def grow(self, rows: NDArray[np.int64], text_VD: NDArray[np.float32]) -> None:
        """The catalogue has new rows, or new texts, that none of the versions knows."""
        self._scorers = {
            version: scorer.with_items(rows, text_VD) for version, scorer in self._scorers.items()
        }

    def judge(
        self,
        state: State,
        scorer: Scorer,
        popularity_MV: NDArray[np.float32],
        memory: MemoryProbes,
    ) -> Decision:
        """Whether a candidate may become head."""
        return self.guard.judge(state, self._head_state, scorer, self.scorer, popularity_MV, memory)

    def promoted(self, version: int, state: State, scorer: Scorer) -> None:
        """A candidate became head."""
        self.version = self.head = version
        self._head_state = state
        self.guard.promoted(version)
        self._scorers[version] = scorer
        self._scorers = {v: s for v, s in self._scorers.items() if v in self.kept | {version}}

    def rejected(self) -> None:
        """A candidate was not served: what the learner holds is not the head's any more."""
        self.version = 0

    def leave_out(self) -> list[LeaveOut]:
        """For each shard, what no lesson may end at."""
        return [
            LeaveOut(self._settings.hold_out_every, self.quarantine.of(shard))
            for shard in range(self._num_shards)
        ]
