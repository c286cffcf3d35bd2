"""Shapes of the answers, for OpenAPI and for the tests; serving itself does not run them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """What every answer carries."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_version: int = Field(description="0 before the first version")
    trained_through: list[int] = Field(description="Per shard: last offset the weights learned")
    counters_through: list[int] = Field(description="Per shard: last offset the counters counted")
    counters_behind: bool = Field(description="The counters could not be followed just now")
    staleness_ms: int = Field(description="Age of the oldest known event not learned from; 0: none")
    request_id: str
    replica: str


class EventsAnswer(Answer):
    """Everything accepted is on disk."""

    accepted: int
    duplicates: int = Field(description="Known by their event_id; they changed nothing")
    unknown_items: int = Field(description="Events of items that are not in the catalogue")
    offsets: dict[str, int] = Field(description="Per shard that took part: its last offset")


class ItemsPutAnswer(Answer):
    """The catalogue after the write."""

    created: int
    updated: int
    unchanged: int
    pending: int = Field(description="Stored, but BERT has yet to read them")
    num_items: int
    revision: int


class ItemShape(BaseModel):
    """An item as it was stored."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    title: str
    text: str
    categories: list[str]
    attributes: dict[str, Any]


class ItemAnswer(Answer, ItemShape):
    """One item."""


class ItemsAnswer(Answer):
    """A page of items."""

    items: list[ItemShape]
    num_items: int
    next_after: str | None = Field(description="Send as `after` for the next page; null at the end")


class InfluenceShape(BaseModel):
    """An item of the user's history that pulled a recommendation up."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    title: str | None = None
    pull: float = Field(description="What the item would lose without it, in lifts")
    by: dict[str, float] = Field(description="The pull by component; sums to it")


class ExplanationShape(BaseModel):
    """Why one item."""

    model_config = ConfigDict(extra="forbid")

    lifts: dict[str, float] = Field(
        description="By component: weight times standard deviations above the mean item"
    )
    because: list[InfluenceShape] = Field(description="At most three, strongest first")


class ExplainedShape(BaseModel):
    """What the explanations were made from, beside the version and counters of the answer."""

    model_config = ConfigDict(extra="forbid")

    methods: dict[str, str] = Field(description="How pulls are found, by component")
    history_items: int = Field(description="Latest items of the history that are looked at")
    counted_events: int
    counters_sequence: int
    popularity_half_life: float = Field(description="In events")


class RecommendedItem(BaseModel):
    """One recommendation."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    title: str | None = None
    score: float
    shares: dict[str, float] = Field(description="Which components put it there; sums to 1")
    exploration: bool = Field(
        default=False, description="Shown because nobody has had an event on it; absent if not"
    )
    explanation: ExplanationShape | None = Field(default=None, description="If asked for")


class RecommendAnswer(Answer):
    """Best first."""

    items: list[RecommendedItem]
    served: str = Field(description="`blend`, the component that the guard serves, or `none`")
    weights: dict[str, float] = Field(description="How much each component counts for this user")
    cold_start: bool = Field(description="Nothing is known of this user")
    degraded: bool = Field(description="The user's history could not be read")
    history_length: int
    unknown_ids: int | None = Field(default=None, description="Ids in the request that are no item")
    reason: str | None = Field(default=None, description="Why there is nothing, if so")
    explained: ExplainedShape | None = Field(default=None, description="If asked for")
    ranks: dict[str, dict[str, float] | None] | None = Field(
        default=None,
        description="For each id of `rank_of`: average-tie rank among the eligible by each "
        "component, null if it may not be recommended",
    )


class SimilarItem(BaseModel):
    """One neighbour."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    title: str | None = None
    similarity: float


class SimilarAnswer(Answer):
    """Most similar first."""

    item_id: str
    items: list[SimilarItem]


class ManifestShape(BaseModel):
    """What a version is and where it came from."""

    model_config = ConfigDict(extra="forbid")

    version: int
    parent: int
    created_ms: int
    trained_through: list[int]
    num_items: int
    step: int
    reason: str
    settings: dict[str, Any]
    metrics: dict[str, float | None]
    checksums: dict[str, str]
    encoder: str
    quarantined: list[tuple[int, int, int]] = Field(
        description="Events that no version learns: shard, first and last offset"
    )


class FollowShape(BaseModel):
    """How following one actor goes."""

    model_config = ConfigDict(extra="forbid")

    caught_up: bool
    failures: int
    last_error: str


class BlendShape(BaseModel):
    """By bucket of history length (0, 1-4, 5-19, 20 and more)."""

    model_config = ConfigDict(extra="forbid")

    quality: dict[str, list[float]] = Field(
        description="Discounted NDCG@10 that the guard compares"
    )
    weights: dict[str, list[float]]


class ModelAnswer(Answer):
    """The served version."""

    head: ManifestShape | None
    sequence: int = Field(description="Rises with every move of the head, also backwards")
    reason: str | None
    progressive: dict[str, float | None] = Field(
        description="Quality on events before they were learned"
    )
    blend: BlendShape
    num_items: int
    counted_events: int
    follower: dict[str, FollowShape]


class VersionShape(BaseModel):
    """One kept version."""

    model_config = ConfigDict(extra="forbid")

    manifest: ManifestShape
    is_head: bool
    is_pinned: bool
    size_bytes: int


class VersionsAnswer(Answer):
    """Newest first."""

    versions: list[VersionShape]


class HeadAnswer(Answer):
    """The head after the move. `model_version` may still be the one before, for milliseconds."""

    head: int
    sequence: int
    reason: str


class StateAnswer(Answer):
    """All is well."""

    status: str


class ErrorShape(BaseModel):
    """One thing that is wrong."""

    pointer: str
    code: str
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457. Never repeats what was sent."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[ErrorShape] | None = None
    errors_omitted: int | None = None
