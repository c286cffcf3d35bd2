"""Refusals as RFC 9457 problem documents: every kind, its status, and the page that explains it.

A problem never repeats what the client sent, only names the place by a JSON pointer (RFC 6901): an
echo could carry what cannot be encoded, grow the answer, or put a stranger's markup into a log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import Response

from actors.messages import (
    ActorsError,
    BufferFull,
    ShardUnavailable,
    StorageError,
    StorageFull,
    UnknownVersion,
    VersionRefused,
)

MAX_ERRORS = 20
_MAX_POINTER_CHARS = 128
_MAX_BODY_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of refusal. `explanation` is the text of its page."""

    slug: str
    status: int
    title: str
    explanation: str


def _types(*types: ProblemType) -> dict[str, ProblemType]:
    return {entry.slug: entry for entry in types}


PROBLEM_TYPES: Mapping[str, ProblemType] = _types(
    ProblemType(
        "malformed-json",
        400,
        "The body is not well-formed JSON",
        "Send one JSON document in UTF-8 without a byte order mark, nested at most 16 deep, with "
        "integers up to 2^53. The detail gives the byte where reading stopped.",
    ),
    ProblemType(
        "non-finite-number",
        400,
        "A number is not finite",
        "NaN, Infinity and numbers too large for a double are refused wherever they stand.",
    ),
    ProblemType(
        "duplicate-key",
        400,
        "An object has the same key twice",
        "Which of the two values counts differs from reader to reader, so neither does here.",
    ),
    ProblemType(
        "invalid-text",
        400,
        "A string is not text",
        "Strings must not contain NUL or half of a surrogate pair.",
    ),
    ProblemType(
        "not-found",
        404,
        "There is nothing here",
        "The path, the item or the version does not exist. A slash in an item id is sent as %2F.",
    ),
    ProblemType(
        "method-not-allowed",
        405,
        "The method is not allowed here",
        "The Allow header lists the methods that this path knows.",
    ),
    ProblemType(
        "version-conflict",
        409,
        "The version cannot become the head",
        "There is no other version to go to, or one is being published. Look and try again.",
    ),
    ProblemType(
        "body-too-large",
        413,
        "The body is too large",
        "The detail states the bound. Send several smaller batches.",
    ),
    ProblemType(
        "unsupported-media-type",
        415,
        "Only plain application/json is read",
        "Send Content-Type: application/json, in UTF-8, without a Content-Encoding.",
    ),
    ProblemType(
        "validation",
        422,
        "The content is not acceptable",
        "Each entry of `errors` points at a place in the body (or names a query parameter) and "
        "says what is expected there. Nothing of the request was done.",
    ),
    ProblemType(
        "timestamp-range",
        422,
        "A timestamp is out of range",
        "`timestamp_ms` is in milliseconds since 1970, from the year 2000 to five minutes ahead.",
    ),
    ProblemType(
        "batch-size",
        422,
        "The batch is empty or too large",
        "The message states the bound. Nothing of the batch was stored.",
    ),
    ProblemType(
        "buffer-full",
        429,
        "Events arrive faster than they reach the disk",
        "Nothing was dropped silently: send the same batch again after Retry-After seconds. Events "
        "that were stored are recognised by their event_id.",
    ),
    ProblemType(
        "internal",
        500,
        "Something went wrong on our side",
        "The log names this request by its request_id.",
    ),
    ProblemType(
        "overloaded",
        503,
        "The replica is busy",
        "It works on as many requests as it may. Try again after Retry-After seconds.",
    ),
    ProblemType(
        "not-ready",
        503,
        "The replica is not ready",
        "It has not yet caught up with the catalogue and the counters.",
    ),
    ProblemType(
        "shard-unavailable",
        503,
        "A part of the storage does not answer",
        "Send the same batch again after Retry-After seconds: events that were stored are "
        "recognised by their event_id.",
    ),
    ProblemType(
        "storage-full",
        503,
        "The disk is full",
        "Nothing is accepted until there is space again.",
    ),
    ProblemType(
        "storage-error",
        503,
        "A write to the disk failed",
        "Nothing of that write was acknowledged. Send it again.",
    ),
    ProblemType(
        "deadline-exceeded",
        504,
        "The answer took too long",
        "A write may or may not have been stored; sending it again is safe.",
    ),
)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong. `pointer` is RFC 6901, or `?name` for a query parameter."""

    pointer: str
    code: str
    message: str


@dataclass(eq=False)
class Problem(Exception):
    """A refusal, raised anywhere below a route and answered as problem+json."""

    slug: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.slug, self.detail)

    @property
    def type(self) -> ProblemType:
        return PROBLEM_TYPES[self.slug]


def problem_body(problem: Problem, request_id: str) -> bytes:
    """The document, at most 4 KiB: errors beyond the bound are counted, not shown."""
    for shown in range(min(len(problem.errors), MAX_ERRORS), -1, -1):
        body = _encode(problem, request_id, shown)
        if len(body) <= _MAX_BODY_BYTES:
            return body
    raise AssertionError(f"problem {problem.slug} does not fit without its errors")


def problem_response(problem: Problem, request_id: str) -> Response:
    """The answer for a problem."""
    return Response(
        problem_body(problem, request_id),
        status_code=problem.type.status,
        headers=dict(problem.headers),
        media_type="application/problem+json",
    )


def validation_problem(errors: Iterable[Mapping[str, Any]]) -> Problem:
    """A problem from pydantic's errors (`ValidationError.errors()`)."""
    found = [
        FieldError(pointer_to(e["loc"]), str(e["type"]).replace("_", "-"), str(e["msg"])[:200])
        for e in errors
    ]
    codes = {error.code for error in found}
    slug = codes.pop() if len(codes) == 1 else "validation"
    if slug not in ("batch-size", "timestamp-range"):
        slug = "validation"
    return Problem(slug, f"{len(found)} error(s); nothing was done", found)


def pointer_to(location: Sequence[str | int]) -> str:
    """RFC 6901 pointer; a name too long to repeat is cut to the place that holds it."""
    pointer = ""
    for part in location:
        if part == "[key]":  # pydantic's mark for 'the key itself'
            continue
        longer = f"{pointer}/{str(part).replace('~', '~0').replace('/', '~1')}"
        if len(longer) > _MAX_POINTER_CHARS:
            break
        pointer = longer
    return pointer


def problem_of(error: ActorsError) -> Problem:
    """What an actor's refusal means to an HTTP client. The message stays in our log."""
    for kind, slug, detail, headers in _ACTOR_PROBLEMS:
        if isinstance(error, kind):
            return Problem(slug, detail, headers=headers)
    return Problem("internal", "internal error")


_RETRY = {"Retry-After": "1"}
_ACTOR_PROBLEMS: tuple[tuple[type[ActorsError], str, str, Mapping[str, str]], ...] = (
    (BufferFull, "buffer-full", "too many events wait for the disk", _RETRY),
    (ShardUnavailable, "shard-unavailable", "a part of the storage does not answer", _RETRY),
    (StorageFull, "storage-full", "too little disk space is left", {"Retry-After": "10"}),
    (StorageError, "storage-error", "a write to the disk failed", _RETRY),
    (UnknownVersion, "not-found", "there is no such version", {}),
    (VersionRefused, "version-conflict", "the store refuses this version as head", {}),
)


def _encode(problem: Problem, request_id: str, shown: int) -> bytes:
    document: dict[str, Any] = {
        "type": f"/problems/{problem.slug}",
        "title": problem.type.title,
        "status": problem.type.status,
        "detail": problem.detail,
        "instance": f"/requests/{request_id}",
        "request_id": request_id,
        **problem.members,
    }
    if problem.errors:
        document["errors"] = [
            {"pointer": error.pointer, "code": error.code, "message": error.message}
            for error in problem.errors[:shown]
        ]
        if shown < len(problem.errors):
            document["errors_omitted"] = len(problem.errors) - shown
    return json.dumps(document, separators=(",", ":")).encode("ascii")
