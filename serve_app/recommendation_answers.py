"""A ranking and its explanations as the JSON that a client gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recommender.explanation import EXPLAINED_ITEMS, METHODS, Explanation
from recommender.ranking import BLEND_HALF_LIFE, History, nearest_half_life
from serve_app.live_state import LiveState
from serve_app.ranker import Ranking, Recommendation

Answer = dict[str, Any]


def recommendation_answer(
    state: LiveState, ranking: Ranking, history: History, degraded: bool
) -> Answer:
    """The items of a ranking, and what they rest on."""
    answer: Answer = {
        "items": [_item(state, recommendation) for recommendation in ranking.recommendations],
        "served": ranking.served,
        "weights": _rounded(ranking.weights),
        "cold_start": len(history) == 0,
        "degraded": degraded,
        "history_length": len(history),
    }
    if ranking.unknown_ids:
        answer["unknown_ids"] = ranking.unknown_ids
    if ranking.reason is not None:
        answer["reason"] = ranking.reason
    return answer


def explained_answer(state: LiveState) -> Answer:
    """What explanations are made from, beside the version and counters of every answer."""
    counters = state.counters
    half_life = counters.half_lives[nearest_half_life(counters.half_lives, BLEND_HALF_LIFE)]
    return {
        "methods": METHODS,
        "history_items": EXPLAINED_ITEMS,
        "counted_events": counters.num_events,
        "counters_sequence": state.counters_sequence,
        "popularity_half_life": half_life,
    }


def titled(state: LiveState, row: int) -> Answer:
    """An item's id, and its title if it has one."""
    item = state.catalog.items[row]
    named = {"item_id": item.item_id}
    return {**named, "title": item.title} if item.title else named


def _item(state: LiveState, recommendation: Recommendation) -> Answer:
    answer: Answer = {
        **titled(state, recommendation.row),
        "score": round(recommendation.score, 6),
        "shares": recommendation.shares,
    }
    if recommendation.is_exploration:
        answer["exploration"] = True
    if recommendation.explanation is not None:
        answer["explanation"] = _explanation(state, recommendation.explanation)
    return answer


def _explanation(state: LiveState, explanation: Explanation) -> Answer:
    return {
        "lifts": _rounded(explanation.lifts),
        "because": [
            {
                **titled(state, influence.row),
                "pull": round(influence.pull, 4),
                "by": _rounded(influence.by_component),
            }
            for influence in explanation.because
        ],
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
