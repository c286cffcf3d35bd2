"""Processes of a running system are killed; learning and serving go on.

Its training group has two workers, so that they also show data-parallel training in the loop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from live_system import LiveSystem, simulated_stream, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSystem]:
    live = LiveSystem(tmp_path_factory.mktemp("chaos"), num_workers=2)
    try:
        live.up()
        live.ingest_simulated()
        live.wait_for_version(1)
        yield live
    finally:
        live.down()


def kill(system: LiveSystem, name: str) -> int:
    """`kill -9` one process by what its title contains."""
    pid = system.worker_pids(name)[0]
    os.kill(pid, signal.SIGKILL)
    return pid


def test_training_goes_on_after_its_worker_is_killed(system: LiveSystem) -> None:
    before = system.model()
    assert len(system.worker_pids("RayTrainWorker")) == 2
    pid = kill(system, "RayTrainWorker")
    item = simulated_stream().items[5].item_id
    offsets = system.click("during-the-outage", item)["offsets"]
    system.wait_until_learned(offsets, timeout_s=90.0)
    after = system.model()
    assert after["model_version"] > before["model_version"]
    assert pid not in system.worker_pids("RayTrainWorker")


def test_an_acknowledged_event_survives_its_shard(system: LiveSystem) -> None:
    items = [item.item_id for item in simulated_stream().items[:30]]
    users = [f"survivor-{number}" for number in range(20)]
    for user in users:
        system.click(user, *items)
    kill(system, "EventBuffer")

    def all_back() -> bool:
        answers = [system.recommend(user) for user in users]
        return all(a["history_length"] == len(items) and not a["degraded"] for a in answers)

    wait_until(all_back, 30.0, "every history complete again")


def test_serving_goes_on_without_the_parameter_store(system: LiveSystem) -> None:
    version = system.model()["model_version"]
    kill(system, "ParameterStore")
    for number in range(50):
        assert system.recommend(f"visitor-{number}")["model_version"] >= version
    offsets = system.click("after-the-store", simulated_stream().items[9].item_id)["offsets"]
    system.wait_until_learned(offsets, timeout_s=90.0)
    assert system.model()["model_version"] > version
