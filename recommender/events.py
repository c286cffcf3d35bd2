"""What a user did and what there is to recommend: the two records every other module speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

EVENT_TYPES: tuple[str, ...] = (
    "view",
    "click",
    "like",
    "dislike",
    "add_to_cart",
    "purchase",
    "return",
    "play",
    "skip",
    "share",
    "rating",
)
NUM_RATINGS = 5
NUM_FEEDBACK = 1 + NUM_RATINGS + len(EVENT_TYPES)
"""Size of the feedback vocabulary: 0 is unknown, 1..5 are star ratings, the rest event types."""

NUM_GAPS = 14
"""Size of the time-gap vocabulary: 0 is no gap (and the first event), 1..13 by powers of 4."""

Attribute = str | float | bool


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction. `value` is a rating, a quantity, or 1.0 where the type says it all."""

    event_id: str
    user_id: str
    item_id: str
    event_type: str
    value: float
    timestamp_ms: int
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be recommended. `text` is what BERT reads."""

    item_id: str
    text: str
    title: str = ""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


def feedback_code(event_type: str, value: float) -> int:
    """Index in [0, NUM_FEEDBACK) of the embedding for what kind of feedback an event is."""
    if event_type == "rating":
        return min(NUM_RATINGS, max(1, round(value)))
    if event_type in EVENT_TYPES:
        return 1 + NUM_RATINGS + EVENT_TYPES.index(event_type)
    return 0


def feedback_codes(
    event_types_N: NDArray[np.str_], values_N: NDArray[np.floating[Any]]
) -> NDArray[np.int8]:
    """`feedback_code` of every event at once."""
    codes_N = np.zeros(len(event_types_N), dtype=np.int8)
    for index, event_type in enumerate(EVENT_TYPES):
        codes_N[event_types_N == event_type] = 1 + NUM_RATINGS + index
    is_rating_N = event_types_N == "rating"
    codes_N[is_rating_N] = np.clip(np.rint(values_N[is_rating_N]), 1, NUM_RATINGS)
    return codes_N


def gap_code(gap_s: int) -> int:
    """Index in [0, NUM_GAPS) of the embedding for the time since the user's previous event.

    0 if 0 s, else min(12, floor(log2 s) // 2 + 1). Negative gaps (late events) count as 0 s.
    """
    if gap_s <= 0:
        return 0
    return min(12, (gap_s.bit_length() - 1) // 2 + 1)
