"""Start, stop, start again; and the errors that a start must give."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from live_system import LiveSystem, simulated_stream, wait_until

from cluster import processes
from cluster.http_client import event_body

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_a_stopped_system_comes_back_as_it_was(tmp_path: Path) -> None:
    system = LiveSystem(tmp_path, min_replicas=1)
    try:
        system.up()
        dataset = system.ingest_simulated()
        system.wait_for_version(1)
        system.rheos("down")
        assert system.processes() == []
        system.up("--no-train")
        model = wait_until(
            lambda: (m := system.model())["model_version"] >= 1 and m, 30.0, "the head is back"
        )
        assert model["head"]["version"] == model["model_version"]
        assert sum(offset + 1 for offset in model["trained_through"]) == len(dataset)
        counted = wait_until(
            lambda: (m := system.model())["counted_events"] == len(dataset) and m,
            30.0,
            "all events counted again",
        )
        assert sum(offset + 1 for offset in counted["counters_through"]) == len(dataset)
        for user in range(5):
            expected = int((dataset.users_N == user).sum())
            assert system.recommend(dataset.user_ids[user])["history_length"] == expected
        first = {"events": [event_body(event) for event in dataset.events(0, 100)]}
        again = system.request("POST", "/v1/events", first, expect=202)
        assert (again["accepted"], again["duplicates"]) == (0, 100)
    finally:
        system.down()
    assert system.processes() == []


def test_a_second_start_on_the_same_folder_is_refused(system: LiveSystem) -> None:
    done = system.rheos("up")
    assert done.returncode == 2
    assert "already runs" in done.stderr
    assert "rheos down" in done.stderr
    assert system.model()["model_version"] >= 1


def test_a_port_in_use_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    other = LiveSystem(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", other.port))
        listener.listen()
        done = other.rheos("up")
    assert done.returncode == 2
    assert f"port {other.port} is held by pid" in done.stderr
    assert other.processes() == []


@pytest.mark.parametrize("seconds", [2.0, 9.0, 16.0])
def test_ctrl_c_leaves_no_process(tmp_path: Path, seconds: float) -> None:
    other = LiveSystem(tmp_path)
    process = _demo(other)
    time.sleep(seconds)  # a moment, whichever phase it falls in, is what is tested
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60.0)
    assert process.returncode == 130, output
    assert other.processes() == []


@pytest.mark.parametrize("moment", ["importing Ray", "connecting to Ray"])
def test_ctrl_c_leaves_no_process_at_a_moment_that_does_harm(tmp_path: Path, moment: str) -> None:
    other = LiveSystem(tmp_path)
    process = _demo(other)
    reached = _maps_ray if moment == "importing Ray" else _runs_rays_threads
    assert processes.wait_until(lambda: reached(process.pid), 60.0, poll_s=0.002)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60.0)
    assert process.returncode == 130, output
    assert other.processes() == []


def _demo(system: LiveSystem) -> subprocess.Popen[str]:
    def heed_ctrl_c() -> None:  # which a shell has ignored by what it runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        system.command("demo"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def _maps_ray(pid: int) -> bool:
    return "_raylet.so" in Path(f"/proc/{pid}/maps").read_text()


def _runs_rays_threads(pid: int) -> bool:
    for thread in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(OSError):  # it has ended
            if thread.read_text().strip() == "worker.io":
                return True
    return False


def test_a_refused_setting_names_the_key_and_the_bound(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[buffer]\nnum_shards = 0\nshards = 3\n")
    done = subprocess.run(
        [*LiveSystem(tmp_path).command("up")[:4], "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30.0,
        check=False,
    )
    assert done.returncode == 2
    assert "buffer.num_shards" in done.stderr
    assert "buffer.shards" in done.stderr


def test_simulated_streams_are_the_same_every_time() -> None:
    first, second = simulated_stream(), simulated_stream()
    assert list(first.events()) == list(second.events())
