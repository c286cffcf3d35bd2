"""A node is cut off from the cluster, or has another disk: one shard, one history, nothing twice.

Two raylets and a control store on one machine. To be cut off, every process of the second node is
stopped: it neither answers nor ends, and still holds what it held.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from both_sides import FarSide, NearSide, slow_fsync, stored_ids
from two_nodes import FarNode, TwoNodes, node_of, pid_of, start_on, two_nodes
from under_load import ONLY_LONG

from actors.asking import ask
from actors.checked_json import read_checked_json
from actors.event_buffer_client import EventBufferClient
from actors.keeper import ActorSpec, Keeper
from actors.messages import ShardStatus, ShardUnavailable
from actors.naming import KEEPER, NAMESPACE, event_buffer_name
from actors.settings import BufferSettings, KeeperSettings, StorageSettings
from actors.storage_folder import found_installation
from cluster.config import Settings
from cluster.system import actor_specs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

_SHARD = event_buffer_name(0)
_IN_USE = "in use by another process"
_SOON_S = 30.0
_FSYNC_S = 1.0
_MAX_PLACINGS = 20


@dataclass
class System:
    """The actors of these tests, started as `start_actors` does, and their client."""

    data_dir: Path
    nodes: TwoNodes

    def __post_init__(self) -> None:
        storage = StorageSettings(
            data_dir=self.data_dir,
            min_free_bytes=0,
            installation=found_installation(self.data_dir),
        )
        self.settings = Settings(
            storage=storage,
            buffer=BufferSettings(num_shards=1),
            keeper=KeeperSettings(interval_s=0.5, hang_timeout_s=4.0),
        )
        self.shard_spec = next(s for s in actor_specs(self.settings) if s.name == _SHARD)

    @property
    def folder(self) -> Path:
        """Where the shard keeps its events."""
        return self.data_dir / "events" / "shard-0"

    @property
    def epoch(self) -> int:
        """How often the folder was claimed."""
        epoch: int = read_checked_json(self.folder / "epoch.json")["epoch"]
        return epoch

    def start_keeper(self) -> None:
        """On the near node, so that it goes on."""
        keeper = ActorSpec(KEEPER, Keeper, ([self.shard_spec], self.data_dir, self.settings.keeper))
        start_on(self.nodes.near_id, keeper)

    async def start_shard_on(self, node_id: str) -> Any:
        """The shard, once it is ready there."""
        shard = start_on(node_id, self.shard_spec)
        await until(self.is_ready)
        assert node_of(_SHARD) == node_id
        return shard

    async def status(self) -> ShardStatus:
        """Of the shard, as clients find it."""
        [status] = await EventBufferClient.connect(1).statuses()
        return status

    async def is_ready(self) -> bool:
        """Whether the shard is."""
        return (await self.status()).state == "ready"

    async def deeds(self) -> list[str]:
        """What the keeper did."""
        keeper = ray.get_actor(KEEPER, namespace=NAMESPACE)
        status = await ask(keeper, "status", timeout_s=20.0, retry=True)
        return [deed.split(" ", 1)[1] for deed in status["deeds"]]

    async def end(self) -> None:
        """Kill the actors, for good."""
        for name in (KEEPER, _SHARD):
            try:
                process = psutil.Process(pid_of(name))
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
            except (ValueError, psutil.NoSuchProcess):
                continue
            await asyncio.to_thread(psutil.wait_procs, [process], 20.0)


async def until(
    condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = _SOON_S
) -> None:
    """Wait for a condition; `TimeoutError` when the time is over."""
    async with asyncio.timeout(timeout_s):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as started:
        yield started


@pytest.fixture
async def system(tmp_path: Path, nodes: TwoNodes) -> AsyncIterator[System]:
    made = System(tmp_path, nodes)
    yield made
    await made.end()


def check_books(system: System, near: NearSide, far: FarSide | None = None) -> list[str]:
    """Ids of what is stored: all that was acknowledged on either side, and nothing twice."""
    stored = stored_ids(system.data_dir)
    acknowledged = set(near.ledger.acknowledged)
    sent = set(near.ledger.sent)
    for told in far.told() if far else []:
        sent.update(told.event_ids)
        acknowledged.update(told.event_ids if told.is_acknowledged else ())
    unnoted = {name for name in stored if name.startswith("far-")}  # its last call, when it ended
    assert acknowledged - set(stored) == set()
    assert [name for name, copies in Counter(stored).items() if copies > 1] == []
    assert set(stored) - sent - unnoted == set()
    assert near.ledger.violations == []
    return stored


async def test_a_shard_waits_for_the_lock_of_a_process_that_is_cut_off_and_says_so(
    system: System, nodes: TwoNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    near, beside = NearSide(), FarSide(system.data_dir / "far-side.jsonl")
    with nodes.far_node() as far:
        shard = await system.start_shard_on(far.node_id)
        system.start_keeper()
        old_pid = pid_of(_SHARD)
        async with near.on(EventBufferClient.connect(1)):
            await until(lambda: len(near.ledger.acknowledged) > 0)
            beside.begin(shard)
            await until(lambda: len(beside.told()) > 5)
            epoch = system.epoch
            far.cut_off()
            cut_s = time.monotonic()
            await until(lambda: not far.is_alive())
            noticed_s = time.monotonic() - cut_s

            async def is_waiting() -> bool:
                status = await system.status()
                return status.state == "recovering" and _IN_USE in status.reason

            await until(is_waiting)
            assert node_of(_SHARD) == nodes.near_id
            async with asyncio.timeout(60.0):
                while (await system.status()).state != "failed":  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert _IN_USE in (await system.status()).reason
            await until(is_waiting)  # again: the keeper saw to that
            assert near.acknowledged_s(cut_s + 2.0) is None
            assert system.epoch == epoch
            far.let_go_on()
            on_s = time.monotonic()
            await until(lambda: near.acknowledged_s(on_s) is not None)
            back_s = near.acknowledged_s(on_s)
            assert back_s
            await until(lambda: not psutil.pid_exists(old_pid))
            num_acknowledged = len(near.ledger.acknowledged)
            await until(lambda: len(near.ledger.acknowledged) > num_acknowledged + 30)
        await system.end()
    assert set(near.refused) <= {"ShardUnavailable", "Recovering"}
    assert {told.error for told in beside.told()} <= {""}
    await asyncio.to_thread(check_books, system, near, beside)
    with capsys.disabled():
        print(
            f"\ncut off, lock held: Ray noticed after {noticed_s:.1f} s, no event for "
            f"{back_s - cut_s:.1f} s, until {back_s - on_s:.1f} s after the node went on; "
            f"{len(near.ledger.acknowledged)} events acknowledged, refused {dict(near.refused)}"
        )


@ONLY_LONG
async def test_a_process_whose_lock_was_lost_while_it_was_cut_off_acknowledges_nothing_more(
    system: System, nodes: TwoNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    near, beside = NearSide(), FarSide(system.data_dir / "far-side.jsonl")
    with nodes.far_node() as far:
        shard = await system.start_shard_on(far.node_id)
        system.start_keeper()
        old_pid = pid_of(_SHARD)
        async with near.on(EventBufferClient.connect(1)):
            await until(lambda: len(near.ledger.acknowledged) > 30)
        slow_fsync(shard, _FSYNC_S)
        beside.begin(shard)
        await until(lambda: len(beside.told()) > 0)
        await in_the_middle_of_a_write(system)
        far.cut_off()
        cut_s = time.monotonic()
        num_told = len(beside.told())
        (system.folder / "lock").unlink()  # as a file system without locks has none
        async with near.on(EventBufferClient.connect(1)):
            await until(lambda: near.acknowledged_s(cut_s) is not None)
            back_s = near.acknowledged_s(cut_s)
            assert back_s
            assert node_of(_SHARD) == nodes.near_id
            far.let_go_on(old_pid)
            await until(lambda: len(beside.told()) > num_told + 20)
            assert psutil.pid_exists(old_pid), "its raylet is cut off and cannot have ended it"
            far.let_go_on()
            await until(lambda: not psutil.pid_exists(old_pid))
            num_acknowledged = len(near.ledger.acknowledged)
            await until(lambda: len(near.ledger.acknowledged) > num_acknowledged + 30)
        await system.end()
    refused = beside.told()[num_told:]
    assert refused[0].error == "StorageError"
    assert {told.error for told in refused} <= {"StorageError", "ShardUnavailable"}
    stored = await asyncio.to_thread(check_books, system, near, beside)
    assert set(refused[0].event_ids) <= set(stored), "it was not stopped amid a write"
    assert not set(stored) & {name for told in refused[1:] for name in told.event_ids}
    with capsys.disabled():
        print(
            f"\ncut off, lock lost: no event for {back_s - cut_s:.1f} s; the process that was cut "
            f"off refused {len(refused)} appends and acknowledged none"
        )


async def in_the_middle_of_a_write(system: System) -> None:
    """Return when a batch is in its file, and will be fsynced later."""
    [segment] = system.folder.glob("open/*.arrow")
    size_bytes = segment.stat().st_size
    await until(lambda: segment.stat().st_size > size_bytes)


@ONLY_LONG
async def test_a_shard_on_a_node_with_another_disk_refuses_until_it_is_where_its_disk_is(
    system: System, nodes: TwoNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    near = NearSide()
    with nodes.far_node(other_disk_at=system.data_dir) as far:
        await system.start_shard_on(nodes.near_id)
        async with near.on(EventBufferClient.connect(1)):
            await until(lambda: len(near.ledger.acknowledged) > 30)
        await place_shard_on(far, system)
        moved_s = time.monotonic()
        client = EventBufferClient.connect(1)
        await until(lambda: has_failed(system))
        status = await system.status()
        assert status.reason.startswith("OtherDisk: ")
        assert f"installation {system.settings.storage.installation} is expected" in status.reason
        assert (status.next_offset, status.num_events) == (0, 0)
        with pytest.raises(ShardUnavailable, match="another disk"):
            await client.history("near-user-0")
        async with near.on(client):
            await until(lambda: near.refused["ShardUnavailable"] > 20)
            assert near.acknowledged_s(moved_s) is None
            system.start_keeper()
            await until(lambda: near.acknowledged_s(moved_s) is not None, timeout_s=120.0)
            back_s = near.acknowledged_s(moved_s)
            assert back_s
        assert node_of(_SHARD) == nodes.near_id
        moved = f"{_SHARD} is on a node with another disk and is restarted"
        num_moves = (await system.deeds()).count(moved)  # a slow start may have been ended besides
        assert num_moves > 0
        await system.end()
    await asyncio.to_thread(check_books, system, near)
    with capsys.disabled():
        print(
            f"\non a node with another disk: refused {dict(near.refused)}, back "
            f"{back_s - moved_s:.1f} s after it came there, {num_moves} restarts"
        )


async def has_failed(system: System) -> bool:
    return (await system.status()).state == "failed"


async def place_shard_on(far: FarNode, system: System) -> None:
    """Start the shard again until Ray, which chooses any node, chooses this one."""
    for _ in range(_MAX_PLACINGS):
        shard = ray.get_actor(_SHARD, namespace=NAMESPACE)
        ray.kill(shard)
        await until(lambda: not has_name(_SHARD))
        system.shard_spec.start()
        await until(lambda: is_up(_SHARD))
        if node_of(_SHARD) == far.node_id:
            return
    pytest.fail(f"Ray chose the other node {_MAX_PLACINGS} times")


def has_name(name: str) -> bool:
    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


async def is_up(name: str) -> bool:
    try:
        await ask(ray.get_actor(name, namespace=NAMESPACE), "status", timeout_s=20.0)
    except ShardUnavailable:
        return False
    return True
