"""The hardening of the configuration that the installed Ray renders, and its refusals."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rendered_haproxy import render

from cluster.config import Settings
from cluster.haproxy_wrapper import (
    ERROR_STATUSES,
    ConfigurationRefused,
    IngressLimits,
    Wrapping,
    harden,
)
from cluster.ingress import error_page, limits_of, refusal, write_wrapper
from serve_app.problem_types import PROBLEM_TYPES
from serve_app.settings import ServingSettings, replica_deadline_s

LIMITS = limits_of(Settings().serving)


@pytest.fixture
def rendered(tmp_path: Path) -> str:
    """A configuration with a replica, as rendered by the installed Ray."""
    return render(tmp_path).read_text()


def lines(config: str, keyword: str) -> list[str]:
    """Lines of a configuration that start with a keyword, without their indentation."""
    return [line.strip() for line in config.splitlines() if line.strip().startswith(keyword)]


@pytest.mark.parametrize("replica_port", [30_000, None])
def test_only_the_configured_port_is_open_to_others(
    tmp_path: Path, replica_port: int | None
) -> None:
    before = render(tmp_path, host="0.0.0.0", replica_port=replica_port).read_text()
    after = harden(before, LIMITS, "/pages")
    assert lines(before, "bind ") == ["bind :9101", "bind *:8000", "bind *:8404"]
    assert lines(after, "bind ") == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]


def test_the_admin_socket_is_the_owners_alone(rendered: str) -> None:
    assert " mode 666 " in lines(rendered, "stats socket")[0]
    [socket] = lines(harden(rendered, LIMITS, "/pages"), "stats socket")
    assert " mode 600 " in socket


def test_a_client_has_a_time_to_send_its_headers(rendered: str) -> None:
    limits = IngressLimits(
        max_body_bytes=1_000,
        max_connections_per_address=7,
        header_timeout_s=0.5,
        client_timeout_s=20.0,
        server_timeout_s=3.0,
        items_timeout_s=15.0,
    )
    after = harden(rendered, limits, "/pages")
    timeouts = dict(re.findall(r" timeout (http-request|client|server) (\S+)", after))
    assert timeouts == {"http-request": "500ms", "client": "20000ms", "server": "3000ms"}
    assert "set-timeout server 15000ms if { method PUT } { path /v1/items }" in after
    assert "reject if { sc0_conn_cur gt 7 }" in after
    assert "deny_status 413 if { req.body_size gt 1000 }" in after


def test_timeouts_that_ray_was_told_are_replaced(rendered: str) -> None:
    told = rendered.replace(
        "    timeout client",
        "    timeout server 900s\n    timeout http-request 900s\n    timeout client",
    )
    assert "900s" not in harden(told, LIMITS, "/pages")


def test_a_hardened_configuration_stays_as_it_is(rendered: str) -> None:
    once = harden(rendered, LIMITS, "/pages")
    assert once != rendered
    assert harden(once, LIMITS, "/pages") == once


def test_what_is_not_edited_stays(rendered: str) -> None:
    after = harden(rendered, LIMITS, "/pages").splitlines()
    gone = [line for line in rendered.splitlines() if line not in after]
    edited = "stats socket|timeout client|errorfile|bind|http-request return status 404"
    assert [line for line in gone if not re.match(rf"\s*({edited}) ", line)] == []


def without(fragment: str) -> Callable[[str], str]:
    """The configuration without the lines that contain `fragment`."""
    return lambda config: "".join(
        line for line in config.splitlines(keepends=True) if fragment not in line
    )


def swapped(old: str, new: str) -> Callable[[str], str]:
    """The configuration with a text in the place of another."""
    return lambda config: config.replace(old, new)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("stats socket"), "0 lines `stats socket"),
        (swapped("mode 666", "mode 660"), "not what is expected"),
        (
            swapped("stats timeout", "stats socket ipv4@*:9999 level admin\n    stats timeout"),
            "2 lines",
        ),
        (without("timeout client"), "0 lines `timeout client"),
        (without("errorfile 503"), "0 lines `errorfile 503"),
        (without("bind :9101"), "0 lines `bind"),
        (without("bind 127.0.0.1"), "0 lines `bind"),
        (swapped("bind *:8404", "bind *:8404 ssl crt x"), "not what is expected"),
        (swapped("listen stats", "listen statistics"), "unexpected section `listen statistics`"),
        (lambda config: config.partition("listen stats")[0], "no section `listen stats`"),
        (
            swapped("listen stats", "frontend grpc_frontend\n    bind :9000\nlisten stats"),
            "grpc_frontend",
        ),
        (
            swapped("backend http-rheos\n", "backend http-rheos\n    bind :99\n"),
            "backend http-rheos",
        ),
        (lambda config: config + "global\n", "unexpected section `global`"),
        (lambda config: "  bind :1\n" + config, "begins with `bind :1`"),
        (lambda _: "", "no section `global`"),
    ],
)
def test_an_unknown_configuration_is_refused(
    rendered: str, change: Callable[[str], str], reason: str
) -> None:
    changed = change(rendered)
    assert changed != rendered
    with pytest.raises(ConfigurationRefused, match=re.escape(reason)):
        harden(changed, LIMITS, "/pages")


def test_a_folder_with_a_space_is_refused(rendered: str) -> None:
    with pytest.raises(ConfigurationRefused, match="space"):
        harden(rendered, LIMITS, "/my pages")


@pytest.mark.parametrize("status", ERROR_STATUSES)
def test_an_error_page_is_a_whole_answer_of_a_documented_type(status: int) -> None:
    head, _, body = error_page(status).partition(b"\r\n\r\n")
    status_line, *headers = head.decode().split("\r\n")
    assert status_line.startswith(f"HTTP/1.1 {status} ")
    assert f"Content-Length: {len(body)}" in headers
    assert "Content-Type: application/problem+json" in headers
    assert {"Cache-Control: no-store", "X-Content-Type-Options: nosniff"} <= {*headers}
    document = json.loads(body)
    assert PROBLEM_TYPES[document["type"].removeprefix("/problems/")].status == status
    assert document["status"] == status


def test_the_replica_has_its_whole_time_before_the_ingress_gives_up() -> None:
    limits = limits_of(ServingSettings(deadline_s=2.0, items_deadline_s=300.0))
    assert replica_deadline_s(2.0) < limits.server_timeout_s == 2.0
    assert replica_deadline_s(300.0) < limits.items_timeout_s == 300.0
    assert limits.client_timeout_s >= limits.items_timeout_s


def test_the_wrapping_is_the_same_after_a_command_line() -> None:
    wrapping = Wrapping("/bin/haproxy", "/a 'folder'", LIMITS)
    assert Wrapping.from_json(wrapping.to_json()) == wrapping


def fake_haproxy(folder: Path) -> str:
    """A program that prints its process id and its arguments."""
    program = folder / "fake"
    program.write_text('#!/bin/sh\necho $$ "$@"\n')
    program.chmod(0o700)
    return str(program)


def test_the_wrapper_becomes_haproxy_with_the_hardened_file(rendered: str, tmp_path: Path) -> None:
    program = write_wrapper(tmp_path / "ingress", fake_haproxy(tmp_path), LIMITS)
    path = tmp_path / "haproxy.cfg"
    command = [str(program), "-db", "-f", str(path), "-dR", "-sf", "1", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=10)
    assert output.split() == [str(process.pid), *command[1:]]
    assert path.read_text() == harden(rendered, LIMITS, str(tmp_path / "ingress"))
    assert refusal(tmp_path / "ingress") is None


@pytest.mark.parametrize(
    "arguments", [["-f", "changed.cfg"], ["-f", "missing.cfg"], ["-db"], ["-f"]]
)
def test_a_refusal_starts_nothing_and_says_why(
    rendered: str, tmp_path: Path, arguments: list[str]
) -> None:
    changed = rendered.replace("mode 666", "mode 660")
    (tmp_path / "changed.cfg").write_text(changed)
    program = write_wrapper(tmp_path / "ingress", fake_haproxy(tmp_path), LIMITS)
    done = subprocess.run(
        [program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=10, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    reason = refusal(tmp_path / "ingress")
    assert reason is not None
    assert reason.startswith("HAProxy was not started, because ")
    assert done.stderr.strip() == reason
    assert (tmp_path / "changed.cfg").read_text() == changed
