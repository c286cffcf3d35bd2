"""Progressive validation of a whole dataset: each event is predicted before it is learned.

The first half of the stream warms everything up; the second is replayed in order and every fifth
event of it scored by full ranking. Axes: V items, D text dimensions, K scored events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recommender.baselines import Baseline, Ease, ItemNeighbours
from recommender.blend import BLEND, Blend
from recommender.counters import Counters
from recommender.datasets import Dataset
from recommender.drift import Pace
from recommender.fresh_scoring import (
    LEARNING,
    LiveState,
    Ranking,
    Request,
    ScoredEvents,
    score_fresh,
)
from recommender.guarded_learning import GuardedLearning
from recommender.hold_out import EVERYTHING, LeaveOut
from recommender.metrics import Quality, quality_of
from recommender.model import Recommender
from recommender.promotion import Decision
from recommender.ranking import nearest_half_life
from recommender.replay import ReplayMemory
from recommender.rounds import round_batches
from recommender.scorer import Scorer
from recommender.settings import (
    BlendSettings,
    GuardSettings,
    ModelSettings,
    Section,
    TrainingSettings,
)
from recommender.training import Learner
from recommender.windows import FreshEvents

FROZEN = "frozen"
RANKINGS = ("popularity", "rules", "item_knn", "ease", FROZEN, LEARNING, BLEND)
"""All that can be compared; `item_knn` and `ease` cost a dense V by V matrix each."""

DEFAULT_RANKINGS = ("popularity", "rules", FROZEN, LEARNING, BLEND)

Progress = Callable[[int, int], None]

_BASELINES: Mapping[str, Callable[[int], Baseline]] = {"item_knn": ItemNeighbours, "ease": Ease}
_NEED_NET = frozenset({FROZEN, LEARNING, BLEND})
_NEED_STEPS = frozenset({LEARNING, BLEND})
_POPULARITY_HALF_LIFE = 10_000.0
_BLEND_HALF_LIFE = 2_000.0
_SCORE_EVERY = 5
_FIRST_SCORED = 2
_NUM_QUARTERS = 4
_REPORTED_QUARTERS = (1, 2, 3)  # settings may have been chosen on the first


class EvaluationSettings(Section):
    """What learns from a dataset that is replayed."""

    model: ModelSettings = ModelSettings()
    """Shape of the towers."""
    training: TrainingSettings = TrainingSettings()
    """Optimiser and replay."""
    blend: BlendSettings = BlendSettings()
    """Fusion and guard."""
    guard: GuardSettings | None = None
    """Guards of the training loop, with their held-out users; without it all is learned."""
    round_events: int = Field(default=500, ge=1)
    """Events between two updates of the weights."""


@dataclass(frozen=True)
class EventCounts:
    """What happened to the events; `warm_up + streamed` is all of them.

    Attributes:
        warm_up: Learned before the stream.
        streamed: Replayed one after the other.
        scored: Of those, predicted before they were learned.
        reported: Of those, in the quarters that the overall figures cover.
        skipped: Chosen for scoring, but the user already had the item.
    """

    warm_up: int
    streamed: int
    scored: int
    reported: int
    skipped: int


@dataclass(frozen=True)
class QualityReport:
    """Outcome of one evaluation.

    Attributes:
        dataset: Its name.
        quality: By ranking.
        events: Counts.
        served: How often the blend served itself and how often each component in its place.
        blend_weights: Weight of each component at the end, by history-length bucket.
        warm_up_cpu_s: CPU seconds of the warm-up.
        learn_cpu_s_per_1000: CPU seconds of weight updates per 1,000 streamed events.
        score_cpu_s_per_1000: CPU seconds per 1,000 scored events, all rankings together.
        settings: What learned.
        seed: Of weights and sampling.
        exclude_seen: Whether items a user had were left out of the rankings.
        decisions: What the guard rejected, rolled back or adapted to.
        probe_changes: By period, how far NDCG@10 on its held-out probes is above its level of then.
    """

    dataset: str
    quality: dict[str, Quality]
    events: EventCounts
    served: dict[str, int]
    blend_weights: dict[str, list[float]]
    warm_up_cpu_s: float
    learn_cpu_s_per_1000: float
    score_cpu_s_per_1000: float
    settings: EvaluationSettings
    seed: int
    exclude_seen: bool
    decisions: tuple[Decision, ...] = ()
    probe_changes: dict[int, float] = field(default_factory=dict)


def evaluate(
    dataset: Dataset,
    text_VD: NDArray[np.float32],
    settings: EvaluationSettings | None = None,
    *,
    rankings: Collection[str] = DEFAULT_RANKINGS,
    seed: int = 0,
    max_events: int | None = None,
    exclude_seen: bool = True,
    progress: Progress | None = None,
    cpu_clock: Callable[[], float] = time.process_time,
) -> QualityReport:
    """Replay a dataset and measure how well each ranking foresees it.

    Args:
        dataset: In stable timestamp order.
        text_VD: Text vectors of `dataset.items`, unstandardised.
        settings: What learns; defaults if left out.
        rankings: Names out of `RANKINGS`. Without a net among them nothing is trained.
        seed: Of weights and sampling.
        max_events: Use only the first events.
        exclude_seen: Leave items out that the user had. Events that repeat one are then not scored;
            where repeats matter (shops), say False.
        progress: Called with events done (warm-up included) and events in all.
        cpu_clock: CPU seconds used so far.

    Raises:
        ValueError: If a ranking is unknown, or the texts are not those of the dataset.
    """
    unknown = set(rankings) - set(RANKINGS)
    if unknown:
        raise ValueError(f"unknown rankings {sorted(unknown)}, there are {RANKINGS}")
    if len(text_VD) != len(dataset.items):
        raise ValueError(f"{len(text_VD)} text vectors for {len(dataset.items)} items")
    evaluation = _Evaluation(
        dataset,
        text_VD,
        settings or EvaluationSettings(),
        rankings=rankings,
        seed=seed,
        exclude_seen=exclude_seen,
        cpu_clock=cpu_clock,
    )
    num_events = min(len(dataset), max_events or len(dataset))
    evaluation.run(num_events, progress or (lambda _done, _total: None))
    return evaluation.report()


class _Evaluation:
    """One run: the memory, what learns, and the ranks so far."""

    def __init__(
        self,
        dataset: Dataset,
        text_VD: NDArray[np.float32],
        settings: EvaluationSettings,
        *,
        rankings: Collection[str],
        seed: int,
        exclude_seen: bool,
        cpu_clock: Callable[[], float],
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._rankings = tuple(name for name in RANKINGS if name in rankings)
        self._seed = seed
        self._exclude_seen = exclude_seen
        self._cpu_clock = cpu_clock
        self._num_items = len(dataset.items)
        half_lives = settings.model.half_lives
        self._popularity_index = nearest_half_life(half_lives, _POPULARITY_HALF_LIFE)
        self._blend_index = nearest_half_life(half_lives, _BLEND_HALF_LIFE)
        self._memory = ReplayMemory(window=settings.model.window, seed=seed)
        self._live = LiveState(
            Counters(half_lives, self._num_items),
            {name: make(self._num_items) for name, make in _BASELINES.items() if name in rankings},
        )
        self._blend = Blend(settings.blend)
        self._learner: Learner | None = None
        if _NEED_NET & set(rankings):
            model = Recommender(settings.model, text_VD, seed=seed)
            self._learner = Learner(model, settings.training, seed=seed)
        self._guarded: GuardedLearning | None = None
        if self._learner is not None and settings.guard is not None:
            self._guarded = GuardedLearning(
                self._learner, settings.guard, settings.model, seed=seed
            )
        self._frozen: Scorer | None = None
        self._sampling = np.random.default_rng(seed)
        self._scored: list[ScoredEvents] = []
        self._stream_offsets: list[NDArray[np.int64]] = []
        self._num_warm_up = self._num_streamed = 0
        self._warm_up_cpu_s = self._learn_cpu_s = self._score_cpu_s = 0.0

    def run(self, num_events: int, progress: Progress) -> None:
        """Warm up on the first half, then replay the second in rounds."""
        self._num_warm_up = num_events // 2
        self._num_streamed = num_events - self._num_warm_up
        self._warm_up(lambda share: progress(int(share * self._num_warm_up), num_events))
        for start in range(self._num_warm_up, num_events, self._settings.round_events):
            stop = min(start + self._settings.round_events, num_events)
            self._score(self._append(start, stop))
            self._learn(stop - start)
            progress(stop, num_events)

    def report(self) -> QualityReport:
        """Sum up after `run`."""
        offsets_K = np.concatenate([np.zeros(0, np.int64), *self._stream_offsets])
        quarters_K = offsets_K * _NUM_QUARTERS // max(1, self._num_streamed)
        num_scored = len(offsets_K)
        return QualityReport(
            dataset=self._dataset.name,
            quality={
                name: quality_of(self._ranks(name), quarters_K, _REPORTED_QUARTERS)
                for name in self._rankings
            },
            events=EventCounts(
                warm_up=self._num_warm_up,
                streamed=self._num_streamed,
                scored=num_scored,
                reported=int(np.isin(quarters_K, _REPORTED_QUARTERS).sum()),
                skipped=sum(scored.num_skipped for scored in self._scored),
            ),
            served=dict(Counter(name for scored in self._scored for name in scored.served_K)),
            blend_weights={k: v.tolist() for k, v in self._blend.weights().items()},
            warm_up_cpu_s=self._warm_up_cpu_s,
            learn_cpu_s_per_1000=1_000 * self._learn_cpu_s / max(1, self._num_streamed),
            score_cpu_s_per_1000=1_000 * self._score_cpu_s / max(1, num_scored),
            settings=self._settings,
            seed=self._seed,
            exclude_seen=self._exclude_seen,
            decisions=() if self._guarded is None else tuple(self._guarded.decisions),
            probe_changes={} if self._guarded is None else self._guarded.probe_changes(),
        )

    def _ranks(self, name: str) -> NDArray[np.float64]:
        ranks = [scored.ranks[name] for scored in self._scored if len(scored.indices_K)]
        return np.concatenate([np.zeros(0), *ranks])

    def _append(self, start: int, stop: int) -> FreshEvents:
        data, part = self._dataset, slice(start, stop)
        columns = (data.users_N, data.rows_N, data.feedback_N, data.timestamps_ms_N)
        for event in zip(*(column[part].tolist() for column in columns), strict=True):
            self._memory.append(*event)
        return self._memory.fresh(start - 1, stop - start)

    def _warm_up(self, progress: Callable[[float], None]) -> None:
        for start in range(0, self._num_warm_up, self._settings.round_events):
            stop = min(start + self._settings.round_events, self._num_warm_up)
            fresh = self._append(start, stop)
            self._live.learn(fresh)
            if self._guarded is not None:
                self._guarded.remember(fresh)
        if self._learner is None:
            return
        started_s = self._cpu_clock()
        if self._num_warm_up:
            leave_out = self._leave_out()
            self._learner.warm_up(
                lambda n, rng: self._memory.sample(n, "uniform", 1.0, rng, leave_out),
                self._num_warm_up,
                self._live.counters.popularity(),
                self._live.counters.touched(),
                lambda step, num_steps: progress(step / num_steps),
            )
        self._warm_up_cpu_s = self._cpu_clock() - started_s
        if self._guarded is not None:
            self._guarded.publish(self._live.counters.popularity())
        self._frozen = self._scorer()

    def _leave_out(self) -> LeaveOut:
        return EVERYTHING if self._guarded is None else self._guarded.leave_out()

    def _scorer(self) -> Scorer | None:
        if self._learner is None:
            return None
        if self._guarded is not None:
            return self._guarded.scorer
        return Scorer.from_state(self._learner.ema_state(), self._settings.model)

    def _score(self, fresh: FreshEvents) -> None:
        started_s = self._cpu_clock()
        stream_N = fresh.offsets_N - self._num_warm_up
        scored = score_fresh(
            fresh,
            stream_N % _SCORE_EVERY == _FIRST_SCORED,
            self._live,
            scorer=self._scorer(),
            blend=self._blend,
            half_life_index=self._blend_index,
            num_items=self._num_items,
            exclude_seen=self._exclude_seen,
            others=self._other_rankings(),
        )
        self._scored.append(scored)
        if self._guarded is not None:
            self._guarded.observe(fresh, scored)
        self._stream_offsets.append(stream_N[scored.indices_K])
        self._score_cpu_s += self._cpu_clock() - started_s

    def _other_rankings(self) -> dict[str, Ranking]:
        counters = self._live.counters
        others: dict[str, Ranking] = {
            "popularity": lambda _request: counters.popularity()[self._popularity_index]
        }
        for name, baseline in self._live.baselines.items():
            others[name] = _baseline_ranking(baseline)
        frozen = self._frozen
        if frozen is not None and FROZEN in self._rankings:
            others[FROZEN] = lambda request: frozen.net_scores(
                request.window, counters.popularity()
            )[0]
        if self._guarded is not None:
            others |= self._guarded.rankings(counters.popularity)
        return others

    def _learn(self, num_fresh: int) -> None:
        if self._learner is None or not _NEED_STEPS & set(self._rankings):
            return
        started_s = self._cpu_clock()
        training = self._settings.training
        popularity_MV = self._live.counters.popularity()
        touched_V = self._live.counters.touched()
        num_steps = self._learner.online_steps(num_fresh)
        guarded = self._guarded
        leave_out = self._leave_out()
        pace = Pace.of(training) if guarded is None else guarded.pace()
        newest = self._memory.latest_windows(
            pace.fresh_windows * num_steps, self._memory.next_offset - 1 - num_fresh, leave_out
        )
        older = self._memory.sample(
            training.batch_windows * num_steps - len(newest),
            training.replay_strategy,
            training.replay_half_life,
            self._sampling,
            leave_out,
        )
        for batch in round_batches(newest, older, num_steps, self._sampling):
            self._learner.step(batch, popularity_MV, touched_V, learning_rate=pace.learning_rate)
        if guarded is not None:
            guarded.publish(popularity_MV)
        self._learn_cpu_s += self._cpu_clock() - started_s


def _baseline_ranking(baseline: Baseline) -> Ranking:
    def ranking(request: Request) -> NDArray[np.floating]:
        return baseline.scores(request.seen_rows)

    return ranking
