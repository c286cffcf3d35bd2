"""Training that is killed at a place of a round and starts again, over real shards and store."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from local_actors import LocalActor, Storage
from numpy.typing import NDArray

from actors import parameter_store_client
from actors.lessons import Lesson, TrainingJobSettings
from actors.lineage import Lineage
from actors.messages import Manifest, VersionInfo, Watermark
from actors.parameter_store import ParameterStore
from actors.parameter_store_client import ParameterStoreClient
from actors.settings import StorageSettings, StoreSettings
from actors.stream_feed import CatalogGrowth, FreshPart, StreamFeed
from actors.teacher import Teacher
from actors.training_loop import TrainingLoop
from actors.worker_group import WorkerGroup
from recommender.events import Event
from recommender.guard import Guard
from recommender.promotion import Decision, Verdict
from recommender.training import Learner
from recommender.windows import Windows


class Killed(Exception):
    """Stands for `kill -9`: nobody catches it, and the process's memory is gone."""


class StreamEnded(Exception):
    """The last round was learned."""


@dataclass(frozen=True)
class Arrivals:
    """What comes in before a round."""

    items: Sequence[str]
    events: Sequence[Event]


@dataclass(frozen=True)
class Kill:
    """A place to die at.

    Attributes:
        owner: Class of a method.
        method: Its name.
        is_after: Whether the call is over by then.
        num_versions: How many versions were stored before the call.
        call: Which call since then, from 1 on.
    """

    owner: type
    method: str
    is_after: bool
    num_versions: int
    call: int = 1


@dataclass(frozen=True)
class Learned:
    """What a run left of one version.

    Attributes:
        losses: Of each step since the version before.
        sha256: Of all arrays, but for numbers of versions: a failed write uses one up.
        kept: Watermarks of the versions that the guard may go back to.
        is_promoted: Whether it is the head or an ancestor of it.
        urgency: Of the guard.
        quarantined: As in its manifest.
        fresh: Offsets that were learned as fresh for it, by shard.
    """

    losses: tuple[float, ...]
    sha256: str
    kept: tuple[Watermark, ...]
    is_promoted: bool
    urgency: float
    quarantined: tuple[tuple[int, int, int], ...]
    fresh: Mapping[int, tuple[int, ...]]


@dataclass
class Process:
    """What one training process has done since its last version."""

    losses: list[float] = field(default_factory=list)
    fresh: dict[int, list[int]] = field(default_factory=dict)


class Reference:
    """Arrays that were put where others can get them."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    def __await__(self) -> Generator[None, None, dict[str, NDArray[Any]]]:
        yield from ()
        return self._arrays


class BrokenRun:
    """One stream, and the training processes that come one after the other."""

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        settings: TrainingJobSettings,
        arrivals: Sequence[Arrivals],
        kills: Sequence[Kill] = (),
        *,
        reopens: bool = False,
        rejects: int | None = None,
        alarms: int | None = None,
    ) -> None:
        """Run to the end of the stream.

        Args:
            folder: Where shards, catalogue and store are.
            patch: Of this run alone.
            settings: Of the job.
            arrivals: Before the warm-up, and before each round.
            kills: Where the first process dies, where the second does, and so on.
            reopens: Whether shards and store die with them.
            rejects: The candidate after so many versions is rejected.
            alarms: After so many versions the guard sees a world that has changed.
        """
        self.num_kills = 0
        self._folder, self._patch, self._settings = folder, patch, settings
        self._runner = asyncio.Runner()
        self._arrivals = list(arrivals)
        self._process = Process()
        self._stored: dict[Watermark, Process] = {}
        self._num_stored = 0
        self._open()
        self._watch()
        self._reject_after(rejects)
        self._alarm_after(alarms)
        self._arrive()
        for kill in kills:
            self._train_until(kill)
            if reopens:
                self._close()
                self._open()
        self._train()
        self.learned = self._learned()
        self._close()
        self._runner.close()

    def in_order(self) -> list[Learned]:
        """What was learned, oldest first."""
        return [self.learned[watermark] for watermark in sorted(self.learned)]

    def _open(self) -> None:
        self._storage = Storage(self._folder, self._patch)
        store = ParameterStore(
            StorageSettings(data_dir=self._folder, min_free_bytes=0),
            StoreSettings(keep_versions=100),
            put=dict,
        )
        self._store = LocalActor(store)
        self._patch.setattr(parameter_store_client, "find_actor", lambda _: self._store)
        self._patch.setattr(ray, "put", Reference)

    def _close(self) -> None:
        self._runner.run(self._storage.close())
        self._runner.run(self._store.actor.close())

    def _train_until(self, kill: Kill) -> None:
        with pytest.MonkeyPatch.context() as patch:
            self._arm(kill, patch)
            try:
                self._train()
            except Killed:
                self.num_kills += 1

    def _train(self) -> None:
        """A new process, to the end of the stream or its own."""
        self._process = Process()
        loop = TrainingLoop(self._settings, WorkerGroup(0, 1, torch.device("cpu")))
        assert loop.teacher is not None
        loop.teacher.feed._runner.close()
        loop.teacher.feed._runner = self._runner
        try:
            loop.run()
        except StreamEnded:
            return

    def _arrive(self) -> None:
        if not self._arrivals:
            raise StreamEnded
        arrivals = self._arrivals.pop(0)
        self._runner.run(self._storage.put(*arrivals.items))
        for shard in (0, 1):
            events = [e for e in arrivals.events if int(e.user_id[2:]) % 2 == shard]
            self._runner.run(self._storage.append(shard, events))

    def _watch(self) -> None:
        """Let the next round come in once the last one is learned, and note what is done."""
        wait, step = StreamFeed.wait, Learner.step
        lesson, publish = Teacher._lesson, ParameterStoreClient.publish

        def wait_and_feed(
            feed: StreamFeed, *, enough: int, interval_s: float, timeout_s: float
        ) -> int:
            if timeout_s and sum(feed.watermark) + len(feed.watermark) == feed.num_events():
                self._arrive()
            return wait(feed, enough=enough, interval_s=interval_s, timeout_s=timeout_s)

        def noted_step(learner: Learner, windows: Windows, *args: Any, **options: Any) -> float:
            loss = step(learner, windows, *args, **options)
            self._process.losses.append(loss)
            return loss

        def noted_lesson(teacher: Teacher, parts: list[FreshPart], growth: CatalogGrowth) -> Lesson:
            for part in parts:
                fresh = self._process.fresh.setdefault(part.shard, [])
                fresh.extend(range(part.through - part.num_read + 1, part.through + 1))
            return lesson(teacher, parts, growth)

        async def noted_publish(
            store: ParameterStoreClient, manifest: Manifest, *args: Any, **options: Any
        ) -> VersionInfo:
            self._stored[manifest.trained_through] = self._process
            self._process = Process()
            info = await publish(store, manifest, *args, **options)
            self._num_stored += 1
            return info

        self._patch.setattr(StreamFeed, "wait", wait_and_feed)
        self._patch.setattr(Learner, "step", noted_step)
        self._patch.setattr(Teacher, "_lesson", noted_lesson)
        self._patch.setattr(ParameterStoreClient, "publish", noted_publish)
        self._patch.setattr(TrainingLoop, "_report_to_train", lambda _: None)

    def _reject_after(self, num_versions: int | None) -> None:
        judge = Lineage.judge

        def strict(lineage: Lineage, *args: Any) -> Decision:
            decision = judge(lineage, *args)
            if self._num_stored == num_versions:
                return Decision(Verdict.REJECT, "told to")
            return decision

        self._patch.setattr(Lineage, "judge", strict)

    def _alarm_after(self, num_versions: int | None) -> None:
        observe = Guard.observe

        def alarmed(guard: Guard, *args: Any) -> Decision:
            decision = observe(guard, *args)
            if self._num_stored == num_versions:
                guard.urgency.alarm()
            return decision

        self._patch.setattr(Guard, "observe", alarmed)

    def _arm(self, kill: Kill, patch: pytest.MonkeyPatch) -> None:
        method = getattr(kill.owner, kill.method)
        num_calls = 0

        def is_due() -> bool:
            nonlocal num_calls
            num_calls += self._num_stored == kill.num_versions
            return self._num_stored == kill.num_versions and num_calls == kill.call

        def die(*args: Any, **options: Any) -> Any:
            due = is_due()
            if due and not kill.is_after:
                raise Killed
            answer = method(*args, **options)
            if due:
                raise Killed
            return answer

        async def die_async(*args: Any, **options: Any) -> Any:
            due = is_due()
            if due and not kill.is_after:
                raise Killed
            answer = await method(*args, **options)
            if due:
                raise Killed
            return answer

        stand_in = die_async if inspect.iscoroutinefunction(method) else die
        patch.setattr(kill.owner, kill.method, stand_in)

    def _learned(self) -> dict[Watermark, Learned]:
        """What is on disk of every version, by its watermark."""
        run, store = self._runner.run, self._store.actor
        infos = {info.manifest.version: info for info in run(store.list_versions())}
        promoted: list[int] = []
        version = run(store.head()).manifest.version
        while version:
            promoted.append(version)
            version = infos[version].manifest.parent
        learned = {}
        for number, info in infos.items():
            done = self._stored[info.manifest.trained_through]
            arrays = {**run(store.read(number)), **run(store.read_trainer(number))}
            kept = arrays.pop("guard.versions").tolist()
            del arrays["guard.users_at"]
            learned[info.manifest.trained_through] = Learned(
                losses=tuple(done.losses),
                sha256=_sha256(arrays),
                kept=tuple(infos[v].manifest.trained_through for v in kept if v),
                is_promoted=number in promoted,
                urgency=float(arrays["guard.urgency"]),
                quarantined=info.manifest.quarantined,
                fresh={shard: tuple(offsets) for shard, offsets in done.fresh.items()},
            )
        return learned


def _sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
