"""The keeper as it runs: it mends what Ray leaves broken."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from actor_tools import kill_process, process_of, wait_until

from actors.asking import ask
from actors.keeper import ActorSpec, JobSpec, Keeper
from actors.messages import ShardUnavailable
from actors.naming import NAMESPACE, NamedActor, find_actor, start_actor
from actors.settings import KeeperSettings

pytestmark = pytest.mark.actor

SETTINGS = KeeperSettings(interval_s=0.2, hang_timeout_s=2.0)


def patient_class(folder: Path) -> type:
    """An actor that is well, or ill if the test says so; pickles by value."""
    ill = folder / "ill"

    @dataclass(frozen=True)
    class Status:
        state: str

    class Patient:
        def __init__(self, greeting: str) -> None:
            self.greeting = greeting

        async def greet(self) -> str:
            return f"{self.greeting} from {os.getpid()}"

        async def status(self) -> Status:
            return Status("failed" if ill.exists() else "ready")

        async def recover(self) -> None:
            ill.unlink(missing_ok=True)

    return Patient


class Ward:
    """A keeper and the one actor it watches, under names of this test's own."""

    def __init__(self, folder: Path) -> None:
        number = uuid.uuid4().hex
        self.folder = folder
        self.name = f"patient-{number}"
        self.spec = ActorSpec(self.name, patient_class(folder), ("hello",))
        self.first = self.spec.start()
        ray.get(self.first.status.remote(), timeout=40)  # or the keeper would find a slow start
        self.patient: NamedActor = find_actor(self.name)
        self.keeper = start_actor(Keeper, f"keeper-{number}", [self.spec], folder, SETTINGS)

    async def pid(self) -> int:
        """Asks as a client does; the process that answers."""
        answer: str = await ask(self.patient, "greet", timeout_s=2.0)
        greeting, pid = answer.split(" from ")
        assert greeting == "hello"
        return int(pid)

    async def is_reached(self) -> bool:
        try:
            await self.pid()
        except ShardUnavailable:
            return False
        return True

    async def keeper_status(self) -> dict[str, Any]:
        status: dict[str, Any] = await ask(self.keeper, "status", timeout_s=40.0, retry=True)
        assert status["watches"] == [self.name]
        return status

    async def deeds(self) -> list[str]:
        status = await self.keeper_status()
        return [deed.split(" ", 1)[1] for deed in status["deeds"]]

    def end(self) -> None:
        ray.kill(self.keeper)
        ray.kill(ray.get_actor(self.name, namespace=NAMESPACE))


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    made = Ward(tmp_path)
    yield made
    made.end()


async def seen_by_keeper(ward: Ward) -> None:
    """The patient fell ill and was healed, so the keeper has looked at it."""
    (ward.folder / "ill").touch()

    async def is_healed() -> bool:
        return not (ward.folder / "ill").exists()

    await wait_until(is_healed, 30.0)


async def test_an_actor_that_failed_is_told_to_recover(ward: Ward) -> None:
    before = await ward.pid()
    await seen_by_keeper(ward)
    assert await ward.pid() == before
    assert await ward.deeds() == []


async def test_an_actor_that_was_killed_for_good_comes_back_to_its_clients(ward: Ward) -> None:
    await seen_by_keeper(ward)
    before = await ward.pid()
    ray.kill(ward.first, no_restart=True)
    await wait_until(ward.is_reached, 20.0)
    assert await ward.pid() != before
    assert await ward.deeds() == [f"{ward.name} was gone and is started again"]
    with pytest.raises(ShardUnavailable):  # what a handle without a name would have
        await ask(ward.first, "greet", timeout_s=2.0)


async def test_an_actor_that_hangs_is_killed_and_restarted(ward: Ward) -> None:
    await seen_by_keeper(ward)
    process = await asyncio.to_thread(process_of, ward.first)
    process.send_signal(signal.SIGSTOP)
    try:
        assert not await ward.is_reached()
        await wait_until(ward.is_reached, 30.0)
    finally:
        if psutil.pid_exists(process.pid):
            process.send_signal(signal.SIGCONT)
    assert await ward.pid() != process.pid
    # More than once if this machine takes longer to start a process than the keeper waits.
    assert set(await ward.deeds()) == {f"{ward.name} did not answer and is restarted"}


async def test_a_keeper_that_was_killed_goes_on_by_itself(ward: Ward) -> None:
    await seen_by_keeper(ward)
    await asyncio.to_thread(kill_process, ward.keeper)
    await seen_by_keeper(ward)
    assert await ward.deeds() == []


async def test_a_training_job_is_remembered_over_a_kill_and_its_api_may_be_away(
    ward: Ward,
) -> None:
    async def asks_for_job() -> bool:
        return str((await ward.keeper_status())["training_job"]).startswith("unknown: ")

    await ask(ward.keeper, "set_job", JobSpec("http://127.0.0.1:9", "true"), timeout_s=40.0)
    await wait_until(asks_for_job, 30.0)
    await asyncio.to_thread(kill_process, ward.keeper)
    await wait_until(asks_for_job, 30.0)
    await seen_by_keeper(ward)  # it looks after the actors all the same
    await ask(ward.keeper, "set_job", None, timeout_s=10.0)
    assert (ward.folder / "keeper.json").read_text() == "null"
