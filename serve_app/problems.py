"""Refusals as RFC 9457 problem documents.

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
    MemoryFull,
    ShardUnavailable,
    StorageError,
    StorageFull,
    UnknownVersion,
    VersionRefused,
)
from serve_app.problem_types import PROBLEM_TYPES, ProblemType

MAX_ERRORS = 20
_MAX_POINTER_CHARS = 128
_MAX_BODY_BYTES = 4_096


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
    return fields_refused(
        FieldError(pointer_to(e["loc"]), str(e["type"]).replace("_", "-"), str(e["msg"])[:200])
        for e in errors
    )


def fields_refused(errors: Iterable[FieldError]) -> Problem:
    """A problem that tells everything that is wrong with the content of a request."""
    found = list(errors)
    codes = {error.code for error in found}
    slug = codes.pop() if len(codes) == 1 else "validation"
    if slug not in ("batch-size", "timestamp-range"):
        slug = "validation"
    return Problem(slug, f"{len(found)} error(s); nothing was done", found)


def pointer_to(location: Sequence[str | int]) -> str:
    """RFC 6901 pointer; a name too long to repeat is cut to the place that holds it."""
    if location[-1:] == ("[key]",) and [type(part) for part in location[-3:]] == [str] * 3:
        location = location[:-1]  # pydantic's mark for 'the key itself', after its mapping's name
    pointer = ""
    for part in location:
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
    (MemoryFull, "memory-full", "the event buffer remembers all it may", {"Retry-After": "60"}),
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
