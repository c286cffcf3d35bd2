"""Which events an evaluation predicts, and the parts of them that are reported apart.

Axes: N events of the dataset, K scored events.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recommender.blend import BUCKET_STARTS
from recommender.datasets import Dataset

Protocol = Literal["events", "baskets"]
"""What is predicted in the stream.

`events`: every fifth event, for streams where one thing comes after the other. `baskets`: the first
line of every basket, for shops. A basket is what one user did at one time, and its later lines were
decided with the first: predicting them would measure how well a basket is completed, and a basket
of a hundred lines would count a hundred times.
"""

NUM_QUARTERS = 4
_SCORE_EVERY = 5
_FIRST_SCORED = 2
_FIRST_EVENTS = 5
_NEGATIVE_TYPES = ("return", "dislike", "skip")


def scored_events(dataset: Dataset, protocol: Protocol, start: int, stop: int) -> NDArray[np.bool_]:
    """Which events of the stream [start, stop) to predict, [N].

    In baskets, a return (or dislike, or skip) says nothing about what to recommend: it is learned
    from as what happened, but never predicted.
    """
    selected_N = np.zeros(len(dataset), np.bool_)
    if protocol == "events":
        selected_N[start + _FIRST_SCORED : stop : _SCORE_EVERY] = True
        return selected_N
    positive = np.flatnonzero(~np.isin(dataset.event_types_N, _NEGATIVE_TYPES))
    baskets = np.stack([dataset.users_N[positive], dataset.timestamps_ms_N[positive]])
    _, firsts = np.unique(baskets, axis=1, return_index=True)
    first_lines = positive[firsts]
    selected_N[first_lines[(first_lines >= start) & (first_lines < stop)]] = True
    return selected_N


def slices_of(
    dataset: Dataset, indices_K: NDArray[np.int64], start: int
) -> dict[str, NDArray[np.bool_]]:
    """Masks [K] over scored events, by the name of the slice; they overlap and may be empty.

    Args:
        dataset: What was replayed.
        indices_K: Position of each scored event in the dataset.
        start: First event of the stream; those before it were learned as a whole.

    Returns:
        `new users`: the first five events of users who had none before the stream. `new items`:
        items without an event before the stream. `history a-b`: by how many events the user had, in
        the blend's buckets.
    """
    num_before_K = _events_before(dataset.users_N)[indices_K]
    new_user_K = _first_event(dataset.users_N)[indices_K] >= start
    new_item_K = _first_event(dataset.rows_N)[indices_K] >= start
    slices = {
        "new users": new_user_K & (num_before_K < _FIRST_EVENTS),
        "new items": new_item_K,
    }
    for low, high in zip(BUCKET_STARTS, (*BUCKET_STARTS[1:], None), strict=True):
        name = f"history {_span(low, high)}"
        below_K = np.True_ if high is None else num_before_K < high
        slices[name] = (num_before_K >= low) & below_K
    return slices


def _events_before(users_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many events the user of each event had before it, [N]."""
    order_N = np.argsort(users_N, kind="stable")
    _, firsts, counts = np.unique(users_N[order_N], return_index=True, return_counts=True)
    before_N = np.empty(len(users_N), np.int64)
    before_N[order_N] = np.arange(len(users_N)) - np.repeat(firsts, counts)
    return before_N


def _first_event(codes_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Index of the first event with the same code, [N]."""
    _, firsts, inverse_N = np.unique(codes_N, return_index=True, return_inverse=True)
    return np.asarray(firsts[inverse_N], np.int64)


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if high == low + 1 else f"{low}-{high - 1}"
