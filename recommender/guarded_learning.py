"""A learner under guard in one process: what offline evaluation and tests run.

The training loop keeps versions in a store and does the same with them (`actors.lineage`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.drift import Pace
from recommender.fresh_scoring import LEARNING, Ranking, ScoredEvents
from recommender.guard import Guard
from recommender.hold_out import LeaveOut, Quarantine
from recommender.metrics import ndcg_at_k
from recommender.probes import MemoryProbes
from recommender.promotion import Decision, Verdict
from recommender.replay import ReplayMemory
from recommender.scorer import Scorer
from recommender.settings import GuardSettings, ModelSettings
from recommender.training import Learner
from recommender.windows import FreshEvents, select

TRUSTED = "trusted"
"""Name under which the version to go back to is ranked beside the served one."""


@dataclass(frozen=True)
class Version:
    """One version that was promoted.

    Attributes:
        scorer: Serves it.
        served: Its arrays, as `Scorer.from_state` takes them.
        trainer: What a learner goes on from.
        through: Last offset that was learned.
    """

    scorer: Scorer
    served: Mapping[str, NDArray[Any]]
    trainer: Mapping[str, NDArray[Any]]
    through: int


class GuardedLearning:
    """Publishes what a learner learned, or takes it back, as the guard decides.

    Attributes:
        guard: Decides.
        decisions: All that were not to promote or to keep, in order.
    """

    def __init__(
        self,
        learner: Learner,
        guard: GuardSettings,
        model: ModelSettings,
        replay: ReplayMemory,
        *,
        seed: int = 0,
    ) -> None:
        """Guard a learner; its first version is what it knows at the first `publish`.

        Args:
            learner: Trained by the caller.
            guard: How it is guarded.
            model: Shape of its model.
            replay: What it learned, to compare on if no one is held out.
            seed: Of the choice of probes.
        """
        self.guard = Guard(guard, seed=seed)
        self.decisions: list[Decision] = []
        self._settings = guard
        self._model = model
        self._learner = learner
        self._quarantine = Quarantine()
        rng = np.random.default_rng((seed, 1))  # not that of the probes
        self._memory = MemoryProbes(
            lambda n: replay.sample(n, "uniform", 1.0, rng, self.leave_out())
        )
        self._number = 0
        self._through = -1
        self._versions: dict[int, Version] = {}

    @property
    def scorer(self) -> Scorer | None:
        """The version that is served, None before the first."""
        return self._versions[self._number].scorer if self._number else None

    def leave_out(self) -> LeaveOut:
        """What no lesson may end at."""
        return LeaveOut(self._settings.hold_out_every, self._quarantine.of(0))

    def pace(self) -> Pace:
        """How hard to learn now."""
        return self.guard.urgency.pace(self._learner.settings)

    def rankings(self, popularity: Callable[[], NDArray[np.float32]]) -> dict[str, Ranking]:
        """The trusted version's, to be scored beside the served one; none if they are the same."""
        trusted = self.guard.trusted
        if trusted is None or trusted == self._number:
            return {}
        scorer = self._versions[trusted].scorer
        return {TRUSTED: lambda request: scorer.net_scores(request.window, popularity())[0]}

    def remember(self, fresh: FreshEvents) -> None:
        """Fresh events will be learned; those of measured users become probes."""
        if not len(fresh):
            return
        self._through = int(fresh.offsets_N[-1])
        self.guard.meet(fresh.users_N)
        held_out_N = self.leave_out().held_out(fresh.users_N)
        self.guard.probes.add(
            len(fresh), select(fresh.windows, held_out_N), fresh.users_N[held_out_N]
        )

    def observe(self, fresh: FreshEvents, scored: ScoredEvents) -> Decision:
        """Watch fresh events that were scored before they are learned; roll back if need be."""
        self.remember(fresh)
        self.guard.urgency.passed(len(fresh))
        ndcg = {name: ndcg_at_k(ranks_K, 10) for name, ranks_K in scored.ranks.items()}
        decision = self.guard.observe(
            fresh.users_N[scored.indices_K], ndcg.get(LEARNING, np.empty(0)), ndcg.get(TRUSTED)
        )
        if decision.verdict is not Verdict.KEEP:
            self.decisions.append(decision)
        if decision.verdict is Verdict.ROLL_BACK and self.guard.trusted is not None:
            self._number = self.guard.trusted
            self._go_back_to_head()
            self.guard.begin(self._number)
        return decision

    def publish(self, popularity_MV: NDArray[np.float32]) -> Decision:
        """Serve what the learner knows, or take it back."""
        served = self._learner.ema_state()
        scorer = Scorer.from_state(served, self._model)
        head = self._versions.get(self._number)
        decision = self.guard.judge(
            served,
            None if head is None else head.served,
            scorer,
            None if head is None else head.scorer,
            popularity_MV,
            self._memory,
        )
        if decision.verdict is Verdict.REJECT:
            self.decisions.append(decision)
            self._go_back_to_head()
            return decision
        self._number = max(self._versions, default=0) + 1
        self._versions[self._number] = Version(scorer, served, self._learner.state(), self._through)
        self.guard.promoted(self._number)
        self.guard.probes.close_period(scorer, popularity_MV)
        kept = {self._number, self.guard.trusted, self.guard.candidate}
        self._versions = {n: version for n, version in self._versions.items() if n in kept}
        return decision

    def probe_changes(self) -> dict[int, float]:
        """By period, how far NDCG@10 of the head on its probes is above its level of then."""
        if self.scorer is None:
            return {}
        return self.guard.probes.changes(self.guard.probes.measure(self.scorer))

    def _go_back_to_head(self) -> None:
        """The learner stands on the head again; what was learned since is not learned again."""
        head = self._versions[self._number]
        self._learner.load_state(head.trainer)
        self._quarantine.add(0, head.through + 1, self._through)
