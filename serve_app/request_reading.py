"""From a raw request to checked values: body, media type, query parameters, path ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request

from serve_app.admission import body_too_large
from serve_app.problems import FieldError, Problem, fields_refused
from serve_app.strict_json import JsonRefused, read_json

_MEDIA_TYPE = re.compile(
    r"application/json[ \t]*(;[ \t]*charset=(utf-8|\"utf-8\")[ \t]*)?", re.IGNORECASE
)


async def read_document(request: Request, max_body_bytes: int) -> Any:
    """The parsed body.

    Raises:
        Problem: 413, 415, or 400 where it is not acceptable JSON.
    """
    _check_headers(request, max_body_bytes)
    try:
        return read_json(await request.body())
    except JsonRefused as error:
        raise Problem(error.fault, error.detail) from None


async def read_optional_document(request: Request, max_body_bytes: int) -> Any:
    """The parsed body; an empty object if there is none."""
    _check_length(request, max_body_bytes)
    if not await request.body():
        return {}
    return await read_document(request, max_body_bytes)


def read_query(request: Request, *allowed: str) -> Mapping[str, str]:
    """Query parameters, each at most once, none unknown.

    Raises:
        Problem: 422.
    """
    pairs = request.query_params.multi_items()
    names = [name for name, _ in pairs]
    faults = [
        _query_fault(name if name in allowed else "", code, message)
        for name in dict.fromkeys(names)
        for is_fault, code, message in (
            (name not in allowed, "extra-forbidden", f"Only {', '.join(allowed) or 'none'}"),
            (names.count(name) > 1, "repeated", "Give it once"),
        )
        if is_fault
    ]
    if faults:
        raise fields_refused(faults)
    return dict(pairs)


def whole_number(query: Mapping[str, str], name: str, default: int, bound: int) -> int:
    """A parameter from 1 to `bound`, in plain decimal digits.

    Raises:
        Problem: 422.
    """
    text = query.get(name)
    if text is None:
        return min(default, bound)
    is_number = text.isascii() and text.isdigit() and len(text) <= 9
    if not is_number or not 1 <= int(text) <= bound:
        raise fields_refused([_query_fault(name, "range", f"A whole number, 1 to {bound}")])
    return int(text)


def decoded_id(segment: str) -> str:
    """An id from a path segment as sent; `%2F` is a slash inside the id.

    Raises:
        Problem: 404 if it is no UTF-8, since no item has such an id.
    """
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise Problem("not-found", "there is no such item") from None


def _check_headers(request: Request, max_body_bytes: int) -> None:
    if not _MEDIA_TYPE.fullmatch(_header(request, "content-type")):
        raise Problem(
            "unsupported-media-type",
            "the media type must be application/json",
            headers={"Accept": "application/json"},
        )
    if _header(request, "content-encoding").lower() not in ("", "identity"):
        raise Problem(
            "unsupported-media-type",
            "the body must not be encoded",
            headers={"Accept-Encoding": "identity"},
        )
    _check_length(request, max_body_bytes)


def _check_length(request: Request, max_body_bytes: int) -> None:
    """By the announced length, before anything is read; the gate counts what comes without one."""
    length = _header(request, "content-length")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_body_bytes:
        raise body_too_large(max_body_bytes)


def _header(request: Request, name: str) -> str:
    """The value; given twice, both in one, so that the second cannot pass behind the first."""
    return ",".join(request.headers.getlist(name)).strip()


def _query_fault(name: str, code: str, message: str) -> FieldError:
    return FieldError(f"?{name}", code, message)
