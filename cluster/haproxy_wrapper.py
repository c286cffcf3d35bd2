"""Hardens the configuration that Ray renders for HAProxy, then becomes HAProxy.

Ray runs this in the place of HAProxy (`ingress.py` sees to that), at every start and every reload.
As rendered by Ray 2.60, half-open connections keep everyone out for as long as they like, the
statistics listen on every address, any local user can switch the service off over the admin
socket, and a client's headers steer Serve. None of that can be set from outside.

It fails closed: a configuration that is not as expected is refused, HAProxy is not started (at a
reload the one that runs goes on), and the reason is kept for whoever started the system.

Standard library only, and run in isolated mode: what is on somebody's PYTHONPATH has no say here.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REFUSAL_FILE = "refused.txt"
ERROR_STATUSES = (400, 408, 413, 500, 502, 503, 504)
"""Statuses that HAProxy answers by itself; for each there is a `<status>.http` among the pages.

HAProxy 2.8 has a built-in page for bytes that are not HTTP (400) and for headers that come too late
(408) all the same, see haproxy/haproxy#3032: a fixed text that repeats nothing of what was sent.
"""

_MARK = "# Hardened by rheos."
# Serve takes these from a client: its time limit, whether it notices a client that left, and which
# replica answers. Serve reads some of them with underscores as well.
_STEERING_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve-multiplexed-model-id",
)
# The replica's parser answers a method it has never heard of by itself, in plain text.
_KNOWN_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT"
_REQUEST_ID = "^[A-Za-z0-9._-]{1,64}$"


class ConfigurationRefused(Exception):
    """The rendered configuration is not one that this module knows how to harden."""


@dataclass(frozen=True)
class IngressLimits:
    """Bounds on what one client may do to the ingress, and on a replica's time, in seconds.

    `items_timeout_s` is that of `PUT /v1/items`, `server_timeout_s` that of everything else.
    """

    max_body_bytes: int
    max_connections_per_address: int
    header_timeout_s: float
    client_timeout_s: float
    server_timeout_s: float
    items_timeout_s: float


@dataclass(frozen=True)
class Wrapping:
    """All that the wrapper has to know; its first argument, as JSON.

    `folder` holds the error pages, and takes the reason of a refusal.
    """

    haproxy: str
    folder: str
    limits: IngressLimits

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(self, default=vars)

    @classmethod
    def from_json(cls, text: str) -> Wrapping:
        """The value that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "limits": IngressLimits(**fields["limits"])})


def main(arguments: Sequence[str]) -> None:
    """Harden the file after `-f` in HAProxy's arguments, then replace this process by HAProxy.

    Args:
        arguments: A `Wrapping` as JSON, then HAProxy's own arguments.
    """
    wrapping, options = Wrapping.from_json(arguments[0]), list(arguments[1:])
    try:
        path = _configuration_path(options)
        hardened = harden(path.read_text(encoding="utf-8"), wrapping.limits, wrapping.folder)
        # Beside it and renamed: HAProxy must not find half a file. The path stays the one Ray gave,
        # because Ray knows its HAProxy processes by it.
        beside = path.with_suffix(".hardened")
        beside.write_text(hardened, encoding="utf-8")
        beside.replace(path)
    except (ConfigurationRefused, OSError) as error:
        message = (
            f"HAProxy was not started, because its configuration cannot be made safe: {error} "
            "(constraints.txt names the Ray version that rheos was tested with)"
        )
        Path(wrapping.folder, REFUSAL_FILE).write_text(message, encoding="utf-8")
        sys.exit(message)
    os.execv(wrapping.haproxy, [wrapping.haproxy, *options])


def _configuration_path(options: list[str]) -> Path:
    if options.count("-f") != 1 or options[-1] == "-f":
        raise ConfigurationRefused(f"its arguments name no single configuration file: {options}")
    return Path(options[options.index("-f") + 1])


def harden(config: str, limits: IngressLimits, pages: str) -> str:
    """The configuration made safe; one that is hardened already comes back as it is.

    Args:
        config: As rendered by Ray.
        limits: What a client may do.
        pages: Folder of the error pages.

    Raises:
        ConfigurationRefused: If a section or a line that must be edited is not there once, or there
            is a section that might listen or steer in a way that is not known here.
    """
    if config.startswith(_MARK):
        return config
    edits: dict[str, Callable[[list[str]], list[str]]] = {
        "global": _close_admin_socket,
        "defaults": lambda lines: _set_timeouts_and_pages(lines, limits, pages),
        "frontend prometheus": _listen_on_loopback,
        "frontend http_frontend": lambda lines: _guard_frontend(lines, limits),
        "backend default_backend": _answer_without_application,
        "listen stats": _listen_on_loopback,
    }
    hardened = [_MARK]
    for header, lines in _sections(config):
        if edit := edits.pop(header, None):
            hardened += [header, *edit(lines)]
        elif header.startswith("backend ") and not _starting_with(lines, "bind"):
            # Replicas; their lines open nothing.
            hardened += [header, _patience_for_items(limits), *lines]
        else:
            raise ConfigurationRefused(f"it has an unexpected section `{header}`")
    if edits:
        raise ConfigurationRefused(f"it has no section `{next(iter(edits))}`")
    return "\n".join(hardened) + "\n"


def _sections(config: str) -> list[tuple[str, list[str]]]:
    """Header and lines of each section; a header is what is not indented."""
    sections: list[tuple[str, list[str]]] = []
    for line in config.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            sections.append((line.strip(), []))
        elif sections:
            sections[-1][1].append(line)
        elif line.strip():
            raise ConfigurationRefused(f"it begins with `{line.strip()}`")
    return sections


def _starting_with(lines: list[str], keyword: str) -> list[str]:
    words = keyword.split()
    return [line for line in lines if line.split()[: len(words)] == words]


def _replace(lines: list[str], keyword: str, pattern: str, replacement: list[str]) -> list[str]:
    """Put `replacement` for the one line that starts with `keyword`, which must be as expected."""
    found = _starting_with(lines, keyword)
    if len(found) != 1:
        raise ConfigurationRefused(f"it has {len(found)} lines `{keyword} ...` where 1 is expected")
    match = re.fullmatch(pattern, found[0].strip())
    if match is None:
        raise ConfigurationRefused(f"`{found[0].strip()}` is not what is expected there")
    position = lines.index(found[0])
    new = [f"    {match.expand(line)}" for line in replacement]
    return [*lines[:position], *new, *lines[position + 1 :]]


def _close_admin_socket(lines: list[str]) -> list[str]:
    return _replace(
        lines,
        "stats socket",
        r"(stats socket /\S+) mode 666 (level admin expose-fd listeners)",
        [r"\1 mode 600 \2"],
    )


def _listen_on_loopback(lines: list[str]) -> list[str]:
    return _replace(lines, "bind", r"bind \*?:(\d+)", [r"bind 127.0.0.1:\1"])


def _set_timeouts_and_pages(lines: list[str], limits: IngressLimits, pages: str) -> list[str]:
    if re.search(r"\s", pages):
        raise ConfigurationRefused(f"the folder {pages} has a space in its name")
    timeouts = {
        "http-request": limits.header_timeout_s,
        "client": limits.client_timeout_s,
        "server": limits.server_timeout_s,
    }
    # Ray renders the client's timeout always and the others if they are set: all are ours.
    for name in ("http-request", "server"):
        if _starting_with(lines, f"timeout {name}"):
            lines = _replace(lines, f"timeout {name}", r".*", [])
    lines = _replace(
        lines,
        "timeout client",
        r"timeout client \d+s",
        [f"timeout {name} {round(1_000 * time_s)}ms" for name, time_s in timeouts.items()],
    )
    for status in (502, 503, 504):
        lines = _replace(lines, f"errorfile {status}", r"errorfile \d+ /\S+", [])
    return lines + [f"    errorfile {status} {pages}/{status}.http" for status in ERROR_STATUSES]


def _guard_frontend(lines: list[str], limits: IngressLimits) -> list[str]:
    num_connections, num_bytes = limits.max_connections_per_address, limits.max_body_bytes
    steering = [
        f"http-request del-header ^{name.replace('-', '[-_]')}$ -m reg"
        for name in _STEERING_HEADERS
    ]
    rules = [
        "stick-table type ipv6 size 100k expire 1m store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {num_connections} }}",
        # The announced length; a chunked body is counted in the replica.
        f"http-request deny deny_status 413 if {{ req.body_size gt {num_bytes} }}",
        # A replica sees a request once its body is there, or 16 KiB of it (tune.bufsize).
        f"http-request wait-for-body time {round(1_000 * limits.header_timeout_s)}ms",
        # No route has TRACE: the replica answers 405, with the methods that the path does have.
        f"http-request set-method TRACE unless {{ method {_KNOWN_METHODS} }}",
        *steering,
        # Serve answers and logs this one as it came.
        "acl has_one_request_id req.fhdr_cnt(x-request-id) eq 1",
        f"acl has_plain_request_id req.fhdr(x-request-id) -m reg {_REQUEST_ID}",
        "http-request del-header x-request-id unless has_one_request_id has_plain_request_id",
        # uvicorn believes what HAProxy sends, so that must be HAProxy's word and not the client's.
        "http-request del-header x-forwarded-for",
        "option forwardfor",
    ]
    literal = [rule.replace("\\", r"\\") for rule in rules]
    return _replace(lines, "bind", r"bind (\*|\S+):\d+", [r"\g<0>", *literal])


def _patience_for_items(limits: IngressLimits) -> str:
    timeout = f"{round(1_000 * limits.items_timeout_s)}ms"
    return f"    http-request set-timeout server {timeout} if {{ method PUT }} {{ path /v1/items }}"


def _answer_without_application(lines: list[str]) -> list[str]:
    """While nothing is deployed: 503, which is worth another try, and no echo of the path."""
    return _replace(
        lines,
        "http-request",
        r"http-request return status 404 .*",
        ["http-request deny deny_status 503"],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
