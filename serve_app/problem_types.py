"""Every kind of refusal: its status, its title, and the text of the page that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
        "malformed-request",
        400,
        "The request is not HTTP",
        "The request line or a header cannot be read, or the headers are larger than 15 KiB.",
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
        "request-timeout",
        408,
        "The request took too long to arrive",
        "Its headers were not complete in time; the connection was closed.",
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
        "`timestamp_ms` is in milliseconds since 1970, from the year 1990 to five minutes ahead.",
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
        "memory-full",
        503,
        "The event buffer remembers as much as it may",
        "It forgets an `event_id` when `buffer.dedup_window_days` are over and then takes events "
        "again. Whoever runs the service can raise `buffer.max_memory_bytes`.",
    ),
    ProblemType(
        "internal",
        500,
        "Something went wrong on our side",
        "The log names this request by its request_id.",
    ),
    ProblemType(
        "bad-gateway",
        502,
        "A replica broke off its answer",
        "A write may or may not have been stored; sending it again is safe.",
    ),
    ProblemType(
        "unavailable",
        503,
        "No replica can take the request",
        "The service is starting, or all of its replicas are. Try again after Retry-After seconds.",
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
