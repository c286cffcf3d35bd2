"""Faults of the disk and of file handles, injected into a process that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_END_WITHIN_S = 20.0
_CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<descriptor>\d+)<(?P<path>[^>]*)>.*= (?P<result>.+)$")


@dataclass(frozen=True)
class Call:
    """A system call on a descriptor, as `strace` saw it end."""

    name: str
    descriptor: int
    path: str
    result: str

    @property
    def has_failed(self) -> bool:
        """Whether it gave an error."""
        return self.result.startswith("-1")


@dataclass
class Trace:
    """What `strace` has written; empty until it has ended."""

    text: str = ""

    def calls(self) -> list[Call]:
        """Every call on a descriptor."""
        found = map(_CALL.match, self.text.splitlines())
        return [Call(m["name"], int(m["descriptor"]), m["path"], m["result"]) for m in found if m]

    def num_failed(self) -> int:
        """How many calls failed."""
        return sum(call.has_failed for call in self.calls())

    def fsyncs_after_a_failure(self) -> list[Call]:
        """Fsyncs of a descriptor on which a call failed and that was not closed since."""
        failed: set[int] = set()
        found = []
        for call in self.calls():
            if call.name == "close":
                failed.discard(call.descriptor)
            elif call.name in ("fsync", "fdatasync") and call.descriptor in failed:
                found.append(call)
            if call.has_failed:
                failed.add(call.descriptor)
        return found


@contextmanager
def injected(process: psutil.Process, *faults: str, path: Path | None = None) -> Iterator[Trace]:
    """Let system calls of a process fail or wait; skips the test where that is not allowed.

    Args:
        process: Traced with all its threads.
        *faults: As `strace --inject` takes them, such as `fsync:error=EIO:when=1`.
        path: Only calls on this file or folder, which may come into being later.
    """
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    trace = Trace()
    with tempfile.NamedTemporaryFile("r") as file:
        command = ["strace", "-f", "-y", "-p", str(process.pid), "-o", file.name]
        command += ["-e", "trace=write,fsync,fdatasync,close" if path else "trace=fsync,close"]
        command += [part for fault in faults for part in ("-e", f"inject={fault}")]
        command += ["-P", str(path)] if path else []
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _wait_until_attached(strace)
            yield trace
        finally:
            strace.terminate()  # it lets go of the process
            strace.communicate(timeout=_END_WITHIN_S)
            trace.text = file.read()


def _wait_until_attached(strace: subprocess.Popen[str]) -> None:
    assert strace.stderr
    told = ""
    for line in strace.stderr:
        told += line
        if "attached" in line:
            return
    pytest.skip(f"strace cannot be used here: {told.strip()}")


@contextmanager
def limited(process: psutil.Process, resource: int, limit: int) -> Iterator[None]:
    """A lower limit for a process that runs, such as `psutil.RLIMIT_FSIZE`."""
    before = process.rlimit(resource)
    _, hard = before
    try:
        process.rlimit(resource, (limit, hard))
    except psutil.AccessDenied:
        pytest.skip("limits of other processes cannot be changed here")
    try:
        yield
    finally:
        process.rlimit(resource, before)


def standard_error(process: psutil.Process) -> str:
    """What a process has logged."""
    return Path(f"/proc/{process.pid}/fd/2").resolve().read_text()
