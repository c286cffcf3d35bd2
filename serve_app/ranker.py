"""From a user's history and the state as of now to an answer. No HTTP, no waiting.

Axes: V items of the catalogue, H items of a history, C components, K recommended items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.blend import BLEND
from recommender.explanation import Explanation, Ranked, explain
from recommender.exploration import num_slots, with_unseen
from recommender.ranking import (
    BLEND_HALF_LIFE,
    History,
    component_scores,
    content_scores,
    eligible_items,
    nearest_half_life,
    ranks_of,
    top_k,
)
from serve_app.live_state import LiveState

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for. Item ids that do not exist are ignored and counted."""

    k: int
    candidates: Sequence[str] | None = None
    categories: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    exclude_seen: bool = True
    rank_of: Sequence[str] = ()
    explain: bool = False
    exploration_slots: int = 0
    exploration_seed: int = 0


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended row.

    `shares` says which components put it there, summing to 1. `is_exploration`: it is there because
    nobody has had an event on it.
    """

    row: int
    score: float
    shares: Mapping[str, float]
    is_exploration: bool = False
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to a query.

    Attributes:
        recommendations: Best first, at most k.
        served: `blend`, or the component that the guard put in its place, or `none`.
        weights: How much each component counts for this user, summing to 1.
        reason: Why there is nothing, if there is nothing.
        unknown_ids: Ids in the query that are no items.
        ranks: For each id of `rank_of`, its rank by the blend and by each component; None if it may
            not be recommended.
    """

    recommendations: Sequence[Recommendation]
    served: str
    weights: Mapping[str, float]
    reason: str | None
    unknown_ids: int
    ranks: Mapping[str, Mapping[str, float] | None]


def rank(state: LiveState, history: History, query: Query) -> Ranking:
    """Rank what the query allows, by the served version and the counters as of now."""
    eligible_V, unknown_ids = _eligible(state, history, query)
    if not eligible_V.any():
        nothing = dict.fromkeys(query.rank_of)
        return Ranking((), "none", {}, _reason(state, query), unknown_ids, nothing)
    components = score_components(state, history)
    blended = state.blend.scores(components, eligible_V, len(history))
    ranked = Ranked(
        scorer=None if state.model is None else state.model.scorer,
        counters=state.counters,
        text_unit_VD=state.text_unit_VD,
        history=history,
        components=components,
        weights=blended.shares,
        eligible_V=eligible_V,
        factors=None if state.model is None else state.model.factors,
    )
    rows, explores = _chosen(ranked, top_k(blended.scores_V, eligible_V, query.k), query)
    shares = _shares(ranked, rows)
    explanations = explain(ranked, rows) if query.explain else [None] * len(rows)
    return Ranking(
        recommendations=[
            Recommendation(*fields)
            for fields in zip(
                rows.tolist(),
                blended.scores_V[rows].tolist(),
                shares,
                explores.tolist(),
                explanations,
                strict=True,
            )
        ],
        served=blended.served,
        weights=blended.shares,
        reason=None,
        unknown_ids=unknown_ids,
        ranks=_ranks(state, query.rank_of, {BLEND: blended.scores_V, **components}, eligible_V),
    )


def score_components(state: LiveState, history: History) -> dict[str, Floats]:
    """Every component's scores, each [V]. Before the first version, texts speak untrained."""
    scorer = None if state.model is None else state.model.scorer
    components = component_scores(
        scorer,
        state.counters,
        history,
        half_life_index=nearest_half_life(state.counters.half_lives, BLEND_HALF_LIFE),
        num_items=state.catalog.num_items,
        factors=None if state.model is None else state.model.factors,
    )
    if scorer is None:
        components["content"] = content_scores(state.text_unit_VD, history.rows_H)
    return components


def similar_rows(state: LiveState, row: int, k: int) -> list[tuple[int, float]]:
    """The k items most like one, with cosines: by learned vectors, by text before there are any."""
    model = state.model
    vectors_VD = state.text_unit_VD if model is None else model.scorer.item_vectors
    norms_V = np.linalg.norm(vectors_VD, axis=1) + np.float32(1e-12)
    cosines_V = (vectors_VD @ vectors_VD[row]) / (norms_V * norms_V[row])
    others_V = np.ones(len(cosines_V), np.bool_)
    others_V[row] = False
    rows = top_k(cosines_V, others_V, k)
    return list(zip(rows.tolist(), cosines_V[rows].tolist(), strict=True))


def _eligible(state: LiveState, history: History, query: Query) -> tuple[NDArray[np.bool_], int]:
    catalog = state.catalog
    exclude = catalog.rows(query.exclude)
    unknown_ids = len(query.exclude) - len(exclude)
    eligible_V = eligible_items(
        catalog.num_items, history.rows_H if query.exclude_seen else _NO_ROWS
    )
    eligible_V[exclude] = False
    if query.candidates is not None:
        candidates = catalog.rows(query.candidates)
        unknown_ids += len(query.candidates) - len(candidates)
        is_candidate_V = np.zeros(catalog.num_items, np.bool_)
        is_candidate_V[candidates] = True
        eligible_V &= is_candidate_V
    if query.categories is not None:
        eligible_V &= catalog.mask(query.categories)
    return eligible_V, unknown_ids


def _reason(state: LiveState, query: Query) -> str:
    if not state.catalog.num_items:
        return "the catalogue is empty"
    if query.candidates is not None and not len(state.catalog.rows(query.candidates)):
        return "no candidate is an item of the catalogue"
    return "every item is seen, excluded, or outside the categories and candidates asked for"


def _chosen(
    ranked: Ranked, best_K: NDArray[np.int32], query: Query
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The best rows, the last places of which may go to unseen items; and which places do."""
    num = num_slots(query.k, query.exploration_slots)
    if not num:
        return best_K, np.zeros(len(best_K), np.bool_)
    return with_unseen(
        best_K,
        query.k,
        content_scores(ranked.text_unit_VD, ranked.history.rows_H),
        ranked.eligible_V & ~ranked.counters.touched(),
        num=num,
        seed=query.exploration_seed,
    )


def _shares(ranked: Ranked, rows_K: NDArray[np.int32]) -> list[dict[str, float]]:
    """Which part of an item's lift above the average item comes from each component.

    An item that no component lifts is there for want of better: then the weights say it all.
    """
    names = list(ranked.weights)
    lifts_CK = np.maximum(np.array(list(ranked.lifts(rows_K).values())), 0.0)
    totals_K = lifts_CK.sum(axis=0)
    weights_C1 = np.array([[weight] for weight in ranked.weights.values()])
    shares_CK = np.where(totals_K > 0, lifts_CK / np.where(totals_K > 0, totals_K, 1.0), weights_C1)
    return [dict(zip(names, column, strict=True)) for column in shares_CK.T.round(4).tolist()]


def _ranks(
    state: LiveState,
    item_ids: Sequence[str],
    scores: Mapping[str, Floats],
    eligible_V: NDArray[np.bool_],
) -> dict[str, Mapping[str, float] | None]:
    ranked = {
        item_id: row
        for item_id in item_ids
        if (row := state.catalog.row(item_id)) is not None and eligible_V[row]
    }
    rows = np.array(list(ranked.values()), np.int64)
    by_score = (
        {name: ranks_of(scores_V, eligible_V, rows).tolist() for name, scores_V in scores.items()}
        if ranked
        else {}
    )
    ranks: dict[str, Mapping[str, float] | None] = dict.fromkeys(item_ids)
    for place, item_id in enumerate(ranked):
        ranks[item_id] = {name: of_all[place] for name, of_all in by_score.items()}
    return ranks


_NO_ROWS = np.zeros(0, np.int32)
