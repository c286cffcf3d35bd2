"""Scoring fresh events before anything learns them: by the training loop and by offline evaluation.

Axes: N fresh events, K scored events, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recommender.baselines import Baseline
from recommender.blend import BLEND, Blend
from recommender.counters import Counters, previous_items
from recommender.implicit_factors import FactorLearner
from recommender.ranking import NetScorer, eligible_items, ranks_of, window_scores
from recommender.replay import windows_before
from recommender.windows import FreshEvents, Windows, select

LEARNING = "learning"
"""The report's name for the `net` component, to tell it from the net that is frozen."""


@dataclass(frozen=True)
class Request:
    """What was known just before an event, and what the event then was.

    Attributes:
        index: Position of the event in its batch.
        window: One row, the user's latest items.
        seen_rows: int32, all items the user had, oldest first.
        target: Catalogue row of the item the user took.
    """

    index: int
    window: Windows
    seen_rows: NDArray[np.int32]
    target: int

    @property
    def history_rows(self) -> NDArray[np.int32]:
        """The items of the window, oldest first."""
        return self.window.items_BT[0, : self.window.lengths_B[0]]


Ranking = Callable[[Request], NDArray[np.floating]]
"""Gives the scores of all items, [V]."""

Observer = Callable[[Request, NDArray[np.bool_], Mapping[str, NDArray[np.floating]]], None]
"""Sees a request, the items that may be ranked, [V], and the scores of every ranking, [V] each."""


@dataclass
class LiveState:
    """What must be as of each event: the counters, and factors and baselines if there are any."""

    counters: Counters
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    factors: FactorLearner | None = None

    def learn(self, fresh: FreshEvents, start: int = 0, stop: int | None = None) -> None:
        """Count the events [start, stop) of a batch, in order; items not in the catalogue are not.

        Their row is negative, because the catalogue has not given them one.
        """
        known = start + np.flatnonzero(fresh.items_N[start:stop] >= 0)
        self.counters.update(fresh.items_N[known], previous_items(select(fresh.windows, known)))
        learners = [*self.baselines.values(), *([self.factors] if self.factors else [])]
        for index in known.tolist() if learners else ():
            user, row = int(fresh.users_N[index]), int(fresh.items_N[index])
            for learner in learners:
                learner.update(user, row, _seen_before(fresh, index))


@dataclass(frozen=True)
class ScoredEvents:
    """Ranks that items got just before they were taken.

    Attributes:
        indices_K: int64 positions of the events in their batch.
        ranks: By ranking, float64 [K], 1 is best.
        served_K: What the blend gave at each: `blend`, or the component that its guard chose.
        num_skipped: Selected events whose item could not be ranked: seen before, or not known.
    """

    indices_K: NDArray[np.int64]
    ranks: dict[str, NDArray[np.float64]]
    served_K: tuple[str, ...]
    num_skipped: int


def score_fresh(
    fresh: FreshEvents,
    selected_N: NDArray[np.bool_],
    live: LiveState,
    *,
    scorer: NetScorer | None,
    blend: Blend,
    half_life_index: int,
    num_items: int,
    exclude_seen: bool = True,
    others: Mapping[str, Ranking] | None = None,
    more_blends: Mapping[str, Blend] | None = None,
    observer: Observer | None = None,
) -> ScoredEvents:
    """Rank the selected events by what is served, and only then let it learn them.

    At each event the counters hold all events before it and no other; the blend has observed the
    scored ones before it. Afterwards `live` has counted the whole batch.

    Args:
        fresh: Over catalogue rows, with the items seen before each event.
        selected_N: Which events to score.
        live: As of just before the batch.
        scorer: The net as of before the batch; without it, `learning` and `content` are absent.
        blend: As of before the batch; observes every scored event.
        half_life_index: Of the `popularity` component.
        num_items: V.
        exclude_seen: Leave out what the user had, as serving does by default.
        others: More rankings for the same events; they replace components of the same name.
        more_blends: Blends of other components, by the name of their ranking; they learn as well.
        observer: Called for each scored event, before the next one is counted.
    """
    blends = {BLEND: blend, **(more_blends or {})}
    scored = _Tally()
    for request in requests(fresh, selected_N, live):
        left_out = request.seen_rows if exclude_seen else request.seen_rows[:0]
        eligible_V = eligible_items(num_items, left_out)
        if not (0 <= request.target < num_items and eligible_V[request.target]):
            scored.num_skipped += 1
            continue
        components = window_scores(
            scorer,
            live.counters,
            request.window,
            request.seen_rows,
            half_life_index=half_life_index,
            num_items=num_items,
            factors=live.factors.factors if live.factors else None,
        )
        history_length = len(request.seen_rows)
        rankings: dict[str, NDArray[np.floating]] = {
            LEARNING if name == "net" else name: scores_V for name, scores_V in components.items()
        }
        served = {}
        for name, each in blends.items():
            blended = each.observe(components, eligible_V, request.target, history_length)
            rankings[name], served[name] = blended.scores_V, blended.served
        rankings |= {name: ranking(request) for name, ranking in (others or {}).items()}
        scored.add(request, eligible_V, rankings, served[BLEND])
        if observer is not None:
            observer(request, eligible_V, rankings)
    return scored.result()


def requests(
    fresh: FreshEvents, selected_N: NDArray[np.bool_], live: LiveState
) -> Iterator[Request]:
    """The selected events as requests; at each, `live` has counted all before it and no other.

    When the iterator ends, `live` has counted the whole batch.
    """
    before = windows_before(fresh.windows)
    num_counted = 0
    for index in np.flatnonzero(selected_N).tolist():
        live.learn(fresh, num_counted, index)
        num_counted = index
        yield Request(
            index=index,
            window=select(before, slice(index, index + 1)),
            seen_rows=_seen_before(fresh, index),
            target=int(fresh.items_N[index]),
        )
    live.learn(fresh, num_counted)


class _Tally:
    def __init__(self) -> None:
        self.num_skipped = 0
        self._indices: list[int] = []
        self._served: list[str] = []
        self._ranks: dict[str, list[float]] = {}

    def add(
        self,
        request: Request,
        eligible_V: NDArray[np.bool_],
        rankings: Mapping[str, NDArray[np.floating]],
        served: str,
    ) -> None:
        target_1 = np.array([request.target])
        for name, scores_V in rankings.items():
            rank = float(ranks_of(scores_V, eligible_V, target_1)[0])
            self._ranks.setdefault(name, []).append(rank)
        self._indices.append(request.index)
        self._served.append(served)

    def result(self) -> ScoredEvents:
        return ScoredEvents(
            np.array(self._indices, np.int64),
            {name: np.array(ranks) for name, ranks in self._ranks.items()},
            tuple(self._served),
            self.num_skipped,
        )


def _seen_before(fresh: FreshEvents, index: int) -> NDArray[np.int32]:
    return fresh.seen_values[fresh.seen_splits[index] : fresh.seen_splits[index + 1]]
