"""Drives a real system from outside: the `rheos` command, HTTP, processes. For e2e and chaos."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from cluster.http_client import event_body, item_body
from cluster.local_cluster import ClusterRecord, find_cluster, mark_of
from cluster.processes import free_port, marked_processes
from recommender.datasets import Dataset
from recommender.simulator import SimulatorSettings, simulate

CONFIG = """\
[cluster]
num_cpus = 16
[loop]
num_workers = {num_workers}
warmup_events = 1000
round_interval_s = 0.5
[training]
{training}
[serving]
port = {port}
min_replicas = {min_replicas}
max_replicas = {max_replicas}
target_ongoing_requests = 2.0
upscale_delay_s = 1.0
downscale_delay_s = 600.0
{serving}
"""
_event_numbers = count()


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true value of `condition()`; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)
    return value


@dataclass
class LiveSystem:
    """One system in a folder of its own, on a port of its own."""

    folder: Path
    min_replicas: int = 2
    max_replicas: int = 4
    num_workers: int = 1
    training: str = "warmup_epochs = 8"
    port: int = field(default_factory=free_port)
    serving: str = ""
    """More lines of `[serving]`."""
    more_config: str = ""
    """Sections of `rheos.toml` beside those that every system of the tests has."""

    @property
    def data_dir(self) -> Path:
        """Its storage folder."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def record(self) -> ClusterRecord:
        """Where its cluster is."""
        record = find_cluster(self.data_dir)
        assert record is not None, "the system does not run"
        return record

    def rheos(self, *arguments: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def command(self, *arguments: str) -> list[str]:
        """The command line on this system's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "rheos.toml"
        base = CONFIG.format(
            port=self.port,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            serving=self.serving,
            num_workers=self.num_workers,
            training=self.training,
        )
        config.write_text(base + self.more_config)
        options = ["--config", str(config), "--data-dir", str(self.data_dir)]
        return [sys.executable, "-m", "cluster.cli", *arguments, *options]

    def up(self, *arguments: str) -> None:
        """`rheos up`."""
        done = self.rheos("up", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        """`rheos down`."""
        done = self.rheos("down")
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self) -> list[str]:
        """What runs of it, in words."""
        mark = mark_of(self.data_dir)
        return [f"{process.pid} {process.name()}" for process in marked_processes(mark)]

    def worker_pids(self, name: str) -> list[int]:
        """Process ids of the cluster's processes whose title contains `name`."""
        mark = mark_of(self.data_dir)
        return [p.pid for p in marked_processes(mark) if name in " ".join(p.cmdline())]

    def request(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> Any:
        """One request; fails the test if the status is another than `expect`."""
        response = httpx.request(method, self.url + path, json=body, timeout=10.0)
        assert response.status_code == expect, f"{path}: {response.status_code} {response.text}"
        return response.json()

    def recommend(self, user_id: str, **body: Any) -> Any:
        """`POST /v1/recommend`."""
        return self.request("POST", "/v1/recommend", {"user_id": user_id, **body})

    def click(self, user_id: str, *item_ids: str) -> Any:
        """Post one click for each item."""
        events = [
            {
                "event_id": f"click-{os.getpid()}-{next(_event_numbers)}",
                "user_id": user_id,
                "item_id": item_id,
                "event_type": "click",
            }
            for item_id in item_ids
        ]
        return self.request("POST", "/v1/events", {"events": events}, expect=202)

    def model(self) -> Any:
        """`GET /v1/model`."""
        return self.request("GET", "/v1/model")

    def wait_for_version(self, version: int, timeout_s: float = 90.0) -> Any:
        """Wait until at least this version is served."""
        return wait_until(
            lambda: (m := self.model())["model_version"] >= version and m,
            timeout_s,
            f"version {version}",
        )

    def wait_until_learned(self, offsets: dict[str, int], timeout_s: float = 60.0) -> None:
        """Wait until the served weights have learned up to these offsets."""

        def has_learned() -> bool:
            through = self.model()["trained_through"]
            return all(through[int(shard)] >= offset for shard, offset in offsets.items())

        wait_until(has_learned, timeout_s, f"weights that learned {offsets}")

    def replicas(self, num_requests: int = 40) -> set[str]:
        """Names of the replicas that answer."""
        return {self.model()["replica"] for _ in range(num_requests)}

    def ingest_simulated(self) -> Dataset:
        """Put the items of a small simulated stream and post its events."""
        dataset = simulated_stream()
        self.request("PUT", "/v1/items", {"items": [item_body(item) for item in dataset.items]})
        wait_until(
            lambda: self.request("GET", "/v1/items?limit=1")["num_items"] == len(dataset.items),
            30.0,
            "all items retrievable",
        )
        events = list(dataset.events())
        for start in range(0, len(events), 1_000):
            bodies = [event_body(event) for event in events[start : start + 1_000]]
            self.request("POST", "/v1/events", {"events": bodies}, expect=202)
        return dataset


def simulated_stream() -> Dataset:
    """The stream that every system of these tests has seen."""
    return simulate(SimulatorSettings(num_users=80, num_items=120, num_events=2_000, seed=7))
