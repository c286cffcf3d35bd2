"""Replies that are lost after the work was done, by Ray's own fault injection.

It has to be in the environment before Ray starts, so all of this runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

_NUM_LOST = 12
_FAULT = {
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": _NUM_LOST,
        "req_failure_prob": 0,
        "resp_failure_prob": 50,
    }
}
_BATCH, _NUM_BATCHES = 10, 60

pytestmark = [pytest.mark.actor, pytest.mark.timeout(120)]


def test_an_event_whose_reply_was_lost_is_stored_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "RAY_testing_rpc_failure": json.dumps(_FAULT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\nlost replies: {told}")
    assert told["failed_calls"] >= 1
    assert told["duplicates"] >= _BATCH, "no reply was lost after the work was done"
    assert told["accepted"] + told["duplicates"] >= _BATCH * _NUM_BATCHES
    assert told["logged"] == told["distinct"] == _BATCH * _NUM_BATCHES


async def send_until_acknowledged(folder: Path) -> dict[str, int]:
    """Batches, each sent again until its answer comes; what was told, and what the log has."""
    import ray

    from actors.event_buffer import EventBuffer
    from actors.event_buffer_client import EventBufferClient
    from actors.event_log import EventLog
    from actors.messages import ShardUnavailable
    from actors.naming import start_actor
    from actors.settings import BufferSettings, StorageSettings
    from recommender.events import Event

    storage = StorageSettings(data_dir=folder, min_free_bytes=0)
    shard = start_actor(EventBuffer, "shard", 0, storage, BufferSettings(num_shards=1))
    client = EventBufferClient([shard], timeout_s=10.0)
    told: Counter[str] = Counter()
    for first in range(0, _BATCH * _NUM_BATCHES, _BATCH):
        events = [
            Event(f"e-{n}", "u", f"i-{n % 7}", "click", 1.0, n)
            for n in range(first, first + _BATCH)
        ]
        is_acknowledged = False
        while not is_acknowledged:
            try:
                result = await client.append(events)
            except ShardUnavailable:
                told["failed_calls"] += 1
                await asyncio.sleep(0.05)
            else:
                is_acknowledged = True
                told["accepted"] += result.accepted
                told["duplicates"] += result.duplicates
    ray.kill(shard)
    log = EventLog(folder / "events" / "shard-0", segment_bytes=1 << 20)
    logged = [i for batch in log.read() for i in batch.column("event_id").to_pylist()]
    log.close()
    return {**told, "logged": len(logged), "distinct": len(set(logged))}


def main() -> None:
    from own_ray import own_ray

    with own_ray(num_cpus=2):
        told = asyncio.run(send_until_acknowledged(Path(sys.argv[1])))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
