"""Closes the ingress without cutting anyone off: the port first, then what is still being answered.

Serve itself kills HAProxy when it shuts down, with every request that is on its way.
"""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil

from cluster.processes import is_alive, marked_processes, send

_ADMIN_TIMEOUT_S = 2.0
_POLL_S = 0.05
_QUIET_S = 1.0
"""Clients with connections that are kept alive may still send on them; each ends with an answer."""
_PROMPT = b"\n> "


def close_ingress(mark: str, timeout_s: float) -> bool:
    """Take no more connections, and wait for the answers to every request that was taken.

    The port refuses at once. It is over when nothing has been under way for a second: then HAProxy
    may be ended, and cuts nobody off. Call it only if everything is ended afterwards.

    Args:
        mark: Of the cluster, which is also the folder that its HAProxy has its admin socket in.
        timeout_s: How long that may take.

    Returns:
        Whether it came to that in time.
    """
    processes = marked_processes(mark)
    haproxies = [process for process in processes if process.name() == "haproxy"]
    # Serve's controller would take an HAProxy that closes for a broken one, and put another there.
    send([process for process in processes if _is_controller(process)], signal.SIGSTOP)
    with ExitStack() as stack:
        # Opened before: an HAProxy that closes listens to nobody new, here neither.
        sockets = Path(mark).glob("*/ha.sock")
        admins = [stack.enter_context(closing(_Admin(path))) for path in sockets]
        send(haproxies, signal.SIGUSR1)
        return _wait_until_quiet(haproxies, admins, timeout_s)


def _wait_until_quiet(
    haproxies: list[psutil.Process], admins: list[_Admin], timeout_s: float
) -> bool:
    now_s = busy_s = time.monotonic()
    deadline_s = now_s + timeout_s
    while now_s < deadline_s:
        # One that Serve has replaced a moment ago cannot be asked, and ends after its last answer.
        num_replaced = sum(is_alive(process) for process in haproxies) - len(admins)
        if num_replaced > 0 or any(admin.is_busy() for admin in admins):
            busy_s = now_s
        elif now_s - busy_s >= _QUIET_S:
            return True
        time.sleep(_POLL_S)
        now_s = time.monotonic()
    return False


class _Admin:
    """A session on HAProxy's admin socket. With a HAProxy that is gone or hangs it has no news."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ADMIN_TIMEOUT_S)
        with suppress(OSError):
            self._socket.connect(str(path))
            self._ask("prompt")  # keeps the session open after an answer

    def close(self) -> None:
        """End the session."""
        self._socket.close()

    def is_busy(self) -> bool:
        """Whether a request has no answer yet; connections without one do not count."""
        with suppress(OSError):
            return b" fe=http_frontend " in self._ask("show sess")
        return False

    def _ask(self, command: str) -> bytes:
        self._socket.sendall(f"{command}\n".encode("ascii"))
        answer = b""
        while not answer.endswith(_PROMPT):
            if not (data := self._socket.recv(65_536)):
                break
            answer += data
        return answer


def _is_controller(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("ray::ServeController") for word in process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return False
