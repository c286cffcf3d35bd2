"""The keeper: the supervisor that Ray does not give.

Ray restarts an actor whose process dies. It does not bring back one that hangs, one whose restarts
were forbidden by a kill, or a training job whose driver died, and it does not mind that a node has
another disk than the actor needs. The keeper does, and says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from actors.asking import ask
from actors.durable_files import replace_file
from actors.messages import OtherDisk, ShardUnavailable
from actors.naming import NAMESPACE, start_actor
from actors.settings import KeeperSettings
from actors.telemetry import KeeperMetrics

logger = logging.getLogger(__name__)

JOB_PREFIX = "rheos-training-"
KEEPER_FILE = "keeper.json"
_MAX_BACKOFF_S = 60.0
_MAX_PATIENCE_S = 300.0


@dataclass(frozen=True)
class ActorSpec:
    """How to start a named actor. It must have an async `status()`."""

    name: str
    actor_class: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def start(self) -> Any:
        """The actor; started if there is none."""
        return start_actor(self.actor_class, self.name, *self.args, **self.kwargs)


@dataclass(frozen=True)
class JobSpec:
    """The training job, as `ray job submit` takes it."""

    dashboard_url: str
    entrypoint: str
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Deed:
    """One thing the keeper did, for people to read."""

    at_ms: int
    what: str


class Keeper:
    """Looks at every part in turn and mends what does not answer.

    Promises to touch only actors it was given and jobs whose id starts with `rheos-training-`. A
    restart forgets what it did, not what it has to do: that is in `keeper.json`.
    """

    def __init__(self, specs: list[ActorSpec], data_dir: Path, settings: KeeperSettings) -> None:
        """Begin to look, on a thread: Ray calls nobody when it starts this actor again."""
        self._specs = specs
        self._job_path = data_dir / KEEPER_FILE
        self._settings = settings
        self._metrics = KeeperMetrics()
        self._deeds: deque[Deed] = deque(maxlen=100)
        self._last_answer_s: dict[str, float] = {}
        self._patience_s: dict[str, float] = {}
        self._moved_s: dict[str, float] = {}
        self._backoff_s = settings.job_backoff_s
        self._next_submit_s = 0.0
        self._job_state, self._job_id = "none", ""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    async def set_job(self, job: JobSpec | None) -> None:
        """Take charge of a training job, or leave the jobs alone. Remembered on disk."""
        document = None if job is None else asdict(job)
        replace_file(self._job_path, json.dumps(document).encode())
        self._next_submit_s = 0.0

    async def status(self) -> dict[str, Any]:
        """What it watches and what it did last."""
        return {
            "watches": [spec.name for spec in self._specs],
            "training_job": self._job_state,
            "training_job_id": self._job_id,
            "deeds": [f"{deed.at_ms} {deed.what}" for deed in self._deeds],
        }

    def _job(self) -> JobSpec | None:
        try:
            document = json.loads(self._job_path.read_bytes())
        except FileNotFoundError:
            return None
        return None if document is None else JobSpec(**document)

    async def _run(self) -> None:
        while True:
            await asyncio.gather(*(self._look_at(spec) for spec in self._specs))
            if (job := self._job()) is not None:
                try:
                    await asyncio.to_thread(self._look_at_job, job)
                except (RuntimeError, OSError, RayError) as error:
                    self._job_state = f"unknown: {error!r:.200}"
                    logger.warning("the job API did not answer error=%r", error)
            await asyncio.sleep(self._settings.interval_s)

    async def _look_at(self, spec: ActorSpec) -> None:
        now_s = time.monotonic()
        try:
            handle = await asyncio.to_thread(self._find_or_start, spec)
            status = await ask(handle, "status", timeout_s=self._settings.interval_s)
            self._last_answer_s[spec.name] = time.monotonic()
            self._patience_s.pop(spec.name, None)
            if getattr(status, "state", "") == "failed":
                if await asyncio.to_thread(self._should_move, spec, getattr(status, "reason", "")):
                    await asyncio.to_thread(self._move, spec)
                else:
                    await ask(handle, "recover", timeout_s=self._settings.hang_timeout_s)
        except ShardUnavailable:
            silent_s = now_s - self._last_answer_s.setdefault(spec.name, now_s)
            patience_s = self._patience_s.setdefault(spec.name, self._settings.hang_timeout_s)
            if silent_s > patience_s:
                await asyncio.to_thread(self._kill, spec)
                self._last_answer_s[spec.name] = time.monotonic()
                # A start that takes longer than we wait must not be ended again and again.
                self._patience_s[spec.name] = max(patience_s, min(2 * patience_s, _MAX_PATIENCE_S))
        except RayError as error:
            logger.warning("cannot look at actor=%s error=%r", spec.name, error)

    def _find_or_start(self, spec: ActorSpec) -> Any:
        try:
            return ray.get_actor(spec.name, namespace=NAMESPACE)
        except ValueError:
            if spec.name in self._last_answer_s:
                self._note("recreated", f"{spec.name} was gone and is started again")
            return spec.start()

    def _should_move(self, spec: ActorSpec, reason: str) -> bool:
        """Whether the actor's disk may be on another node; not again before a restart is over."""
        if not reason.startswith(OtherDisk.__name__):
            return False
        moved_s = self._moved_s.get(spec.name, -math.inf)
        is_over = time.monotonic() - moved_s > self._settings.hang_timeout_s
        return is_over and sum(node["Alive"] for node in ray.nodes()) > 1

    def _move(self, spec: ActorSpec) -> None:
        """Let Ray choose a node once more; it may choose the same."""
        self._moved_s[spec.name] = time.monotonic()
        self._note("moved", f"{spec.name} is on a node with another disk and is restarted")
        self._restart(spec)

    def _kill(self, spec: ActorSpec) -> None:
        self._note("killed_hung", f"{spec.name} did not answer and is restarted")
        self._restart(spec)

    def _restart(self, spec: ActorSpec) -> None:
        try:
            # Ray's default forbids the restart, also for an actor with max_restarts=-1.
            ray.kill(ray.get_actor(spec.name, namespace=NAMESPACE), no_restart=False)
        except ValueError:
            logger.warning("gone before it was killed actor=%s", spec.name)

    def _look_at_job(self, job: JobSpec) -> None:
        client = JobSubmissionClient(job.dashboard_url)
        ours = [
            details
            for details in client.list_jobs()
            if (details.submission_id or "").startswith(JOB_PREFIX)
        ]
        newest = max(ours, key=lambda details: details.start_time or 0, default=None)
        self._job_state = "none" if newest is None else str(newest.status.value)
        self._job_id = "" if newest is None else str(newest.submission_id)
        alive = (JobStatus.PENDING, JobStatus.RUNNING)
        if newest is not None and newest.status in (*alive, JobStatus.STOPPED):
            self._backoff_s = self._settings.job_backoff_s
            return  # a stopped job was stopped by a person
        if time.monotonic() < self._next_submit_s:
            return
        self._next_submit_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        if newest is not None:
            self._note("resubmitted", f"{newest.submission_id} ended as {newest.status.value}")
        client.submit_job(
            entrypoint=job.entrypoint,
            submission_id=f"{JOB_PREFIX}{time.time_ns() // 1_000_000}",
            runtime_env=dict(job.runtime_env),
        )

    def _note(self, deed: str, what: str) -> None:
        self._metrics.count(deed)
        self._deeds.append(Deed(time.time_ns() // 1_000_000, what))
        logger.warning("keeper %s: %s", deed, what)
