"""Finding, checking and ending the processes of one cluster, and of that cluster alone.

A cluster's mark is its own run folder. A process is the cluster's if it has the mark in its
environment (`RHEOS_CLUSTER`), on its command line, or keeps a file open below it: Ray's workers
write their title over their environment, so the environment alone misses them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable

import psutil

logger = logging.getLogger(__name__)

MARKER = "RHEOS_CLUSTER"
RAYLET = "/raylet"
"""How the program ends that is Ray's node: while it runs, the node does."""


def marked_processes(mark: str) -> list[psutil.Process]:
    """Processes that belong to the cluster with this mark, other than this one."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if is_alive(process) and _carries(process, mark):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # gone, or another user's: not ours to look at
    return found


def processes_running(mark: str, part: str) -> list[psutil.Process]:
    """Marked processes whose program's path, or that of its script, ends with `part`."""
    # An option may name the same file; the program is the first word, or a script the next.
    return [
        process
        for process in marked_processes(mark)
        if any(word.endswith(part) for word in _command(process)[:2])
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _carries(process: psutil.Process, mark: str) -> bool:
    below = mark + os.sep
    return (
        process.environ().get(MARKER) == mark
        or any(below in argument for argument in process.cmdline())
        or any(file.path.startswith(below) for file in process.open_files())
    )


def end_processes(mark: str, grace_s: float = 5.0) -> int:
    """End every marked process, politely and then not; returns how many there were."""
    first = marked_processes(mark)
    send(first, signal.SIGTERM)
    psutil.wait_procs(first, timeout=grace_s)
    num_ended = len(first)
    for _ in range(5):  # a killed parent may have started another child meanwhile
        left = marked_processes(mark)
        if not left:
            break
        send(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=grace_s)
    return num_ended


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those of these processes that are still there."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def free_port(preferred: int | None = None, host: str = "127.0.0.1") -> int:
    """`preferred` if nobody listens there, else any port that is free now."""
    for port in ([preferred] if preferred else []) + [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {host}")


def port_holder(port: int) -> str | None:
    """Who listens on `port`, in words, or None if nobody does."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS lets only root see other users' sockets
        with socket.socket() as probe:
            return "another process" if probe.connect_ex(("127.0.0.1", port)) == 0 else None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:2] == (port,):
            if connection.pid is None:
                return "another user's process"
            try:
                name = psutil.Process(connection.pid).name()
            except psutil.NoSuchProcess:
                return f"pid {connection.pid}"
            return f"pid {connection.pid} ({name})"
    return None


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.1) -> bool:
    """True as soon as `condition()` is; False if it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True
