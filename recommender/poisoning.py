"""Push attacks on a stream, and what they do to honest users with and without the filters.

Axes: N events, V items, K scored events, F fake users.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recommender.blend import Blend
from recommender.counters import Counters
from recommender.datasets import Dataset
from recommender.fresh_filters import Recent, keep, screen, without_repeats
from recommender.fresh_scoring import LiveState, requests
from recommender.metrics import ndcg_at_k
from recommender.model import Recommender
from recommender.progressive import EvaluationSettings
from recommender.ranking import (
    BLEND_HALF_LIFE,
    eligible_items,
    nearest_half_life,
    ranks_of,
    window_scores,
)
from recommender.replay import ReplayMemory
from recommender.rounds import round_batches
from recommender.scorer import Scorer
from recommender.settings import FilterSettings
from recommender.training import Learner
from recommender.windows import FreshEvents, Windows, newest_of

Kind = Literal["burst", "clones", "bandwagon"]
KINDS: tuple[Kind, ...] = ("burst", "clones", "bandwagon")

_SCORE_EVERY = 5
_ROUND_EVENTS = 500
_EXPOSED = 10


@dataclass(frozen=True)
class PushAttack:
    """Fake users who want one item recommended.

    Attributes:
        kind: `burst` takes the target again and again; `clones` all take the same popular items and
            the target among them; `bandwagon` each takes other popular items and the target once.
            Source of the names: Mobasher et al. 2007, doi:10.1145/1278366.1278372.
        target: Catalogue row.
        start: First event of the stream after which fakes act.
        stop: Event by which they are done.
        share: Fake users as a share of the honest ones.
        seed: Of everything they do.
    """

    kind: Kind
    target: int
    start: int
    stop: int
    share: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class PoisonedStream:
    """A stream and which of its events are fake."""

    dataset: Dataset
    is_fake_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Defence:
    """What is screened: what the net and the blend learn from, and the counters of the ranking."""

    filters: FilterSettings | None = None
    screens_counters: bool = False


@dataclass
class Outcome:
    """What honest users got.

    Attributes:
        ndcg_K: NDCG@10 of each scored event of an honest user.
        exposed_K: Whether the target was among the first 10 just before that event; NaN where the
            user had it already.
        left_out: Events kept from teaching, by reason.
        num_honest_left_out: How many of them were honest.
    """

    ndcg_K: list[float] = field(default_factory=list)
    exposed_K: list[float] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    num_honest_left_out: int = 0


def inject(dataset: Dataset, attack: PushAttack | None) -> PoisonedStream:
    """Put the attack's events between the honest ones, spread evenly; None changes nothing."""
    num_honest = len(dataset)
    if attack is None:
        return PoisonedStream(dataset, np.zeros(num_honest, np.bool_))
    rng = np.random.default_rng([attack.seed, 11])
    num_users = len(dataset.user_ids)
    num_fakes = max(1, round(attack.share * num_users))
    events_each = max(2, round(num_honest / num_users))
    rows = np.stack([_profile(dataset, attack, events_each, n, rng) for n in range(num_fakes)])
    places = np.sort(rng.uniform(attack.start, attack.stop, rows.shape), axis=1)
    return mingle(dataset, f"{dataset.name}-{attack.kind}", rows, places)


def mingle(
    dataset: Dataset,
    name: str,
    rows_FN: NDArray[np.integer],
    places_FN: NDArray[np.float64],
) -> PoisonedStream:
    """Put fake users' events between the honest ones.

    Args:
        dataset: The honest stream.
        name: Of the new one.
        rows_FN: Catalogue rows each fake user takes, in order; as many for each.
        places_FN: After how many honest events each comes; its time is that of the next one.
    """
    num_honest, num_users = len(dataset), len(dataset.user_ids)
    num_fakes, events_each = rows_FN.shape
    order_N = np.argsort(np.concatenate([np.arange(num_honest), places_FN.ravel()]), kind="stable")
    source_N = np.concatenate([np.arange(num_honest), places_FN.ravel().astype(np.int64)])[order_N]
    is_fake_N = order_N >= num_honest

    def merged(honest_N: NDArray[np.int32], fake: NDArray[np.integer]) -> NDArray[np.int32]:
        return np.concatenate([honest_N, fake.ravel().astype(np.int32)])[order_N]

    fakes = np.repeat(np.arange(num_users, num_users + num_fakes), events_each)
    poisoned = replace(
        dataset,
        name=name,
        user_ids=(*dataset.user_ids, *(f"fake-{n}" for n in range(num_fakes))),
        users_N=merged(dataset.users_N, fakes),
        rows_N=merged(dataset.rows_N, rows_FN),
        feedback_N=dataset.feedback_N[source_N],
        values_N=dataset.values_N[source_N],
        event_types_N=np.asarray(dataset.event_types_N)[source_N],
        timestamps_ms_N=dataset.timestamps_ms_N[source_N],
    )
    return PoisonedStream(poisoned, is_fake_N)


def honest_outcome(
    stream: PoisonedStream,
    text_VD: NDArray[np.float32],
    settings: EvaluationSettings,
    *,
    target: int,
    defence: Defence,
    scored_from: int,
    with_net: bool = True,
    seed: int = 0,
) -> Outcome:
    """Replay a stream; warm up on the first half, then score every fifth honest event and learn.

    Args:
        stream: With or without an attack; the same honest events are scored.
        text_VD: Text vectors of the items, unstandardised.
        settings: What learns.
        target: Row of the item whose exposure counts.
        defence: What is screened.
        scored_from: Honest events before this one do not count in the outcome.
        with_net: False leaves the blend with popularity and rules: quick, for tests.
        seed: Of weights and sampling.
    """
    run = _Run(stream, text_VD, settings, defence, target, scored_from, with_net, seed)
    run.play()
    return run.outcome


class _Run:
    def __init__(
        self,
        stream: PoisonedStream,
        text_VD: NDArray[np.float32],
        settings: EvaluationSettings,
        defence: Defence,
        target: int,
        scored_from: int,
        with_net: bool,
        seed: int,
    ) -> None:
        self.outcome = Outcome()
        self._data = stream.dataset
        self._is_fake_N = stream.is_fake_N
        self._honest_index_N = np.cumsum(~stream.is_fake_N) - 1
        self._settings = settings
        self._defence = defence
        self._target = target
        self._scored_from = scored_from
        self._num_items = len(text_VD)
        self._half_life = nearest_half_life(settings.model.half_lives, BLEND_HALF_LIFE)
        self._memory = ReplayMemory(window=settings.model.window, seed=seed)
        self._live = LiveState(Counters(settings.model.half_lives, self._num_items))
        self._blend = Blend(settings.blend)
        self._recent = Recent.nothing()
        self._rng = np.random.default_rng(seed)
        self._learner = (
            Learner(Recommender(settings.model, text_VD, seed=seed), settings.training, seed=seed)
            if with_net
            else None
        )

    def play(self) -> None:
        num_honest = int((~self._is_fake_N).sum())
        num_warm = int(np.searchsorted(self._honest_index_N, num_honest // 2))
        for start in range(0, num_warm, _ROUND_EVENTS):
            taught, counted = self._read(start, min(start + _ROUND_EVENTS, num_warm))
            self._live.learn(counted)
        if self._learner is not None:
            self._learner.warm_up(
                lambda n, rng: self._older(n, "uniform", rng),
                num_warm,
                self._live.counters.popularity(),
                self._live.counters.touched(),
            )
        for start in range(num_warm, len(self._data), _ROUND_EVENTS):
            taught, counted = self._read(start, min(start + _ROUND_EVENTS, len(self._data)))
            self._score(counted)
            if self._learner is not None:
                self._learn(self._learner, taught)

    def _read(self, start: int, stop: int) -> tuple[FreshEvents, FreshEvents]:
        """The next events that teach, and those that are counted."""
        data, part = self._data, slice(start, stop)
        self._memory.extend(
            data.users_N[part], data.rows_N[part], data.feedback_N[part], data.timestamps_ms_N[part]
        )
        fresh = self._memory.fresh(start - 1, stop - start)
        if self._defence.filters is None:
            return fresh, fresh
        screened = screen(fresh, self._recent, self._defence.filters)
        self._recent = screened.recent
        for reason, number in screened.counts().items():
            self.outcome.left_out[reason] = self.outcome.left_out.get(reason, 0) + number
        is_honest = ~self._is_fake_N[fresh.offsets_N]
        self.outcome.num_honest_left_out += int((is_honest & ~screened.kept_N).sum())
        taught = keep(fresh, screened.kept_N)
        return taught, taught if self._defence.screens_counters else fresh

    def _score(self, fresh: FreshEvents) -> None:
        scorer = None
        if self._learner is not None:
            scorer = Scorer.from_state(self._learner.ema_state(), self._settings.model)
        honest_N = self._honest_index_N[fresh.offsets_N]
        selected_N = ~self._is_fake_N[fresh.offsets_N] & (honest_N % _SCORE_EVERY == 2)
        for request in requests(fresh, selected_N, self._live):
            eligible_V = eligible_items(self._num_items, request.seen_rows)
            if not eligible_V[request.target]:
                continue
            components = window_scores(
                scorer,
                self._live.counters,
                request.window,
                request.seen_rows,
                half_life_index=self._half_life,
                num_items=self._num_items,
            )
            length = len(request.seen_rows)
            scores_V = self._blend.scores(components, eligible_V, length).scores_V
            self._blend.observe(components, eligible_V, request.target, length)
            if honest_N[request.index] < self._scored_from:
                continue
            [rank] = ranks_of(scores_V, eligible_V, np.array([request.target]))
            self.outcome.ndcg_K.append(float(ndcg_at_k(np.array([rank]), 10)[0]))
            exposed = float("nan")
            if eligible_V[self._target]:
                [rank] = ranks_of(scores_V, eligible_V, np.array([self._target]))
                exposed = float(rank <= _EXPOSED)
            self.outcome.exposed_K.append(exposed)

    def _learn(self, learner: Learner, taught: FreshEvents) -> None:
        training = self._settings.training
        num_steps = learner.online_steps(len(taught))
        newest = newest_of(taught, training.fresh_windows * num_steps)
        older = self._older(training.batch_windows * num_steps - len(newest), "recency", self._rng)
        popularity_MV = self._live.counters.popularity()
        touched_V = self._live.counters.touched()
        for batch in round_batches(newest, older, num_steps, self._rng):
            learner.step(batch, popularity_MV, touched_V)

    def _older(
        self, num: int, strategy: Literal["uniform", "recency"], rng: np.random.Generator
    ) -> Windows:
        windows = self._memory.sample(num, strategy, self._settings.training.replay_half_life, rng)
        filters = self._defence.filters
        return windows if filters is None else without_repeats(windows, filters.max_repeats)


def _profile(
    dataset: Dataset, attack: PushAttack, num_events: int, fake: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of one fake user, in order."""
    if attack.kind == "burst":
        return np.full(num_events, attack.target)
    if attack.kind == "clones":
        rng = np.random.default_rng([attack.seed, 12])  # the same for all
    counts_V = np.bincount(dataset.rows_N[: attack.start], minlength=len(dataset.items))
    counts_V[attack.target] = 0
    num_fillers = min(num_events - 1, int((counts_V > 0).sum()))
    fillers = rng.choice(len(counts_V), num_fillers, replace=False, p=counts_V / counts_V.sum())
    profile = np.insert(
        fillers, int(rng.integers(num_fillers // 4, num_fillers + 1)), attack.target
    )
    return np.resize(profile, num_events)
