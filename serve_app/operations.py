"""What each route takes and gives, with an example: the table behind the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.answers import (
    Answer,
    EventsAnswer,
    HeadAnswer,
    ItemAnswer,
    ItemsAnswer,
    ItemsPutAnswer,
    ModelAnswer,
    RecommendAnswer,
    SimilarAnswer,
    StateAnswer,
    VersionsAnswer,
)
from serve_app.schemas import (
    EventBatch,
    EventBody,
    ItemBatch,
    ItemBody,
    MoveHeadBody,
    RecommendBody,
    RollbackBody,
    StrictBody,
)

_READS = ("overloaded", "deadline-exceeded", "internal")
_QUERIES = ("validation", *_READS)
_BODIES = (
    "malformed-json",
    "non-finite-number",
    "duplicate-key",
    "invalid-text",
    "body-too-large",
    "unsupported-media-type",
    *_QUERIES,
)
_STORAGE = ("shard-unavailable", "storage-full", "storage-error")
PROVENANCE_EXAMPLE: Mapping[str, Any] = {
    "model_version": 41,
    "trained_through": [51234, 50987],
    "counters_through": [51260, 51011],
    "counters_behind": False,
    "staleness_ms": 1840,
    "request_id": "0d6f1c1e5b8f4d0f9a64d1f0a1b2c3d4",
    "replica": "x7k2p9",
}
_MANIFEST = {
    "version": 41,
    "parent": 40,
    "created_ms": 1764000000000,
    "trained_through": [51234, 50987],
    "num_items": 1682,
    "step": 14320,
    "reason": "round",
    "settings": {},
    "metrics": {"ndcg_at_10": 0.121},
    "checksums": {},
    "encoder": "minilm",
    "quarantined": [],
}
_EVENT = {
    "event_id": "web-8812-1",
    "user_id": "anna",
    "item_id": "film-50",
    "event_type": "rating",
    "value": 5.0,
    "timestamp_ms": 1764000000000,
}
_ITEM = {
    "item_id": "film-50",
    "text": "Star Wars (1977). Genres: Action, Adventure, Sci-Fi",
    "title": "Star Wars (1977)",
    "categories": ["Sci-Fi"],
    "attributes": {"year": 1977},
}


@dataclass(frozen=True)
class Operation:
    """Documentation of one route. `problems` are slugs of `PROBLEM_TYPES`."""

    answer: type[Answer]
    answer_example: Mapping[str, Any]
    problems: tuple[str, ...]
    tag: str
    status: int = 200
    bodies: tuple[type[StrictBody], ...] = ()
    body_examples: Mapping[str, Any] = field(default_factory=dict)
    body_required: bool = True
    query: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


_K = {"k": ("How many, 10 if missing", {"type": "integer", "minimum": 1, "default": 10})}

OPERATIONS: Mapping[str, Operation] = {
    "post_events": Operation(
        EventsAnswer,
        {"accepted": 1, "duplicates": 0, "unknown_items": 0, "offsets": {"0": 51261}},
        (*_BODIES, *_STORAGE, "timestamp-range", "batch-size", "buffer-full", "memory-full"),
        tag="events",
        status=202,
        bodies=(EventBody, EventBatch),
        body_examples={"one": _EVENT, "many": {"events": [_EVENT]}},
    ),
    "put_items": Operation(
        ItemsPutAnswer,
        {
            "created": 1,
            "updated": 0,
            "unchanged": 0,
            "pending": 0,
            "num_items": 1683,
            "revision": 1683,
        },
        (*_BODIES, *_STORAGE, "batch-size"),
        tag="items",
        bodies=(ItemBody, ItemBatch),
        body_examples={"one": _ITEM, "many": {"items": [_ITEM]}},
    ),
    "list_items": Operation(
        ItemsAnswer,
        {"items": [_ITEM], "num_items": 1682, "next_after": "film-50"},
        _QUERIES,
        tag="items",
        query={
            "limit": ("Items of a page", {"type": "integer", "minimum": 1, "default": 100}),
            "after": ("Id of the last item of the page before", {"type": "string"}),
        },
    ),
    "get_item": Operation(
        ItemAnswer, _ITEM, (*_QUERIES, "not-found", "shard-unavailable"), tag="items"
    ),
    "similar_items": Operation(
        SimilarAnswer,
        {
            "item_id": "film-50",
            "items": [{"item_id": "film-172", "title": "Empire", "similarity": 0.93}],
        },
        (*_QUERIES, "not-found"),
        tag="recommendations",
        query=_K,
    ),
    "recommend": Operation(
        RecommendAnswer,
        {
            "items": [
                {
                    "item_id": "film-172",
                    "title": "Empire Strikes Back, The (1980)",
                    "score": 3.417,
                    "shares": {"net": 0.44, "rules": 0.38, "popularity": 0.1, "content": 0.08},
                    "explanation": {
                        "lifts": {"net": 1.21, "rules": 1.05, "popularity": 0.28, "content": 0.22},
                        "because": [
                            {
                                "item_id": "film-50",
                                "title": "Star Wars (1977)",
                                "pull": 1.31,
                                "by": {"net": 0.52, "rules": 0.71, "content": 0.08},
                            }
                        ],
                    },
                }
            ],
            "explained": {
                "methods": {"net": "leave-one-out", "rules": "exact", "content": "exact"},
                "history_items": 20,
                "counted_events": 102271,
                "counters_sequence": 102271,
                "popularity_half_life": 2000.0,
            },
            "served": "blend",
            "weights": {"net": 0.4, "rules": 0.35, "popularity": 0.15, "content": 0.1},
            "cold_start": False,
            "degraded": False,
            "history_length": 12,
        },
        (*_BODIES, "timestamp-range"),
        tag="recommendations",
        bodies=(RecommendBody,),
        body_examples={
            "user": {"user_id": "anna", "k": 10},
            "explained": {"user_id": "anna", "k": 3, "explain": True},
            "history": {"history": [{"item_id": "film-50"}], "categories": ["Sci-Fi"]},
        },
    ),
    "get_model": Operation(
        ModelAnswer,
        {
            "head": _MANIFEST,
            "sequence": 41,
            "reason": "published",
            "progressive": {"ndcg_at_10": 0.121},
            "blend": {"quality": {"blend": [0.2, 0.15, 0.12, 0.1]}, "weights": {}},
            "num_items": 1682,
            "counted_events": 102271,
            "follower": {"head": {"caught_up": True, "failures": 0, "last_error": ""}},
        },
        _QUERIES,
        tag="model",
    ),
    "list_versions": Operation(
        VersionsAnswer,
        {
            "versions": [
                {"manifest": _MANIFEST, "is_head": True, "is_pinned": False, "size_bytes": 3418112}
            ]
        },
        (*_QUERIES, "shard-unavailable"),
        tag="model",
    ),
    "promote_version": Operation(
        HeadAnswer,
        {"head": 39, "sequence": 42, "reason": "better on the weekend"},
        (*_BODIES, *_STORAGE, "not-found", "version-conflict"),
        tag="model",
        bodies=(MoveHeadBody,),
        body_examples={"reason": {"reason": "better on the weekend"}},
        body_required=False,
    ),
    "roll_back": Operation(
        HeadAnswer,
        {"head": 40, "sequence": 43, "reason": "clicks fell"},
        (*_BODIES, *_STORAGE, "not-found", "version-conflict"),
        tag="model",
        bodies=(RollbackBody,),
        body_examples={"reason": {"reason": "clicks fell"}},
    ),
    "healthz": Operation(StateAnswer, {"status": "ok"}, ("internal",), tag="state"),
    "readyz": Operation(StateAnswer, {"status": "ready"}, ("not-ready", "internal"), tag="state"),
}
