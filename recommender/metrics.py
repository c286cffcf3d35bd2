"""Quality of rankings with one relevant item each, from the rank that item got.

Ranks are 1-based and may be halves: ties share their mean rank (`ranking.ranks_of`). Axes: N ranks.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


def ndcg_at_k(ranks_N: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """NDCG@k of each ranking: 1 / log2(1 + rank) within the first k, else 0.

    Source: Jarvelin and Kekalainen 2002, doi:10.1145/582415.582418, binary gain.
    """
    return np.where(ranks_N <= k, 1.0 / np.log2(1.0 + ranks_N), 0.0)


def hit_rate_at_k(ranks_N: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """1 for each ranking whose relevant item is within the first k, else 0."""
    return (ranks_N <= k).astype(np.float64)


def reciprocal_rank(ranks_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / rank of each ranking."""
    return 1.0 / ranks_N


class Quality(TypedDict):
    """Mean quality of one ranking over many events, as reports have it; zeros over none."""

    ndcg_at_10: float
    hit_rate_at_10: float
    mrr: float
    ndcg_at_10_by_quarter: list[float]


def quality_of(
    ranks_N: NDArray[np.float64], quarters_N: NDArray[np.int64], reported: tuple[int, ...]
) -> Quality:
    """Mean quality over the events of the `reported` quarters, and NDCG@10 of each of the four.

    Args:
        ranks_N: Rank of each event's item.
        quarters_N: Quarter of the stream that each event is in, 0 to 3.
        reported: Quarters that the overall figures cover; the others chose the settings.
    """
    covered_N = ranks_N[np.isin(quarters_N, reported)]
    return Quality(
        ndcg_at_10=_mean(ndcg_at_k(covered_N, 10)),
        hit_rate_at_10=_mean(hit_rate_at_k(covered_N, 10)),
        mrr=_mean(reciprocal_rank(covered_N)),
        ndcg_at_10_by_quarter=[
            _mean(ndcg_at_k(ranks_N[quarters_N == quarter], 10)) for quarter in range(4)
        ],
    )


def _mean(values_N: NDArray[np.float64]) -> float:
    return float(values_N.mean()) if values_N.size else 0.0
