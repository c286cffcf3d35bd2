"""The guard of the learning loop: which candidate is served, when the head goes, how fast to learn.

The same object decides live and in offline evaluation. Three kinds of evidence:

- before promotion, held-out probes of every period and of the newest events, or if no one is held
  out, replayed events (`promotion.judge`);
- after it, the progressive NDCG@10 of the served net, watched by Page-Hinkley;
- beside it the trusted version, on the very same events. If that would have been better, what was
  learned since did the harm: roll back. If the metric falls and it would not, the world has
  changed: learn faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.drift import PageHinkley, Urgency
from recommender.probes import MemoryProbes, ProbeBook, probe_ndcg
from recommender.promotion import (
    MEMORY,
    NEWEST,
    Compared,
    Decision,
    Difference,
    Verdict,
    find_fault,
    judge,
)
from recommender.scorer import Scorer
from recommender.settings import GuardSettings
from recommender.votes import votes

_MAX_COMPARED = 5_000
_MIN_COMPARED = 100
_VOTES = 10  # scored events of one user in one round
_CALM = 0.5  # urgency below which a version may become trusted: one half-life after an alarm


class Guard:
    """Decides; never acts. Versions are numbers to it, and `trusted` is the one to go back to.

    A version is trusted once `trust_events` events were scored after it was promoted without an
    alarm, so the one before the last such is always older than a fall that is just being noticed.
    A restart loses the watch; the probes' slices are saved with every version.
    """

    def __init__(self, settings: GuardSettings, *, seed: int = 0) -> None:
        self.settings = settings
        self.probes = ProbeBook(
            period_events=settings.period_events,
            probes_per_period=settings.probes_per_period,
            seed=seed,
        )
        self.urgency = Urgency(
            half_life=settings.urgent_half_life,
            max_rate_factor=settings.urgent_rate_factor,
            max_fresh_share=settings.urgent_fresh_share,
            min_replay_half_life=settings.urgent_replay_half_life,
        )
        self.trusted: int | None = None
        self.candidate: int | None = None  # for trust
        self._num_scored = 0
        self._watch = PageHinkley(
            settings.fall_threshold, settings.fall_tolerance, settings.trust_events
        )
        self._compared: deque[tuple[float, float]] = deque(maxlen=_MAX_COMPARED)
        self._head_measured: dict[int, NDArray[np.float64]] = {}

    def begin(self, version: int) -> None:
        """Learning starts, or goes on, at a version: it is the one to go back to."""
        self.trusted, self.candidate = version, None
        self._num_scored = 0
        self._watch.reset()
        self._compared.clear()
        self.urgency.level = 0.0
        self._head_measured = {}

    def promoted(self, version: int) -> None:
        """A version became head; perhaps an older one is trusted from now on."""
        if self.trusted is None:
            self.begin(version)
        elif self.candidate is None:
            self.candidate, self._num_scored = version, 0
        elif self._num_scored >= self.settings.trust_events and self.urgency.level < _CALM:
            self.trusted, self.candidate, self._num_scored = self.candidate, version, 0
            self._compared.clear()  # they were compared with another version

    def observe(
        self,
        users_K: NDArray[np.integer],
        served_K: NDArray[np.float64],
        trusted_K: NDArray[np.float64] | None,
    ) -> Decision:
        """Watch a round's scored events, of which a few of each user count.

        Args:
            users_K: Whose they are.
            served_K: NDCG@10 of the net as it was served.
            trusted_K: That of the trusted version; None if it is the head, so that there is nothing
                to go back to.

        Returns:
            KEEP, ROLL_BACK (to `trusted`) or ADAPT.
        """
        counted = votes(users_K, _VOTES)
        served_K = served_K[counted]
        trusted_K = served_K if trusted_K is None else trusted_K[counted]
        has_fallen = False
        for served, trusted in zip(served_K.tolist(), trusted_K.tolist(), strict=True):
            self._num_scored += 1
            self._compared.append((served, trusted))
            has_fallen = self._watch.observe(served) or has_fallen
        decision = self._compare(has_fallen)
        if decision.verdict is not Verdict.KEEP:
            self._watch.reset()
        if decision.verdict is Verdict.ADAPT:
            self.urgency.alarm()
        return decision

    def judge(
        self,
        state: Mapping[str, NDArray[Any]],
        head_state: Mapping[str, NDArray[Any]] | None,
        scorer: Scorer,
        head: Scorer | None,
        popularity_MV: NDArray[np.float32],
        memory: MemoryProbes,
    ) -> Decision:
        """Whether a candidate may be served in the place of the head.

        Args:
            state: The candidate's arrays, as `Scorer.from_state` takes them.
            head_state: The head's, None if they are not at hand.
            scorer: The candidate.
            head: The served version over the same catalogue, None before the first.
            popularity_MV: Decayed counts as of now.
            memory: What to compare on while there are no held-out events.
        """
        if (fault := find_fault(state, head_state)) is not None:
            return Decision(Verdict.REJECT, fault)
        measured = self.probes.measure(scorer)
        slices: dict[str, Compared] = {}
        if head is not None:
            missing = self.probes.slices.keys() - self._head_measured.keys()
            self._head_measured |= self.probes.measure(head, missing) if missing else {}
            slices = {str(p): (ndcg_B, self._head_measured[p]) for p, ndcg_B in measured.items()}
            if (newest := self.probes.newest) is not None:
                slices[NEWEST] = (
                    probe_ndcg(scorer, newest, popularity_MV),
                    probe_ndcg(head, newest, popularity_MV),
                )
            if not slices and (replayed := memory.next()) is not None:
                slices[MEMORY] = (
                    probe_ndcg(scorer, replayed, popularity_MV),
                    probe_ndcg(head, replayed, popularity_MV),
                )
        settings = self.settings
        decision = judge(slices, margin=settings.margin, num_errors=settings.num_errors)
        if decision.verdict is Verdict.PROMOTE:
            self._head_measured = measured
        metrics = {**self.probes.metrics(measured), **decision.metrics}
        return Decision(decision.verdict, decision.reason, metrics)

    def _compare(self, has_fallen: bool) -> Decision:
        """Compare with the trusted version: on the events of a fall, else on all since it stood.

        The second finds harm that came while something else hid it, a burst that is well predicted
        by what it spoilt; it asks for one standard error more, because it asks after every round.
        """
        compared = np.array(self._compared).reshape(-1, 2)
        num_errors = self.settings.num_errors + 1
        if has_fallen:
            compared = compared[-max(self._watch.num_since_lowest, _MIN_COMPARED) :]
            num_errors = self.settings.num_errors
        if len(compared) < _MIN_COMPARED:
            return Decision(Verdict.KEEP, "too few events to compare on")
        difference = Difference.of(compared[:, 0], compared[:, 1])
        metrics = {
            "fall_events": float(len(compared)),
            "fall_mean_before": self._watch.mean,
            "fall_ndcg_at_10": difference.candidate,
            "fall_ndcg_at_10_trusted": difference.head,
        }
        what = f"progressive NDCG@10 over {len(compared)} events is {difference.candidate:.4f}"
        if difference.is_loss(self.settings.margin, num_errors):
            reason = f"{what}; the trusted version {self.trusted} has {difference.head:.4f}"
            return Decision(Verdict.ROLL_BACK, reason, metrics)
        if not has_fallen:
            return Decision(Verdict.KEEP, "no fall", metrics)
        reason = (
            f"{what}, a fall from {self._watch.mean:.4f}; the trusted version {self.trusted} "
            f"has {difference.head:.4f}: the world has changed"
        )
        return Decision(Verdict.ADAPT, reason, metrics)
