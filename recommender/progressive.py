"""Progressive validation of a whole dataset: each event is predicted before it is learned.

The first half of the stream warms everything up; the second is replayed in order and some events of
it (see `slices.Protocol`) scored by full ranking. Axes: V items, D text dimensions, N events,
K scored events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from recommender.baselines import Baseline, Ease, ItemNeighbours
from recommender.beyond_accuracy import ListObserver
from recommender.blend import BLEND, Blend
from recommender.counters import Counters
from recommender.datasets import Dataset
from recommender.drift import Pace
from recommender.evaluation_settings import (
    BLEND_IALS,
    DEFAULT_RANKINGS,
    FROZEN,
    RANKINGS,
    TRENDING,
    EvaluationSettings,
)
from recommender.fresh_filters import Recent, keep, screen, without_repeats
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
from recommender.implicit_factors import IALS, FactorLearner
from recommender.metrics import quality_of
from recommender.model import Recommender
from recommender.model_inputs import text_moments, unit_text
from recommender.quality_report import EventCounts, QualityReport, slice_quality
from recommender.ranking import BLEND_HALF_LIFE, COMPONENTS, nearest_half_life
from recommender.replay import ReplayMemory
from recommender.rounds import round_batches
from recommender.scorer import Scorer
from recommender.settings import NO_FILTERS
from recommender.slices import NUM_QUARTERS, Protocol, scored_events, slices_of
from recommender.text_tuning import TextTuner
from recommender.training import Learner
from recommender.windows import FreshEvents, Windows, newest_of, select

__all__ = ["EvaluationSettings", "QualityReport", "evaluate"]

Progress = Callable[[int, int], None]

OnScored = Callable[[NDArray[np.int64], Mapping[str, NDArray[np.float64]]], None]
"""Sees the offsets of a round's scored events, [K], and the rank of each by ranking, [K] each."""

_NEED_NET = frozenset({FROZEN, LEARNING, BLEND, BLEND_IALS, "content"})
_NEED_STEPS = frozenset({LEARNING, BLEND, BLEND_IALS})
_NEED_FACTORS = frozenset({IALS, BLEND_IALS})
_POPULARITY_HALF_LIFE = 10_000.0
_EASE_REFIT_EVENTS = 2_000
_EASE_LARGEST_REFIT_COUNT = 50
_REPORTED_QUARTERS = (1, 2, 3)  # settings may have been chosen on the first


def evaluate(
    dataset: Dataset,
    text_VD: NDArray[np.float32],
    settings: EvaluationSettings | None = None,
    *,
    rankings: Collection[str] = DEFAULT_RANKINGS,
    seed: int = 0,
    max_events: int | None = None,
    protocol: Protocol = "events",
    exclude_seen: bool = True,
    progress: Progress | None = None,
    cpu_clock: Callable[[], float] = time.process_time,
    tuner: TextTuner | None = None,
    num_warm_up: int | None = None,
    scored_N: NDArray[np.bool_] | None = None,
    on_scored: OnScored | None = None,
) -> QualityReport:
    """Replay a dataset and measure how well each ranking foresees it.

    Args:
        dataset: In stable timestamp order.
        text_VD: Text vectors of `dataset.items`, unstandardised.
        settings: What learns; defaults if left out.
        rankings: Names out of `RANKINGS`. Without a net among them nothing is trained.
        seed: Of weights and sampling.
        max_events: Use only the first events.
        protocol: Which events of the stream are predicted.
        exclude_seen: Leave items out that the user had. Events that repeat one are then not scored;
            where repeats matter (shops), say False.
        progress: Called with events done (warm-up included) and events in all.
        cpu_clock: CPU seconds used so far.
        tuner: Reads the texts anew as it learns, from the end of the warm-up on; it has no items.
        num_warm_up: Events before the stream; half of them if left out.
        scored_N: Which events of the dataset to predict, in the place of the protocol's.
        on_scored: Called after each round.

    Raises:
        ValueError: If a ranking is unknown, the texts are not those of the dataset, or there are
            both a guard and a tuner: only the training loop takes a tuner back with a version.
        ImportError: If iALS is asked for and `implicit` is not installed.
    """
    unknown = set(rankings) - set(RANKINGS)
    if unknown:
        raise ValueError(f"unknown rankings {sorted(unknown)}, there are {RANKINGS}")
    if len(text_VD) != len(dataset.items):
        raise ValueError(f"{len(text_VD)} text vectors for {len(dataset.items)} items")
    if tuner is not None and settings is not None and settings.guard is not None:
        raise ValueError("a guard that takes versions back and a text tuner cannot be combined")
    evaluation = _Evaluation(
        dataset,
        text_VD,
        settings or EvaluationSettings(),
        rankings=rankings,
        seed=seed,
        num_events=min(len(dataset), max_events or len(dataset)),
        protocol=protocol,
        exclude_seen=exclude_seen,
        cpu_clock=cpu_clock,
        tuner=tuner,
        num_warm_up=num_warm_up,
        scored_N=scored_N,
        on_scored=on_scored,
    )
    evaluation.run(progress or (lambda _done, _total: None))
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
        num_events: int,
        protocol: Protocol,
        exclude_seen: bool,
        cpu_clock: Callable[[], float],
        tuner: TextTuner | None,
        num_warm_up: int | None,
        scored_N: NDArray[np.bool_] | None,
        on_scored: OnScored | None,
    ) -> None:
        self._tuner = tuner
        if tuner is not None:
            tuner.add_items([item.text for item in dataset.items], text_VD)
        self._dataset = dataset
        self._settings = settings
        self._rankings = tuple(name for name in RANKINGS if name in rankings)
        self._seed = seed
        self._protocol = protocol
        self._exclude_seen = exclude_seen
        self._cpu_clock = cpu_clock
        self._num_items = len(dataset.items)
        self._num_events = num_events
        self._num_warm_up = num_events // 2 if num_warm_up is None else num_warm_up
        self._selected_N = (
            scored_events(dataset, protocol, self._num_warm_up, num_events)
            if scored_N is None
            else scored_N
        )
        self._on_scored = on_scored
        self._recent = Recent.nothing()
        half_lives = settings.model.half_lives
        self._popularity_index = nearest_half_life(half_lives, _POPULARITY_HALF_LIFE)
        self._blend_index = nearest_half_life(half_lives, BLEND_HALF_LIFE)
        self._memory = ReplayMemory(window=settings.model.window, seed=seed)
        self._live = LiveState(
            Counters(half_lives, self._num_items),
            self._baselines(),
            FactorLearner(self._num_items, settings.factors, seed)
            if _NEED_FACTORS & set(rankings)
            else None,
        )
        self._blend = Blend(settings.blend, tuple(name for name in COMPONENTS if name != IALS))
        self._more_blends = {BLEND_IALS: Blend(settings.blend)} if BLEND_IALS in rankings else {}
        self._lists = ListObserver(unit_text(text_VD, *text_moments(text_VD)))
        self._learner: Learner | None = None
        if _NEED_NET & set(rankings):
            model = Recommender(settings.model, text_VD, seed=seed)
            self._learner = Learner(model, settings.training, seed=seed)
        self._guarded: GuardedLearning | None = None
        if self._learner is not None and settings.guard is not None:
            self._guarded = GuardedLearning(
                self._learner, settings.guard, settings.model, self._memory, seed=seed
            )
        self._frozen: Scorer | None = None
        self._sampling = np.random.default_rng(seed)
        self._scored: list[ScoredEvents] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._warm_up_cpu_s = self._learn_cpu_s = self._score_cpu_s = 0.0

    def run(self, progress: Progress) -> None:
        """Warm up on the first half, then replay the second in rounds."""
        self._warm_up(lambda share: progress(int(share * self._num_warm_up), self._num_events))
        for start in range(self._num_warm_up, self._num_events, self._settings.round_events):
            stop = min(start + self._settings.round_events, self._num_events)
            taught = self._append(start, stop)
            self._score(taught)
            self._learn(taught, stop - start)
            progress(stop, self._num_events)

    def report(self) -> QualityReport:
        """Sum up after `run`."""
        num_streamed = self._num_events - self._num_warm_up
        offsets_K = np.concatenate([np.zeros(0, np.int64), *self._offsets])
        quarters_K = (offsets_K - self._num_warm_up) * NUM_QUARTERS // max(1, num_streamed)
        reported_K = np.isin(quarters_K, _REPORTED_QUARTERS)
        ranks = {name: self._ranks(name) for name in self._rankings}
        slices = slices_of(self._dataset, offsets_K, self._num_warm_up)
        return QualityReport(
            dataset=self._dataset.name,
            quality={
                name: quality_of(ranks_K, quarters_K, _REPORTED_QUARTERS)
                for name, ranks_K in ranks.items()
            },
            slices={n: slice_quality(ranks, mask_K & reported_K) for n, mask_K in slices.items()},
            lists=self._lists.result(),
            events=EventCounts(
                warm_up=self._num_warm_up,
                streamed=num_streamed,
                scored=len(offsets_K),
                reported=int(reported_K.sum()),
                skipped=sum(scored.num_skipped for scored in self._scored),
            ),
            served=dict(Counter(name for scored in self._scored for name in scored.served_K)),
            blend_weights={k: v.tolist() for k, v in self._blend.weights().items()},
            warm_up_cpu_s=self._warm_up_cpu_s,
            learn_cpu_s_per_1000=1_000 * self._learn_cpu_s / max(1, num_streamed),
            score_cpu_s_per_1000=1_000 * self._score_cpu_s / max(1, len(offsets_K)),
            settings=self._settings,
            seed=self._seed,
            protocol=self._protocol,
            exclude_seen=self._exclude_seen,
            decisions=() if self._guarded is None else tuple(self._guarded.decisions),
            probe_changes={} if self._guarded is None else self._guarded.probe_changes(),
        )

    def _baselines(self) -> dict[str, Baseline]:
        baselines: dict[str, Baseline] = {}
        if "item_knn" in self._rankings:
            baselines["item_knn"] = ItemNeighbours(self._num_items)
        if "ease" in self._rankings:
            longest = self._num_events // _EASE_LARGEST_REFIT_COUNT
            refit_every = max(_EASE_REFIT_EVENTS, longest)
            baselines["ease"] = Ease(self._num_items, refit_every=refit_every)
        return baselines

    def _ranks(self, name: str) -> NDArray[np.float64]:
        ranks = [scored.ranks[name] for scored in self._scored if len(scored.indices_K)]
        return np.concatenate([np.zeros(0), *ranks])

    def _append(self, start: int, stop: int) -> FreshEvents:
        """Take events into the memory; those that may teach come back."""
        data, part = self._dataset, slice(start, stop)
        self._memory.extend(
            data.users_N[part], data.rows_N[part], data.feedback_N[part], data.timestamps_ms_N[part]
        )
        fresh = self._memory.fresh(start - 1, stop - start)
        if self._settings.filters == NO_FILTERS:
            return fresh
        screened = screen(fresh, self._recent, self._settings.filters)
        self._recent = screened.recent
        return keep(fresh, screened.kept_N)

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
                lambda n, rng: self._few_repeats(
                    self._memory.sample(n, "uniform", 1.0, rng, leave_out)
                ),
                self._num_warm_up,
                self._live.counters.popularity(),
                self._live.counters.touched(),
                lambda step, num_steps: progress(step / num_steps),
            )
        self._warm_up_cpu_s = self._cpu_clock() - started_s
        if self._guarded is not None:
            self._guarded.publish(self._live.counters.popularity())
        self._frozen = self._scorer()
        if self._tuner is not None:
            self._tuner.begin(self._learner)
            self._learner.on_gradient = self._tuner.follow

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
        selected_N = self._selected_N[fresh.offsets_N]
        scorer = self._scorer()
        if self._tuner is not None and scorer is not None:
            windows = select(fresh.windows, selected_N)
            self._tuner.compare(scorer, windows, self._live.counters.popularity())
        scored = score_fresh(
            fresh,
            selected_N,
            self._live,
            scorer=scorer,
            blend=self._blend,
            half_life_index=self._blend_index,
            num_items=self._num_items,
            exclude_seen=self._exclude_seen,
            others=self._other_rankings(),
            more_blends=self._more_blends,
            observer=self._observe_lists,
        )
        self._scored.append(scored)
        offsets_K = fresh.offsets_N[scored.indices_K]
        self._offsets.append(offsets_K)
        if self._on_scored is not None:
            self._on_scored(offsets_K, scored.ranks)
        if self._guarded is not None:
            self._guarded.observe(fresh, scored)
        self._score_cpu_s += self._cpu_clock() - started_s

    def _observe_lists(
        self,
        _request: Request,
        eligible_V: NDArray[np.bool_],
        rankings: Mapping[str, NDArray[np.floating]],
    ) -> None:
        num_events_V = self._live.counters.popularity()[-1]  # the longest half-life
        self._lists.observe(
            {name: rankings[name] for name in self._rankings}, eligible_V, num_events_V
        )

    def _other_rankings(self) -> dict[str, Ranking]:
        counters = self._live.counters
        others: dict[str, Ranking] = {
            "popularity": lambda _request: counters.popularity()[self._popularity_index],
            TRENDING: lambda _request: counters.popularity()[self._blend_index],
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

    def _learn(self, taught: FreshEvents, num_fresh: int) -> None:
        if self._learner is None or not _NEED_STEPS & set(self._rankings):
            return
        started_s = self._cpu_clock()
        if self._tuner is not None and (state := self._tuner.lost_to()) is not None:
            self._learner.load_state(state)
        training = self._settings.training
        popularity_MV = self._live.counters.popularity()
        touched_V = self._live.counters.touched()
        num_steps = self._learner.online_steps(num_fresh)
        guarded = self._guarded
        leave_out = self._leave_out()
        pace = Pace.of(training) if guarded is None else guarded.pace()
        newest = self._newest(taught, pace.fresh_windows * num_steps, num_fresh)
        older = self._few_repeats(
            self._memory.sample(
                training.batch_windows * num_steps - len(newest),
                training.replay_strategy,
                pace.replay_half_life,
                self._sampling,
                leave_out,
            )
        )
        for batch in round_batches(newest, older, num_steps, self._sampling):
            rate = pace.learning_rate
            self._learner.step(batch, popularity_MV, touched_V, learning_rate=rate)
            if self._tuner is not None:
                self._tuner.step_reference(batch, popularity_MV, touched_V, learning_rate=rate)
        if guarded is not None:
            guarded.publish(popularity_MV)
        self._learn_cpu_s += self._cpu_clock() - started_s

    def _newest(self, taught: FreshEvents, num_windows: int, num_fresh: int) -> Windows:
        leave_out = self._leave_out()
        if self._settings.filters == NO_FILTERS:
            after = self._memory.next_offset - 1 - num_fresh
            return self._memory.latest_windows(num_windows, after, leave_out)
        may_N = leave_out.may_learn(taught.users_N, taught.offsets_N)
        return newest_of(keep(taught, may_N), num_windows)

    def _few_repeats(self, windows: Windows) -> Windows:
        return without_repeats(windows, self._settings.filters.max_repeats)


def _baseline_ranking(baseline: Baseline) -> Ranking:
    def ranking(request: Request) -> NDArray[np.floating]:
        return baseline.scores(request.seen_rows)

    return ranking
