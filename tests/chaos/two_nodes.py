"""A cluster of two nodes on one machine. The far one can be cut off, and can have another disk."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from live_system import wait_until
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.keeper import ActorSpec
from actors.naming import NAMESPACE, actor_options
from cluster.processes import free_port

HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1_000,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 2_000,
    "health_check_failure_threshold": 4,
}
"""A node that does not answer is dead after 12 s; Ray's default is about half a minute."""
_STORE_BYTES = 100 * 1024 * 1024
_START_S = 60.0
_END_S = 30.0


@dataclass
class FarNode:
    """A node as an operator adds it, with `ray start`, and all that runs on it."""

    started: subprocess.Popen[bytes]
    node_id: str
    _stopped: list[psutil.Process] = field(default_factory=list)

    def processes(self) -> list[psutil.Process]:
        """The raylet, its agents, its workers, and `ray start`, which waits for them."""
        first = psutil.Process(self.started.pid)
        return [first, *first.children(recursive=True)]

    def cut_off(self) -> None:
        """Stop every process: the others hear nothing more, and what it holds it goes on holding.

        A new process of it, which began while we stopped the others, is stopped too.
        """
        while new := [p for p in self.processes() if p not in self._stopped]:
            for process in new:
                process.suspend()
            self._stopped += new

    def let_go_on(self, *chosen: int) -> None:
        """Let the processes with these ids go on, or all that are still stopped."""
        for process in [p for p in self._stopped if not chosen or p.pid in chosen]:
            self._stopped.remove(process)
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def is_alive(self) -> bool:
        """Whether Ray takes it to be."""
        return self.node_id in living_nodes()

    def end(self) -> None:
        """End every process of it."""
        if self.started.poll() is None:
            processes = self.processes()
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, _END_S)
        self.started.communicate(timeout=_END_S)


@dataclass(frozen=True)
class TwoNodes:
    """A head, to which the test is connected, and room for one more node."""

    address: str
    near_id: str

    @contextmanager
    def far_node(self, other_disk_at: Path | None = None) -> Iterator[FarNode]:
        """One more node; ends with the block.

        Args:
            other_disk_at: Where it has an empty disk of its own.
        """
        started = subprocess.Popen(
            [*_sees_other_disk(other_disk_at), *_ray_start(self.address)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        far = FarNode(started, "")
        try:
            far.node_id = wait_until(
                lambda: next(iter(living_nodes() - {self.near_id}), None), _START_S, "a far node"
            )
            _wait_until_told(started, b"Ray runtime started")
            yield far
        finally:
            far.end()


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """The head of a cluster of our own, in a folder with a short name, for sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="rh", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("RAY_TMPDIR", folder)
        # What is sent into an actor is found there under the name it has here.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))
        (Path(folder) / "ray").mkdir()
        cluster = _head()
        try:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            yield TwoNodes(cluster.address, ray.get_runtime_context().get_node_id())
        finally:
            ray.shutdown()
            cluster.shutdown()


def living_nodes() -> set[str]:
    """Ids of the nodes that Ray takes to be alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def start_on(node_id: str, spec: ActorSpec) -> Any:
    """Start an actor as the system does, on this node while there is such a node.

    A little CPU is asked for, because Ray does not heed where an actor that needs nothing should be
    if it may be elsewhere too.
    """
    here = NodeAffinitySchedulingStrategy(node_id, soft=True)
    options = {**actor_options(spec.name), "num_cpus": 0.001, "scheduling_strategy": here}
    return ray.remote(spec.actor_class).options(**options).remote(*spec.args, **spec.kwargs)


def node_of(name: str) -> str:
    """Id of the node on which an actor runs, or last ran."""
    node_id: str = _state_of(name)["Address"]["NodeID"]
    return node_id


def pid_of(name: str) -> int:
    """Id of the process in which an actor runs, or last ran."""
    pid: int = _state_of(name)["Pid"]
    return pid


def _state_of(name: str) -> dict[str, Any]:
    handle = ray.get_actor(name, namespace=NAMESPACE)
    found: dict[str, Any] = ray._private.state.actors(handle._actor_id.hex())
    return found


def _head() -> Cluster:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "include_dashboard": False,
                "dashboard_port": free_port(),
                "object_store_memory": _STORE_BYTES,
                "_system_config": HEALTH_CHECKS,
            },
        )
        gc.collect()  # Ray leaves sockets open, and they would be held against some later test
    return cluster


def _ray_start(address: str) -> list[str]:
    options: Mapping[str, str] = {
        "--address": address,
        "--num-cpus": "4",
        "--object-store-memory": str(_STORE_BYTES),
        "--include-log-monitor": "false",
    }
    arguments = [word for option in options.items() for word in option]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    return [*command, *arguments, "--block", "--disable-usage-stats"]


def _sees_other_disk(path: Path | None) -> list[str]:
    if path is None:
        return []
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a node cannot be given another disk here")
    mount = 'mount -t tmpfs -o size=64m,mode=0700 tmpfs "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, str(path)]


def _wait_until_told(started: subprocess.Popen[bytes], what: bytes) -> None:
    assert started.stdout
    told = b""
    for line in started.stdout:
        told += line
        if what in line:
            return
    pytest.fail(f"no node: {told.decode()}")
