"""What an evaluation found, as values. Axes: K scored events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recommender.beyond_accuracy import ListQuality
from recommender.evaluation_settings import EvaluationSettings
from recommender.metrics import Quality, hit_rate_at_k, ndcg_at_k
from recommender.promotion import Decision


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
class SliceQuality:
    """Quality over some of the reported events; zeros where there are none.

    Attributes:
        num_events: How many.
        ndcg_at_10: By ranking.
        hit_rate_at_10: By ranking.
    """

    num_events: int
    ndcg_at_10: dict[str, float]
    hit_rate_at_10: dict[str, float]


@dataclass(frozen=True)
class QualityReport:
    """Outcome of one evaluation.

    Attributes:
        dataset: Its name.
        quality: By ranking.
        slices: By the name of the slice, see `slices.slices_of`.
        lists: Beyond accuracy, by ranking, over all scored events.
        events: Counts.
        served: How often the blend served itself and how often each component in its place.
        blend_weights: Weight of each component at the end, by history-length bucket.
        warm_up_cpu_s: CPU seconds of the net's warm-up.
        learn_cpu_s_per_1000: CPU seconds of weight updates per 1,000 streamed events.
        score_cpu_s_per_1000: CPU seconds per 1,000 scored events, all rankings and the counting of
            the events in between together.
        settings: What learned.
        seed: Of weights and sampling.
        protocol: `events` or `baskets`.
        exclude_seen: Whether items a user had were left out of the rankings.
        decisions: What the guard rejected, rolled back or adapted to.
        probe_changes: By period, how far NDCG@10 on its held-out probes is above its level of then.
    """

    dataset: str
    quality: dict[str, Quality]
    slices: dict[str, SliceQuality]
    lists: dict[str, ListQuality]
    events: EventCounts
    served: dict[str, int]
    blend_weights: dict[str, list[float]]
    warm_up_cpu_s: float
    learn_cpu_s_per_1000: float
    score_cpu_s_per_1000: float
    settings: EvaluationSettings
    seed: int
    protocol: str
    exclude_seen: bool
    decisions: tuple[Decision, ...] = ()
    probe_changes: dict[int, float] = field(default_factory=dict)


def slice_quality(
    ranks: Mapping[str, NDArray[np.float64]], covered_K: NDArray[np.bool_]
) -> SliceQuality:
    """Mean quality of every ranking over the covered events.

    Args:
        ranks: Rank of each scored event's item, [K], by ranking.
        covered_K: Which events the slice has.
    """
    num_events = int(covered_K.sum())
    share = 1.0 / max(1, num_events)
    return SliceQuality(
        num_events,
        {name: share * float(ndcg_at_k(r_K[covered_K], 10).sum()) for name, r_K in ranks.items()},
        {
            name: share * float(hit_rate_at_k(r_K[covered_K], 10).sum())
            for name, r_K in ranks.items()
        },
    )
