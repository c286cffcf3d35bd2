"""Request bodies: strict models, checked before anything is done.

Bounds that are settings travel in pydantic's validation context (`RequestLimits`), so that one
process can serve with any settings and the models stay module-level.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from recommender.events import EVENT_TYPES, Event, Item
from serve_app.problems import validation_problem

MAX_ID_CHARS = 128
MAX_ID_BYTES = 256
MAX_TEXT_CHARS = 20_000
MAX_ATTRIBUTES = 64
MAX_HISTORY = 1_000
MAX_RANK_OF = 100
OLDEST_TIMESTAMP_MS = 631_152_000_000  # 1990-01-01: seconds sent as milliseconds are of 1970
FUTURE_TOLERANCE_MS = 5 * 60 * 1_000

_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Control, format, surrogate, private use, unassigned: invisible or not the same everywhere."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What the settings and the clock allow a request."""

    now_ms: int
    max_batch: int = 1_000
    max_k: int = 1_000
    max_candidates: int = 10_000


def _identifier(value: str) -> str:
    if value.strip() != value:
        raise PydanticCustomError("id-blank", "An id must not begin or end with a blank")
    if len(value.encode("utf-8")) > MAX_ID_BYTES:
        raise PydanticCustomError("id-length", f"An id has at most {MAX_ID_BYTES} bytes in UTF-8")
    if not value.isprintable() and any(
        unicodedata.category(char) in _REFUSED_CATEGORIES for char in value
    ):
        raise PydanticCustomError("id-characters", "An id has no control or invisible characters")
    return value


def _attribute(value: Any) -> Any:
    if isinstance(value, str) and len(value) <= 1_000:
        return value
    if isinstance(value, bool | int | float):
        return value
    raise PydanticCustomError(
        "attribute", "An attribute is a number, true, false, or a text of at most 1000 characters"
    )


def _event_type(value: str) -> str:
    if value not in EVENT_TYPES:
        raise PydanticCustomError("event-type", f"One of {', '.join(EVENT_TYPES)}")
    return value


Identifier = Annotated[
    str, Field(min_length=1, max_length=MAX_ID_CHARS), AfterValidator(_identifier)
]
AttributeValue = Annotated[
    Any, AfterValidator(_attribute), WithJsonSchema({"type": ["string", "number", "boolean"]})
]
EventType = Annotated[
    str, AfterValidator(_event_type), WithJsonSchema({"type": "string", "enum": [*EVENT_TYPES]})
]
Value = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class StrictBody(BaseModel):
    """No coercion, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EventBody(StrictBody):
    """One interaction. Sent again with the same `event_id` it changes nothing."""

    event_id: str = Field(pattern=r"^[!-~]{1,64}$", description="1 to 64 printable ASCII")
    user_id: Identifier
    item_id: Identifier
    event_type: EventType
    value: Value = 1.0
    timestamp_ms: int | None = Field(
        default=None, description="When it happened; the time of receipt if missing"
    )
    request_id: RequestId | None = Field(
        default=None, description="The recommendation that led to it, if any"
    )

    @field_validator("timestamp_ms")
    @classmethod
    def _timestamp_in_range(cls, value: int | None, info: ValidationInfo) -> int | None:
        return value if value is None else _timestamp(value, info)

    def event(self, now_ms: int) -> Event:
        """The record that the buffer stores."""
        return Event(
            event_id=self.event_id,
            user_id=self.user_id,
            item_id=self.item_id,
            event_type=self.event_type,
            value=self.value,
            timestamp_ms=now_ms if self.timestamp_ms is None else self.timestamp_ms,
            request_id=self.request_id,
        )


class EventBatch(StrictBody):
    """Many events. One bad event refuses them all."""

    events: list[EventBody]


class ItemBody(StrictBody):
    """Something that can be recommended. `text` is what BERT reads, stored as sent."""

    item_id: Identifier
    text: str = Field(max_length=MAX_TEXT_CHARS)
    title: str = Field(default="", max_length=1_000)
    categories: list[Identifier] = Field(default=[], max_length=64)
    attributes: dict[Identifier, AttributeValue] = Field(default={}, max_length=MAX_ATTRIBUTES)

    def item(self) -> Item:
        """The record that the catalogue stores."""
        return Item(
            item_id=self.item_id,
            text=self.text,
            title=self.title,
            categories=tuple(self.categories),
            attributes=dict(self.attributes),
        )


class ItemBatch(StrictBody):
    """Many items. One bad item refuses them all."""

    items: list[ItemBody]


class HistoryEntry(StrictBody):
    """One entry of an ad-hoc history, oldest first."""

    item_id: Identifier
    event_type: EventType = "view"
    value: Value = 1.0
    timestamp_ms: int | None = None

    @field_validator("timestamp_ms")
    @classmethod
    def _timestamp_in_range(cls, value: int | None, info: ValidationInfo) -> int | None:
        return value if value is None else _timestamp(value, info)


class RecommendBody(StrictBody):
    """Whom to recommend to, and what may be recommended."""

    user_id: Identifier | None = None
    history: list[HistoryEntry] | None = Field(
        default=None, max_length=MAX_HISTORY, description="Instead of a user, oldest first"
    )
    k: int = Field(default=10, ge=1)
    candidates: list[Identifier] | None = Field(
        default=None, description="Rank only these; unknown ones are ignored and counted"
    )
    categories: list[Identifier] | None = Field(
        default=None, max_length=64, description="Only items of any of these categories"
    )
    exclude: list[Identifier] = Field(default=[])
    exclude_seen: bool = True
    explain: bool = Field(
        default=False, description="Also tell why each item: lifts, and history items that pull"
    )
    rank_of: list[Identifier] = Field(
        default=[],
        max_length=MAX_RANK_OF,
        description="Also tell where these items stand among the eligible, by each component",
    )

    @field_validator("k")
    @classmethod
    def _k_in_range(cls, value: int, info: ValidationInfo) -> int:
        bound = _limits(info).max_k
        if value > bound:
            raise PydanticCustomError("k-range", f"At most {bound}")
        return value

    @field_validator("candidates", "exclude")
    @classmethod
    def _candidates_in_bound(
        cls, value: list[str] | None, info: ValidationInfo
    ) -> list[str] | None:
        bound = _limits(info).max_candidates
        if value is not None and len(value) > bound:
            raise PydanticCustomError("too-long", f"At most {bound} entries")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.user_id is None) == (self.history is None):
            raise PydanticCustomError("one-of", "Give either user_id or history")
        return self


class MoveHeadBody(StrictBody):
    """Why the head is moved; kept with the version's record."""

    reason: str = Field(default="", max_length=500)


class RollbackBody(StrictBody):
    """Why the head is rolled back."""

    reason: str = Field(min_length=1, max_length=500)


Body = TypeVar("Body", bound=StrictBody)


def validate_body(model: type[Body], document: Any, limits: RequestLimits) -> Body:
    """Check a parsed document.

    Raises:
        Problem: 422 that points at every fault.
    """
    try:
        return model.model_validate(document, context=limits)
    except ValidationError as error:
        raise validation_problem(
            error.errors(include_url=False, include_context=False, include_input=False)
        ) from None


def read_events(document: Any, limits: RequestLimits) -> list[Event]:
    """The events of `{"events": [...]}` or of one event object."""
    if isinstance(document, Mapping) and "events" in document:
        _check_batch(document["events"], "events", limits)
        bodies = validate_body(EventBatch, document, limits).events
    else:
        bodies = [validate_body(EventBody, document, limits)]
    return [body.event(limits.now_ms) for body in bodies]


def read_items(document: Any, limits: RequestLimits) -> list[Item]:
    """The items of `{"items": [...]}` or of one item object."""
    if isinstance(document, Mapping) and "items" in document:
        _check_batch(document["items"], "items", limits)
        return [body.item() for body in validate_body(ItemBatch, document, limits).items]
    return [validate_body(ItemBody, document, limits).item()]


def _check_batch(batch: Any, name: str, limits: RequestLimits) -> None:
    """Before the entries are looked at: a batch far too long costs nothing."""
    if isinstance(batch, list) and not 1 <= len(batch) <= limits.max_batch:
        message = f"A batch has 1 to {limits.max_batch} entries"
        raise validation_problem([{"loc": (name,), "type": "batch-size", "msg": message}])


def _timestamp(value: int, info: ValidationInfo) -> int:
    if not OLDEST_TIMESTAMP_MS <= value <= _limits(info).now_ms + FUTURE_TOLERANCE_MS:
        raise PydanticCustomError(
            "timestamp-range",
            "Milliseconds expected, from the year 1990 to five minutes ahead of now",
        )
    return value


def _limits(info: ValidationInfo) -> RequestLimits:
    if not isinstance(info.context, RequestLimits):
        raise TypeError("request bodies are validated with RequestLimits as context")
    return info.context
