"""Whether a version may be served, or must go: a decision is a value with a reason.

Axes: N compared rankings, the same ones for both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Compared = tuple[NDArray[np.float64], NDArray[np.float64]]
"""NDCG@10 of the same rankings by one version and by another, both [N]."""

NEWEST = "newest"
"""Name of the slice of the latest held-out events; all others are of the past."""

MEMORY = "memory"
"""Name of the slice of replayed events, when none are held out."""

_MIN_SLICE = 30  # rankings of one period below which it is judged only together with the others


class Verdict(Enum):
    """What to do with a candidate, or with the head."""

    PROMOTE = "promote"
    REJECT = "reject"
    KEEP = "keep"
    ROLL_BACK = "roll_back"
    ADAPT = "adapt"


@dataclass(frozen=True)
class Decision:
    """A verdict, why, and the numbers it rests on."""

    verdict: Verdict
    reason: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A paired comparison: the means of both sides and the standard error of their difference."""

    candidate: float
    head: float
    error: float

    @classmethod
    def of(cls, candidate_N: NDArray[np.float64], head_N: NDArray[np.float64]) -> Difference:
        """Compare two versions on the same rankings.

        Raises:
            ValueError: If the two are of different length, or empty.
        """
        if len(candidate_N) != len(head_N):
            raise ValueError(f"{len(candidate_N)} candidate results and {len(head_N)} of the head")
        error = float((candidate_N - head_N).std()) / math.sqrt(len(head_N))
        return cls(float(candidate_N.mean()), float(head_N.mean()), error)

    def is_loss(self, margin: float, num_errors: float) -> bool:
        """Whether more than `margin` of the head's mean is lost, and more than noise explains."""
        loss = self.head - self.candidate
        return loss > margin * self.head and loss > num_errors * self.error

    def is_gain(self, num_errors: float) -> bool:
        """Whether the candidate is better by more than noise explains."""
        gain = self.candidate - self.head
        return gain > 0 and gain > num_errors * self.error

    def __str__(self) -> str:
        return f"{self.head:.4f} to {self.candidate:.4f} (standard error {self.error:.4f})"


def judge(
    slices: Mapping[str, Compared], *, margin: float = 0.10, num_errors: float = 3.0
) -> Decision:
    """The forgetting guard: compare a candidate with the head on the same events.

    A candidate must not be worse on the newest events. On those of the past it may be worse only if
    it is better on the newest ones: where the world has changed, to forget is to learn.

    Args:
        slices: By name, NDCG@10 of the candidate and of the head; `NEWEST` and one each period, or
            `MEMORY` alone.
        margin: Share of the head's mean that the candidate may lose; a single period may lose twice
            that, because the worst of several is worse by chance.
        num_errors: Standard errors of the paired difference below which a loss is noise; for a
            single period one more.

    Returns:
        PROMOTE or REJECT.

    Raises:
        ValueError: If the results of a slice are of different length.
    """
    compared = {name: Difference.of(*both) for name, both in slices.items() if len(both[1])}
    periods = {name: slices[name] for name in compared if name != NEWEST}
    metrics: dict[str, float] = {}
    newest = compared.get(NEWEST)
    if newest is not None:
        metrics |= {
            "newest_ndcg_at_10": newest.candidate,
            "newest_ndcg_at_10_head": newest.head,
        }
        if newest.is_loss(margin, num_errors):
            reason = f"NDCG@10 of the newest held-out events fell from {newest}"
            return Decision(Verdict.REJECT, reason, metrics)
    if not periods:
        reason = "no memory to compare on yet" if newest is None else "not worse on newest events"
        return Decision(Verdict.PROMOTE, reason, metrics)
    memory = Difference.of(
        *(np.concatenate([both[side] for both in periods.values()]) for side in (0, 1))
    )
    metrics |= {"memory_ndcg_at_10": memory.candidate, "memory_ndcg_at_10_head": memory.head}
    loss = None
    if memory.is_loss(margin, num_errors):
        loss = f"memory NDCG@10 fell from {memory}"
    for name, (_, head_N) in periods.items():
        is_large = len(head_N) >= _MIN_SLICE
        if loss is None and is_large and compared[name].is_loss(2 * margin, num_errors + 1):
            loss = f"memory NDCG@10 of the period up to event {name} fell from {compared[name]}"
    if loss is None:
        return Decision(Verdict.PROMOTE, "not worse on memory", metrics)
    if newest is not None and newest.is_gain(num_errors):
        return Decision(Verdict.PROMOTE, f"{loss}, but on the newest rose from {newest}", metrics)
    return Decision(Verdict.REJECT, loss, metrics)


def find_fault(
    candidate: Mapping[str, NDArray[Any]], head: Mapping[str, NDArray[Any]] | None
) -> str | None:
    """Why a candidate's arrays can never be served, or None.

    They must be finite, and those of the head with the same number of axes and types; an axis may
    only grow (the catalogue does).
    """
    if (name := find_non_finite(candidate)) is not None:
        return f"{name} holds a value that is not finite"
    if head is None:
        return None
    if candidate.keys() != head.keys():
        return f"arrays {sorted(candidate.keys() ^ head.keys())} are only on one side"
    for name, old in head.items():
        new = candidate[name]
        fits = new.ndim == old.ndim and new.dtype == old.dtype
        if not fits or any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
            return f"{name} is {new.dtype}{new.shape}, the head's is {old.dtype}{old.shape}"
    return None


def find_non_finite(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Name of the first array that holds a NaN or an infinity, or None."""
    for name, values in arrays.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            return name
    return None
