import fcntl
import json
import os
import socket
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from cluster.config import ClusterSettings, Settings
from cluster.local_cluster import (
    ClusterError,
    ClusterRecord,
    find_cluster,
    mark_of,
    start_ray,
    stop_ray,
    uptime_s,
)
from cluster.processes import MARKER, free_port


@pytest.fixture
def record(tmp_path: Path) -> ClusterRecord:
    """A record of this process, which runs."""
    return ClusterRecord(
        pid=os.getpid(),
        started_s=psutil.Process().create_time(),
        mark=mark_of(tmp_path),
        address="127.0.0.1:6400",
        dashboard_url="http://127.0.0.1:8265",
        http_url="http://127.0.0.1:8000",
        token_path="/tmp/token",
        settings_path=str(tmp_path / "settings.json"),
    )


def write(record: ClusterRecord, data_dir: Path) -> None:
    (data_dir / "cluster.json").write_text(json.dumps(asdict(record)))


def settings_in(data_dir: Path, **cluster: float) -> Settings:
    settings = Settings()
    return settings.model_copy(
        update={
            "storage": settings.storage.model_copy(update={"data_dir": data_dir}),
            "serving": settings.serving.model_copy(update={"port": free_port()}),
            "cluster": ClusterSettings.model_validate(cluster),
        }
    )


def refusal(settings: Settings) -> str:
    with pytest.raises(ClusterError) as caught:
        start_ray(settings)
    assert not Path(mark_of(settings.storage.data_dir)).exists(), "something was started"
    return str(caught.value)


def test_the_mark_is_one_for_each_folder_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert mark_of(Path("a")) == mark_of(tmp_path / "a") == mark_of(tmp_path / "link")
    assert mark_of(tmp_path / "a") != mark_of(tmp_path / "b")


def test_the_mark_leaves_room_for_the_sockets_of_haproxy(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    assert mark_of(deep).startswith(f"/tmp/rheos-{os.getuid()}-")
    assert len(mark_of(deep)) <= 27 + len(str(os.getuid()))


def test_a_running_cluster_is_found_with_all_that_its_record_says(
    tmp_path: Path, record: ClusterRecord
) -> None:
    write(record, tmp_path)
    assert find_cluster(tmp_path) == record
    assert 0.0 <= uptime_s(record) < 86_400.0


def test_no_cluster_is_found_where_none_runs(tmp_path: Path, record: ClusterRecord) -> None:
    assert find_cluster(tmp_path) is None
    gone = replace(record, pid=2**22 + 1)
    another = replace(record, started_s=record.started_s - 60.0)  # its id was given again
    for dead in (gone, another):
        write(dead, tmp_path)
        assert find_cluster(tmp_path) is None


def test_a_cluster_whose_head_died_is_found_while_rays_node_runs(
    tmp_path: Path, record: ClusterRecord
) -> None:
    raylet = tmp_path / "raylet"
    raylet.symlink_to("/bin/sleep")
    without_head = replace(record, pid=2**22 + 1)
    write(without_head, tmp_path)
    node = subprocess.Popen([raylet, "60"], env={**os.environ, MARKER: record.mark})
    try:
        assert find_cluster(tmp_path) == without_head
        assert not without_head.has_head()
    finally:
        node.kill()
        node.wait()
    assert find_cluster(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"pid": 1}', '{"other": 1}'])
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(text)
    with pytest.raises(ClusterError, match="is not a cluster record") as caught:
        find_cluster(tmp_path)
    assert str(path) in str(caught.value)


def test_the_environment_leads_ray_and_serve_to_the_cluster(record: ClusterRecord) -> None:
    environment = record.environment()
    assert environment["RAY_ADDRESS"] == record.address
    assert environment["RAY_API_SERVER_ADDRESS"] == record.dashboard_url
    assert environment["RAY_DASHBOARD_ADDRESS"] == record.dashboard_url
    assert environment["RAY_AUTH_TOKEN_PATH"] == record.token_path


def test_a_second_cluster_on_a_folder_is_refused(tmp_path: Path, record: ClusterRecord) -> None:
    write(record, tmp_path)
    with pytest.raises(ClusterError, match=f"already runs on {tmp_path} .pid {os.getpid()}"):
        start_ray(settings_in(tmp_path))


def test_a_start_is_refused_while_another_one_is_under_way(tmp_path: Path) -> None:
    with (tmp_path / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another start" in refusal(settings_in(tmp_path))


def test_a_start_waits_while_another_chooses_its_ports(tmp_path: Path) -> None:
    with FileLock(f"/tmp/rheos-{os.getuid()}.lock"):
        said = refusal(settings_in(tmp_path, start_timeout_s=0.2))
    assert "another rheos has been starting for 0.2 s" in said


def test_a_start_without_its_port_names_who_holds_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with socket.create_server(("127.0.0.1", settings.serving.port)):
        message = refusal(settings)
    assert f"port {settings.serving.port} is held by pid {os.getpid()}" in message


def test_a_start_without_memory_or_disk_names_the_setting(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, min_memory_bytes=2**60)
    assert "(cluster.min_memory_bytes)" in refusal(settings)
    storage = settings.storage.model_copy(update={"min_free_bytes": 2**60})
    message = refusal(settings.model_copy(update={"storage": storage}))
    assert "(storage.min_free_bytes)" in message


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(settings_in(tmp_path / "file" / "data"))
    assert str(tmp_path / "file" / "data") in message


def test_stopping_removes_the_record_and_the_run_folder_and_nothing_durable(
    tmp_path: Path, record: ClusterRecord
) -> None:
    write(replace(record, pid=2**22 + 1), tmp_path)
    run_dir = Path(mark_of(tmp_path))
    run_dir.mkdir()
    (run_dir / "ray_token").write_text("secret")
    (tmp_path / "events").mkdir()
    assert stop_ray(tmp_path) == 0
    assert not run_dir.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["events"]
