"""The guard of the learning loop: which candidate is served, when the head goes, how fast to learn.

The same object decides live and in offline evaluation. Three kinds of evidence:

- before promotion, held-out probes of every period and of the newest events, or if no one is held
  out, replayed events (`promotion.judge`);
- after it, the progressive NDCG@10 of the served net, watched by Page-Hinkley;
- beside it the trusted version, on the very same events. If that would have been better, what was
  learned since did the harm: roll back. If the metric falls and it would not, the world has
  changed: learn faster.

Who came after the trusted version was made is one of many newcomers, or a bot among many, and what
was learned from bots foresees bots. So users who were there before are judged apart as well: harm
to them is harm, and a fall that they do not share is no change of the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.drift import PageHinkley, Urgency
from recommender.named_arrays import put_under, under
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
_NUM_KNOWN = 50  # events of known users that tell whether they share a fall
_MAX_AFTER = 300  # events after the alarm by which there must be so many
_VOTES = 10  # scored events of one user in one round
_DOUBT = 1.0  # standard errors by which the trusted version must seem better to stay trusted
_CALM = 0.5  # urgency below which a version may become trusted: one half-life after an alarm
_MEASURED = "measured."


class Guard:
    """Decides; never acts. Versions are numbers to it, and `trusted` is the one to go back to.

    A version is trusted once `trust_events` events were scored after it was promoted without a
    fall, and without a doubt that the one trusted so far would have been better. So the one before
    the last such is always older than a fall that is just being noticed.
    A restart loses nothing of what was saved with `state`; the probes have a state of their own.
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
        self._compared: deque[tuple[float, float, bool]] = deque(maxlen=_MAX_COMPARED)
        self._watched: deque[tuple[float, bool]] = deque(maxlen=_MAX_COMPARED)
        self._before_fall: list[tuple[float, bool]] | None = None  # once there is one to explain
        self._num_users = 0
        self._num_users_at: dict[int, int] = {}  # by version that is, or may become, trusted
        self._head_measured: dict[int, NDArray[np.float64]] = {}

    def begin(self, version: int) -> None:
        """Learning starts, or goes on, at a version: it is the one to go back to."""
        self.trusted, self.candidate = version, None
        # Going back to a version, those who came after it are no better known than before.
        self._num_users_at = {version: self._num_users_at.get(version, self._num_users)}
        self._num_scored = 0
        self._forget_watch()
        self._compared.clear()
        self.urgency.level = 0.0
        self._head_measured = {}

    def promoted(self, version: int) -> None:
        """A version became head; perhaps an older one is trusted from now on."""
        if self.trusted is None:
            self.begin(version)
        elif self.candidate is None:
            self._try(version)
        elif (
            self._num_scored >= self.settings.trust_events
            and self.urgency.level < _CALM
            and not self._is_doubtful()
        ):
            self.trusted = self.candidate
            self._try(version)
            self._compared.clear()  # they were compared with another version

    def meet(self, users_N: NDArray[np.integer]) -> None:
        """Users who are there, numbered in the order of first sight."""
        self._num_users = max(self._num_users, int(users_N.max(initial=-1)) + 1)

    def observe(
        self,
        users_K: NDArray[np.integer],
        served_K: NDArray[np.float64],
        trusted_K: NDArray[np.float64] | None,
    ) -> Decision:
        """Watch a round's scored events, of which a few of each user count.

        Args:
            users_K: Whose they are, numbered in the order of first sight.
            served_K: NDCG@10 of the net as it was served.
            trusted_K: That of the trusted version; None if it is the head, so that there is nothing
                to go back to.

        Returns:
            KEEP, ROLL_BACK (to `trusted`) or ADAPT.
        """
        counted = votes(users_K, _VOTES)
        served_K = served_K[counted]
        trusted_K = served_K if trusted_K is None else trusted_K[counted]
        known_K = users_K[counted] < self._num_users_at.get(self.trusted or 0, 0)
        self.meet(users_K)
        has_fallen = False
        for served, trusted, is_known in zip(
            served_K.tolist(), trusted_K.tolist(), known_K.tolist(), strict=True
        ):
            self._num_scored += 1
            self._compared.append((served, trusted, is_known))
            self._watched.append((served, is_known))
            has_fallen = self._watch.observe(served) or has_fallen
        decision = self._compare(has_fallen or self._before_fall is not None)
        if decision.verdict is not Verdict.KEEP:
            self._forget_watch()
        if decision.verdict is Verdict.ADAPT:
            self.urgency.alarm()
        return decision

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything but the probes as arrays, for `load_state`."""
        state = {
            "versions": np.array([self.trusted or 0, self.candidate or 0]),
            "counts": np.array([self._num_scored, self._num_users]),
            "users_at": np.array(list(self._num_users_at.items()), np.int64).reshape(-1, 2),
            "urgency": np.array(self.urgency.level),
            "watch": self._watch.state(),
            "compared": np.array(self._compared, np.float64).reshape(-1, 3),
            "watched": np.array(self._watched, np.float64).reshape(-1, 2),
        }
        if self._before_fall is not None:
            state["before_fall"] = np.array(self._before_fall, np.float64).reshape(-1, 2)
        measured = {str(period): ndcg_B for period, ndcg_B in self._head_measured.items()}
        return state | put_under(_MEASURED, measured)

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on as the guard whose `state` this is, over probes that do too."""
        self.trusted, self.candidate = (int(n) or None for n in state["versions"])
        self._num_scored, self._num_users = (int(n) for n in state["counts"])
        self._num_users_at = {int(version): int(n) for version, n in state["users_at"]}
        self.urgency.level = float(state["urgency"])
        self._watch.load_state(state["watch"])
        self._compared.clear()
        self._compared.extend((a, b, bool(c)) for a, b, c in state["compared"].tolist())
        self._watched.clear()
        self._watched.extend(_scores_of(state["watched"]))
        before = state.get("before_fall")
        self._before_fall = None if before is None else _scores_of(before)
        measured = under(_MEASURED, state)
        self._head_measured = {int(p): ndcg_B for p, ndcg_B in measured.items()}

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

    def _try(self, version: int) -> None:
        """A version that will be trusted if nothing happens."""
        self.candidate, self._num_scored = version, 0
        kept = (self.trusted, version)
        self._num_users_at[version] = self._num_users
        self._num_users_at = {v: n for v, n in self._num_users_at.items() if v in kept}

    def _is_doubtful(self) -> bool:
        """Whether what was served since seems worse than the trusted version; chance may do it.

        A slow poison would pass into what is trusted bit by bit. As long as there is a doubt the
        comparison goes on, and gets sharper.
        """
        compared = np.array(self._compared, np.float64).reshape(-1, 3)
        return any(
            len(part) >= _NUM_KNOWN and Difference.of(part[:, 0], part[:, 1]).is_loss(0.0, _DOUBT)
            for part in (compared, compared[compared[:, 2] > 0])
        )

    def _forget_watch(self) -> None:
        self._watch.reset()
        self._watched.clear()
        self._before_fall = None

    def _compare(self, has_fallen: bool) -> Decision:
        """Compare with the trusted version: on the events of a fall, else on all since it stood.

        The second finds harm that came while something else hid it, a burst that is well predicted
        by what it spoilt; it asks for one standard error more, because it asks after every round.
        """
        compared = np.array(self._compared, np.float64).reshape(-1, 3)
        num_errors = self.settings.num_errors + 1
        if has_fallen:
            compared = compared[-max(self._watch.num_since_lowest, _MIN_COMPARED) :]
            num_errors = self.settings.num_errors
        if len(compared) < _MIN_COMPARED:
            return Decision(Verdict.KEEP, "too few events to compare on")
        metrics = {"fall_events": float(len(compared)), "fall_mean_before": self._watch.mean}
        what = ""
        for who, suffix, part in (
            ("", "", compared),
            (" of users it knew", "_known", compared[compared[:, 2] > 0]),
        ):
            if len(part) < _MIN_COMPARED:
                continue
            difference = Difference.of(part[:, 0], part[:, 1])
            metrics[f"fall_ndcg_at_10{suffix}"] = difference.candidate
            metrics[f"fall_ndcg_at_10{suffix}_trusted"] = difference.head
            reason = (
                f"progressive NDCG@10 over {len(part)} events{who} is {difference.candidate:.4f}; "
                f"the trusted version {self.trusted} has {difference.head:.4f}"
            )
            if difference.is_loss(self.settings.margin, num_errors):
                return Decision(Verdict.ROLL_BACK, reason, metrics)
            what = what or reason
        if not has_fallen:
            return Decision(Verdict.KEEP, "no fall", metrics)
        match self._known_share_the_fall():
            case None:
                self._num_scored = 0
                return Decision(Verdict.KEEP, "too few events yet to explain a fall")
            case False:
                reason = f"a fall from {self._watch.mean:.4f} that only newcomers have: {what}"
                self._forget_watch()
                self._num_scored = 0  # nothing that was learned from them is trusted soon
                return Decision(Verdict.KEEP, reason, metrics)
        reason = f"a fall from {self._watch.mean:.4f}: the world has changed; {what}"
        return Decision(Verdict.ADAPT, reason, metrics)

    def _known_share_the_fall(self) -> bool | None:
        """Whether users who were there before are foreseen worse too; None as long as few are seen.

        Events up to the alarm gave it, so they look worse than they are: later ones tell. Where
        hardly anybody comes back, all users decide.
        """
        if self._before_fall is None:
            watched = list(self._watched)
            self._before_fall = watched[: len(watched) - self._watch.num_since_lowest]
            self._watched.clear()
        before, after = (
            np.array(events, np.float64).reshape(-1, 2)
            for events in (self._before_fall, self._watched)
        )
        known_before, known_after = before[before[:, 1] > 0, 0], after[after[:, 1] > 0, 0]
        if len(known_before) < _NUM_KNOWN:
            return True
        if len(known_after) < _NUM_KNOWN:
            return True if len(after) >= _MAX_AFTER else None
        fall = before[:, 0].mean() - after[:, 0].mean()
        return bool(known_before.mean() - known_after.mean() > fall / 2)


def _scores_of(array: NDArray[np.float64]) -> list[tuple[float, bool]]:
    return [(score, bool(is_known)) for score, is_known in array.tolist()]
