"""Kills or stops processes of a running system, one at a time, in an order that a seed gives."""

from __future__ import annotations

import logging
import random
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import psutil
from ledger import Ledger
from live_system import LiveSystem, wait_until
from training_watch import TrainingWatch

from cluster.local_cluster import mark_of
from cluster.processes import marked_processes

logger = logging.getLogger(__name__)

PARTS: Mapping[str, str] = {
    "EventBuffer": r"ray::EventBuffer",
    "ParameterStore": r"ray::ParameterStore",
    "ItemStatistics": r"ray::ItemStatistics",
    "ItemCatalog": r"ray::ItemCatalog",
    "Keeper": r"ray::Keeper",
    "replica": r"ray::ServeReplica",
    "Serve controller": r"ray::ServeController",
    "HAProxy": r"\S+/haproxy ",
    "control store (GCS)": r"\S+/gcs_server ",
    "dashboard": r"\S*python\S* \S+/dashboard\.py ",
    "train worker": r"ray::RayTrainWorker",
    "train controller": r"ray::TrainController",
    "job driver": r"\S*python\S* -m cluster\.train_job",
    "job supervisor": r"ray::JobSupervisor",
}
"""By name, what the command line of its processes begins with."""
HANG = " hangs"
"""Behind the name of a part: it is stopped, not killed, and nobody is told."""
TRAINING = ("train worker", "train controller", "job driver", "job supervisor")
"""Each of them ends the training group, which then starts again: the slowest recovery."""
RECOVERY_S = 60.0
_PAUSE_S = (0.5, 2.0)


@dataclass(frozen=True)
class Kill:
    """One process was killed. Times after `at_s` are seconds since then, None for never.

    Attributes:
        part: What was killed.
        pid: The process.
        at_s: When, by `time.monotonic()`.
        back_s: When a new process of that part ran.
        written_s: When every shard had acknowledged a batch that was sent after the kill.
        learned_s: When a version was served that had learned an event acknowledged after the kill.
    """

    part: str
    pid: int
    at_s: float
    back_s: float | None
    written_s: float | None
    learned_s: float | None

    @property
    def has_recovered(self) -> bool:
        """Whether everything went on in time."""
        return None not in (self.back_s, self.written_s, self.learned_s)


def processes_of(system: LiveSystem, pattern: str) -> list[psutil.Process]:
    """A system's processes whose command line begins with a pattern, oldest first."""
    found = []
    for process in marked_processes(mark_of(system.data_dir)):
        try:
            if re.match(pattern, " ".join(process.cmdline())):
                found.append((process.create_time(), process))
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def went_on(ledger: Ledger, watch: TrainingWatch, at_s: float) -> tuple[float | None, float | None]:
    """Seconds from a kill until every shard wrote, and until training learned of each."""
    told_s: dict[int, float] = {}
    offsets: dict[int, int] = {}
    for acknowledgement in ledger.acknowledged_after(at_s):
        for shard, offset in acknowledgement.offsets.items():
            told_s.setdefault(shard, acknowledgement.told_s)
            offsets.setdefault(shard, offset)
    if not offsets or len(offsets) < watch.num_shards:
        return None, None
    learned_s = watch.learned_s(offsets)
    return max(told_s.values()) - at_s, None if learned_s is None else learned_s - at_s


def schedule(num_kills: int, rng: random.Random) -> Iterator[str]:
    """`num_kills` parts, in rounds of a new order: one part of training, and each other part."""
    others = [part for part in PARTS if part not in TRAINING]
    training: list[str] = []
    this_round: list[str] = []
    for _ in range(num_kills):
        if not this_round:
            training = training or rng.sample(TRAINING, len(TRAINING))
            this_round = rng.sample([*others, training.pop()], len(others) + 1)
        yield this_round.pop()


class Killer:
    """Kills, waits until everything goes on as before or `RECOVERY_S` have passed, kills again."""

    def __init__(
        self,
        system: LiveSystem,
        ledger: Ledger,
        watch: TrainingWatch,
        rng: random.Random,
        *,
        spares_oldest: bool = False,
    ) -> None:
        """Nothing is killed yet.

        Args:
            system: Whose processes are killed.
            ledger: Tells when a batch was acknowledged.
            watch: Tells when it was learned.
            rng: Chooses the process, and the pauses.
            spares_oldest: Of several processes of a part, kill the newest: the others live on.
        """
        self._spares_oldest = spares_oldest
        self._system = system
        self._ledger = ledger
        self._watch = watch
        self._rng = rng

    def run(self, parts: Iterable[str]) -> Iterator[Kill]:
        """Kill a process of each of these parts; yields when the system has got over it.

        A name that ends in `HANG` stops the process instead.
        """
        for part in parts:
            yield self._kill(part)
            time.sleep(self._rng.uniform(*_PAUSE_S))

    def _kill(self, part: str) -> Kill:
        pattern = PARTS[part.removesuffix(HANG)]
        before = wait_until(
            lambda: processes_of(self._system, pattern), RECOVERY_S, f"a process of {part}"
        )
        # After a reload an older HAProxy may still finish its connections: the newest listens.
        is_newest = part == "HAProxy" or self._spares_oldest
        victim = before[-1] if is_newest else self._rng.choice(before)
        victim.send_signal(signal.SIGSTOP if part.endswith(HANG) else signal.SIGKILL)
        at_s = time.monotonic()
        back_s: float | None = None
        while True:
            now_s = time.monotonic()
            if back_s is None and set(processes_of(self._system, pattern)) - set(before):
                back_s = now_s - at_s
            kill = Kill(part, victim.pid, at_s, back_s, *went_on(self._ledger, self._watch, at_s))
            if kill.has_recovered or now_s > at_s + RECOVERY_S:
                logger.info("got over %s", kill)
                return kill
            time.sleep(0.2)
