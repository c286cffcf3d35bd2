"""A teacher over actors in this process and a store in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_actors import Storage
from numpy.typing import NDArray

from actors.event_buffer import wall_clock_ms
from actors.lessons import Restart, TrainingJobSettings
from actors.messages import Head, Manifest, VersionInfo
from actors.parameter_store_client import ParameterStoreClient
from actors.settings import BufferSettings, LoopSettings
from actors.teacher import Teacher
from recommender.events import Event
from recommender.model import Recommender
from recommender.settings import FactorSettings, ModelSettings, TrainingSettings
from recommender.training import Learner

ITEMS = [f"i-{number}" for number in range(10)]
OFF = FactorSettings()
MODEL = ModelSettings(dim=8, num_layers=1, intermediate=8, window=3, half_lives=(10.0, 100.0))


def job(ials: FactorSettings = OFF) -> TrainingJobSettings:
    """A small model, and rounds that wait for nothing."""
    return TrainingJobSettings(
        loop=LoopSettings(warmup_events=100, scored_per_round=1_000, round_events=1),
        buffer=BufferSettings(num_shards=2),
        model=MODEL,
        training=TrainingSettings(batch_windows=8, fresh_windows=2, warmup_epochs=1),
        ials=ials,
    )


def taste_events(first: int, last: int, num_users: int = 30) -> list[Event]:
    """Users take turns. Half of the items are for those with an even number."""
    rng = np.random.default_rng(first)
    return [
        Event(
            f"e-{number}",
            f"u-{number % num_users}",
            ITEMS[5 * (number % 2) + int(rng.integers(5))],
            "click",
            1.0,
            1_000 * number,
        )
        for number in range(first, last)
    ]


class FakeStore:
    """Versions in memory; the newest that was promoted is the head."""

    def __init__(self) -> None:
        self.payloads: list[Mapping[str, NDArray[Any]]] = []
        self.trainers: list[Mapping[str, NDArray[Any]]] = []
        self.infos: list[VersionInfo] = []
        self.current: Head | None = None

    async def head(self) -> Head | None:
        return self.current

    async def publish(
        self,
        manifest: Manifest,
        payload: Mapping[str, NDArray[Any]],
        trainer: Mapping[str, NDArray[Any]],
        promote: bool = True,
    ) -> VersionInfo:
        number = len(self.infos) + 1
        info = VersionInfo(replace(manifest, version=number), promote, False, 0)
        self.infos.append(info)
        self.payloads.append({name: np.array(value) for name, value in payload.items()})
        self.trainers.append({name: np.array(value) for name, value in trainer.items()})
        if promote:
            await self.promote(number, "published")
        return info

    async def promote(self, version: int, reason: str) -> Head:
        sequence = 1 if self.current is None else self.current.sequence + 1
        self.current = Head(sequence, self.infos[version - 1].manifest, reason)
        return self.current

    async def read(self, version: int) -> Mapping[str, NDArray[Any]]:
        return self.payloads[version - 1]

    async def read_trainer(self, version: int) -> Mapping[str, NDArray[Any]]:
        return self.trainers[version - 1]

    async def list_versions(self) -> list[VersionInfo]:
        return self.infos[::-1]

    async def pin(self, _version: int) -> None: ...

    async def unpin(self, _version: int) -> None: ...


class World:
    """Storage, a store, and the teachers that come one after the other."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storage = Storage(folder, monkeypatch, num_shards=2, now_ms=wall_clock_ms)
        self.store = FakeStore()
        self.teachers: list[Teacher] = []
        monkeypatch.setattr(ParameterStoreClient, "connect", lambda **_: self.store)

    def start(self, settings: TrainingJobSettings) -> Teacher:
        """A teacher over what its forerunners left."""
        teacher = Teacher(settings)
        if self.teachers:  # the actors live in the event loop of the first
            teacher.feed._runner.close()
            teacher.feed._runner = self.teachers[0].feed._runner
        self.teachers.append(teacher)
        return teacher

    def append(self, events: Sequence[Event]) -> None:
        """Acknowledge them; a user's shard is its number's last bit."""
        run = self.teachers[0].feed.run
        for shard in (0, 1):
            run(self.storage.append(shard, [e for e in events if int(e.user_id[2:]) % 2 == shard]))

    def warmed_up(
        self,
        settings: TrainingJobSettings,
        events: Sequence[Event] = tuple(taste_events(0, 200)),
        num_steps: int = 0,
    ) -> tuple[Teacher, Learner]:
        """A teacher after its first version, which took so many steps."""
        teacher = self.start(settings)
        teacher.feed.run(self.storage.put(*ITEMS))
        self.append(events)
        action = teacher.next_action(True)
        assert isinstance(action, Restart)
        assert action.state is None
        learner = Learner(Recommender(MODEL, action.growth.new_VD), settings.training, seed=0)
        _, popularity_MV, touched_V = teacher.warmup_state()
        for batch in islice(cycle(teacher.warmup_batches(0)), num_steps):
            learner.step(batch, popularity_MV, touched_V)
        teacher.publish(learner, "warm-up")
        return teacher, learner

    def close(self) -> None:
        """Give the folders back."""
        run = self.teachers[0].feed.run
        run(self.storage.close())
        self.teachers[0].feed._runner.close()
