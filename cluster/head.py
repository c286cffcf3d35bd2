"""The head of a node: starts Ray's processes, and again those that the others outlive.

`ray start --block` ends the node when any of its processes dies. Two need not take it along: the
control store (GCS), which finds its state on disk again (RocksDB), and the dashboard, which runs
the job API. `python -m cluster.head ARGUMENTS` is `ray start ARGUMENTS` with that difference. It
looks only at processes that carry the mark it has itself (see `processes.py`).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Self

import psutil

from cluster.processes import MARKER, RAYLET, end_processes, is_alive, processes_running

logger = logging.getLogger(__name__)

RESTARTED = ("/gcs_server", "/dashboard.py")
"""How their programs' paths end."""
_POLL_S = 0.25
_QUICK_DEATH_S = 10.0
_MAX_QUICK_DEATHS = 5


def main(arguments: list[str]) -> int:
    """Start Ray and watch over it; returns only when it has ended."""
    mark = os.environ[MARKER]
    started = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments], check=False
    )
    if started.returncode:
        return started.returncode
    watch_over(Child.find(mark, RAYLET), [Child.find(mark, part) for part in RESTARTED])
    end_processes(mark)
    return 1


def watch_over(raylet: Child, children: list[Child]) -> None:
    """Start the children again when they die, until the node cannot go on."""
    while raylet.is_alive():
        for child in children:
            if not child.is_alive():
                if child.num_quick_deaths == _MAX_QUICK_DEATHS:
                    logger.error("died %d times at once part=%s", _MAX_QUICK_DEATHS, child.part)
                    return
                logger.warning("started again part=%s", child.part)
                child.restart()
        time.sleep(_POLL_S)
    logger.error("the raylet died, and the node with it")


@dataclass
class Child:
    """One process of the node, and how to start it again."""

    part: str
    process: psutil.Process
    command: list[str] = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    started_s: float
    num_quick_deaths: int = 0
    ours: subprocess.Popen[bytes] | None = None
    """Where we started it."""

    @classmethod
    def find(cls, mark: str, part: str) -> Self:
        """The process of this part.

        Raises:
            LookupError: If there is none.
        """
        for process in processes_running(mark, part):
            command, environment = process.cmdline(), process.environ()
            return cls(part, process, command, environment, process.create_time())
        raise LookupError(f"Ray started nothing whose command line begins with {part}")

    def is_alive(self) -> bool:
        """Whether it runs."""
        return is_alive(self.process)

    def restart(self) -> None:
        """Start it as it was started."""
        if self.ours is not None:
            self.ours.wait()  # it is dead, and nobody else does
        is_quick = time.time() - self.started_s < _QUICK_DEATH_S
        self.num_quick_deaths = self.num_quick_deaths + 1 if is_quick else 0
        self.ours = subprocess.Popen(
            self.command, env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.process = psutil.Process(self.ours.pid)
        self.started_s = self.process.create_time()


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    sys.exit(main(sys.argv[1:]))
