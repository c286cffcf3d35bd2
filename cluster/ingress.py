"""The ingress of a local cluster: HAProxy behind a wrapper that hardens its configuration."""

from __future__ import annotations

import json
import shlex
import sys
from http import HTTPStatus
from pathlib import Path

from cluster import haproxy_wrapper
from cluster.haproxy_wrapper import ERROR_STATUSES, REFUSAL_FILE, IngressLimits, Wrapping
from serve_app.problem_types import PROBLEM_TYPES
from serve_app.settings import ServingSettings

_CLIENT_TIMEOUT_S = 60.0
_PROBLEMS = {
    400: ("malformed-request", "the request is not HTTP, or its headers are too large"),
    408: ("request-timeout", "the request did not arrive in time"),
    413: ("body-too-large", "the body is larger than this service takes"),
    500: ("internal", "internal error"),
    502: ("bad-gateway", "the replica broke off its answer"),
    503: ("unavailable", "no replica can take the request now"),
    504: ("deadline-exceeded", "the replica did not answer in time"),
}


def limits_of(serving: ServingSettings) -> IngressLimits:
    """The ingress's part of the serving settings."""
    items_timeout_s = max(serving.deadline_s, serving.items_deadline_s)
    return IngressLimits(
        max_body_bytes=serving.max_body_bytes,
        max_connections_per_address=serving.max_connections_per_address,
        header_timeout_s=serving.header_timeout_s,
        client_timeout_s=max(_CLIENT_TIMEOUT_S, items_timeout_s),
        # The replica answers 504 by itself, and earlier; these are for one that hangs.
        server_timeout_s=serving.deadline_s,
        items_timeout_s=items_timeout_s,
    )


def write_wrapper(folder: Path, haproxy: str, limits: IngressLimits) -> Path:
    """Write what stands for HAProxy: a program for RAY_SERVE_HAPROXY_BINARY_PATH, and error pages.

    Args:
        folder: Made if missing. Whoever can write to it decides what the ingress does.
        haproxy: The program itself.
        limits: What a client may do.

    Returns:
        The program. It needs this Python and this package where they are now.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for status in ERROR_STATUSES:
        (folder / f"{status}.http").write_bytes(error_page(status))
    wrapping = Wrapping(haproxy, str(folder), limits)
    command = shlex.join(
        [sys.executable, "-I", "-S", str(Path(haproxy_wrapper.__file__)), wrapping.to_json()]
    )
    program, beside = folder / "haproxy", folder / "haproxy.new"
    beside.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    beside.chmod(0o700)
    beside.replace(program)  # a running system may be about to start it
    return program


def refusal(folder: Path) -> str | None:
    """Why the wrapper in this folder refused to start HAProxy, if it did."""
    try:
        return (folder / REFUSAL_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def error_page(status: int) -> bytes:
    """A whole HTTP answer with a problem document, as HAProxy's `errorfile` takes it."""
    slug, detail = _PROBLEMS[status]
    document = {
        "type": f"/problems/{slug}",
        "title": PROBLEM_TYPES[slug].title,
        "status": status,
        "detail": detail,
    }
    body = json.dumps(document, separators=(",", ":")).encode("ascii")
    headers = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        *(["Retry-After: 1"] if status in (502, 503) else []),
        "Connection: close",
    ]
    return "\r\n".join([*headers, "", ""]).encode("ascii") + body
