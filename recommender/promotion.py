"""Whether a candidate version may be served: a decision is a value with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommender.metrics import ndcg_at_k
from recommender.replay import windows_before
from recommender.scorer import Scorer
from recommender.windows import Windows


class Verdict(Enum):
    """What to do with a candidate."""

    PROMOTE = "promote"
    REJECT = "reject"


@dataclass(frozen=True)
class Decision:
    """A verdict, why, and the numbers it rests on."""

    verdict: Verdict
    reason: str
    metrics: Mapping[str, float] = field(default_factory=dict)


def judge(
    candidate_N: NDArray[np.float64],
    head_N: NDArray[np.float64],
    *,
    margin: float = 0.10,
    num_errors: float = 3.0,
) -> Decision:
    """The forgetting guard: compare two versions on the same held-out memory.

    Args:
        candidate_N: Per-window NDCG@10 of the candidate, in [0, 1].
        head_N: The same windows' NDCG@10 of the version that is served.
        margin: Share of the head's mean that the candidate may lose.
        num_errors: Standard errors of the paired difference below which a loss is noise.

    Returns:
        REJECT if the candidate loses more than `margin` and more than noise explains.

    Raises:
        ValueError: If the two are of different length.
    """
    if len(candidate_N) != len(head_N):
        raise ValueError(f"{len(candidate_N)} candidate results and {len(head_N)} of the head")
    if not len(head_N):
        return Decision(Verdict.PROMOTE, "no memory to compare on yet")
    candidate, head = float(candidate_N.mean()), float(head_N.mean())
    difference_N = candidate_N - head_N
    error = float(difference_N.std()) / math.sqrt(len(difference_N))
    loss = head - candidate
    metrics = {"memory_ndcg_at_10": candidate, "memory_ndcg_at_10_head": head}
    if loss > margin * head and loss > num_errors * error:
        reason = (
            f"memory NDCG@10 fell from {head:.4f} to {candidate:.4f}: more than {margin:.0%} and "
            f"than {num_errors:g} standard errors ({error:.4f})"
        )
        return Decision(Verdict.REJECT, reason, metrics)
    return Decision(Verdict.PROMOTE, "not worse on memory", metrics)


def find_non_finite(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Name of the first array that holds a NaN or an infinity, or None."""
    for name, values in arrays.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            return name
    return None


def memory_ndcg(
    scorer: Scorer, probes: Windows, popularity_MV: NDArray[np.float32]
) -> NDArray[np.float64]:
    """NDCG@10 of predicting the last item of each window from the ones before it, float64 [B].

    Items of the window before the last are left out, as serving would. Ties count half. No window
    may be empty.
    """
    row_B = np.arange(len(probes))
    targets_B = probes.items_BT[row_B, probes.lengths_B - 1]
    history = windows_before(probes)
    scores_BV = scorer.net_scores(history, popularity_MV)
    target_scores_B = scores_BV[row_B, targets_B]
    seen = history.items_BT >= 0
    rows, _ = np.nonzero(seen)
    scores_BV[rows, history.items_BT[seen]] = -np.inf
    scores_BV[row_B, targets_B] = target_scores_B
    better_B = (scores_BV > target_scores_B[:, None]).sum(axis=1)
    equal_B = (scores_BV == target_scores_B[:, None]).sum(axis=1) - 1
    rank_B = 1 + better_B + equal_B / 2
    return ndcg_at_k(rank_B, 10)
