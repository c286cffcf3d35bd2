import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.processes import (
    MARKER,
    end_processes,
    free_port,
    marked_processes,
    port_holder,
    wait_until,
)

# Says when it is ready and when it is asked to end; keeps the file open that its input names.
PROGRAM = """
import os, signal, sys, time

def end(*_):
    os.write(1, b"asked to end\\n")  # not print: it may be what was interrupted
    if "--stubborn" not in sys.argv:
        sys.exit()

signal.signal(signal.SIGTERM, end)
name = sys.stdin.readline().strip()
kept = open(name) if name else None
print("ready", flush=True)
while True:
    time.sleep(60)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def mark(tmp_path: Path) -> str:
    (tmp_path / "log").write_text("")
    return str(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start_it(
        *arguments: str, environment: dict[str, str] | None = None, keeps_open: str = ""
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", PROGRAM, *arguments],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(keeps_open + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        return process

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


def is_gone(process: subprocess.Popen[str]) -> bool:
    return not psutil.pid_exists(process.pid)


def pids(mark: str) -> set[int]:
    return {process.pid for process in marked_processes(mark)}


def test_a_process_is_found_by_environment_by_argument_and_by_open_file(
    mark: str, start: Start
) -> None:
    by_environment = start(environment={MARKER: mark})
    by_argument = start(f"--temp-dir={mark}/session")
    by_file = start(keeps_open=f"{mark}/log")
    assert pids(mark) == {by_environment.pid, by_argument.pid, by_file.pid}


def test_all_marked_processes_are_ended_and_no_other(mark: str, start: Start) -> None:
    ours = [start(environment={MARKER: mark}), start(f"{mark}/x"), start(keeps_open=f"{mark}/log")]
    others = [
        start(),
        start(environment={MARKER: mark + "2"}),
        start(f"{mark}2/session"),
        start(environment={"ANOTHER": mark}),
    ]
    assert end_processes(mark, grace_s=5.0) == 3
    assert [is_gone(process) for process in ours] == [True] * 3
    assert [process.communicate()[0] for process in ours] == ["asked to end\n"] * 3
    assert [process.poll() for process in others] == [None] * 4
    assert end_processes(mark) == 0


def test_a_process_that_does_not_listen_is_killed(mark: str, start: Start) -> None:
    stubborn = start("--stubborn", environment={MARKER: mark})
    assert end_processes(mark, grace_s=0.2) == 1
    assert is_gone(stubborn)
    assert stubborn.communicate()[0] == "asked to end\n"


def test_this_process_and_what_is_dead_already_are_not_looked_at(mark: str, start: Start) -> None:
    dead = start(environment={MARKER: mark})
    dead.kill()
    zombie = psutil.Process(dead.pid)
    assert wait_until(lambda: zombie.status() == psutil.STATUS_ZOMBIE, 5.0, poll_s=0.01)
    with open(f"{mark}/log") as kept:
        assert marked_processes(mark) == [], kept
    assert end_processes(mark) == 0


def test_a_free_port_is_the_preferred_one_unless_somebody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = int(listener.getsockname()[1])
        other = free_port(taken)
        assert other != taken
    assert free_port(taken) == taken


def test_who_holds_a_port_is_told_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        assert port_holder(port) == f"pid {os.getpid()} ({psutil.Process().name()})"
    assert port_holder(port) is None


def test_waiting_ends_with_the_condition_or_with_the_time() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), timeout_s=5.0, poll_s=0.0)
    started_s = time.monotonic()
    assert not wait_until(lambda: False, timeout_s=0.05, poll_s=0.01)
    assert 0.05 <= time.monotonic() - started_s < 2.0
