import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from actors.event_log import EventLog, event_batch
from actors.messages import Manifest
from actors.served_versions import ServedVersions
from actors.storage_folder import StorageFolder
from actors.version_files import VersionFiles
from cluster import cli
from cluster.local_cluster import ClusterError
from recommender.events import Event

NUM_SHARDS = 2


@pytest.fixture(autouse=True)
def wide_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.console, "_width", 200)
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def data_dir(tmp_path: Path, wide_console: None) -> Path:
    """What a system leaves that took 60 events into each of two shards and learned 50 of them."""
    folder = tmp_path / "rheos-data"
    for shard in range(NUM_SHARDS):
        identity = {"shard": shard, "num_shards": NUM_SHARDS}
        claimed = StorageFolder.claim(folder, f"events/shard-{shard}", identity)
        log = EventLog(claimed.path, segment_bytes=4_096)
        for first in range(0, 60, 5):
            events = [
                Event(f"e-{shard}-{n}", f"u-{n}", "i", "click", 1.0, n)
                for n in range(first, first + 5)
            ]
            log.append(event_batch(events), 1_000 * first)
        for segment in log.compactable():
            log.compact(segment)
        log.close()
        claimed.close()
    claimed = StorageFolder.claim(folder, "models", {})
    versions = ServedVersions(VersionFiles(claimed.path), keep_versions=5, put=lambda x: x)
    for step in range(2):
        manifest = Manifest(0, step, 1, (49, 49), 1, step, "trained")
        versions.publish(manifest, {"w": np.ones(3)}, {"t": np.ones(2)}, promote=True)
    claimed.close()
    return folder


def rheos(*arguments: str, exit_code: int = 0) -> str:
    """Run the command line; what it prints."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.output


def refusal(*arguments: str) -> str:
    """Why a command does nothing."""
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ClusterError), result.output
    return str(result.exception)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_verify_names_every_file_of_a_whole_folder_and_writes_nothing(data_dir: Path) -> None:
    before = files_in(data_dir)
    text = rheos("verify")
    assert f"22 files, 0 damaged, in {data_dir}" in text
    assert "events/shard-1/closed/00000000000000000000.parquet" in text
    assert "models/versions/00000002/model.safetensors" in text
    assert files_in(data_dir) == before
    assert rheos("verify", str(data_dir), "--quiet").startswith("22 files, 0 damaged")


def test_verify_says_where_the_damage_is_and_which_events_are_lost(data_dir: Path) -> None:
    [path] = (data_dir / "events" / "shard-0" / "open").iterdir()
    first = int(path.stem)
    flip(path, path.stat().st_size - 200)
    text = rheos("verify", str(data_dir), "--quiet", exit_code=1)
    assert f"damaged  events/shard-0/open/{path.name}" in text
    assert "damaged at byte" in text
    assert "lost: offsets 55 to 59 (5 events)" in text
    assert first <= 55
    assert "1 damaged" in text


def test_repair_does_nothing_until_the_loss_is_accepted(data_dir: Path) -> None:
    assert "nothing is damaged" in rheos("repair", str(data_dir))
    flip(min((data_dir / "events" / "shard-1" / "closed").iterdir()), 100)
    before = files_in(data_dir)
    text = rheos("repair", str(data_dir), exit_code=1)
    assert "events/shard-1/closed/00000000000000000000.parquet" in text
    assert "--accept-loss" in text
    assert files_in(data_dir) == before


def test_repair_keeps_the_damaged_bytes_and_all_events_that_can_be_read(data_dir: Path) -> None:
    path = min((data_dir / "events" / "shard-1" / "closed").iterdir())
    num_lost = len(pd.read_parquet(path))
    flip(path, 100)
    flip(data_dir / "models" / "versions" / "00000002" / "model.safetensors", 70)
    damaged = path.read_bytes()
    text = rheos("repair", str(data_dir), "--accept-loss")
    assert f"lost: offsets 0 to {num_lost - 1} ({num_lost} events)" in text
    assert "models/versions/00000002  set aside" in text
    assert "models/head.json  version 1 is the head" in text
    kept = data_dir / "damaged" / "1" / path.relative_to(data_dir)
    assert kept.read_bytes() == damaged
    assert "0 damaged" in rheos("verify", str(data_dir), "--quiet")
    rheos("export", "out", "--data-dir", str(data_dir))
    frame = pd.read_parquet("out")
    assert frame.groupby("shard").size().tolist() == [60, 60 - num_lost]


def test_export_has_every_event_once_by_shard_and_offset(data_dir: Path) -> None:
    text = rheos("export", "out", "--data-dir", str(data_dir))
    assert text.splitlines() == [f"out/shard-{n}.parquet  60 events" for n in range(NUM_SHARDS)]
    frame = pd.read_parquet("out")
    assert frame["shard"].tolist() == [0] * 60 + [1] * 60
    assert frame["offset"].tolist() == [*range(60), *range(60)]
    assert frame["event_id"].tolist() == [f"e-{s}-{n}" for s in range(2) for n in range(60)]
    result = CliRunner().invoke(cli.app, ["export", "out", "--data-dir", str(data_dir)])
    assert "is there already" in str(result.exception)


def test_a_damaged_log_is_not_exported_as_if_it_were_whole(data_dir: Path) -> None:
    flip(min((data_dir / "events" / "shard-0" / "closed").iterdir()), 100)
    result = CliRunner().invoke(cli.app, ["export", "out", "--data-dir", str(data_dir)])
    assert "rheos verify" in str(result.exception)
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize("arguments", [("verify",), ("repair", "--accept-loss"), ("export", "out")])
def test_nothing_is_read_or_written_while_a_process_is_at_work_on_the_folder(
    data_dir: Path, arguments: tuple[str, ...]
) -> None:
    identity = {"shard": 1, "num_shards": NUM_SHARDS}
    claimed = StorageFolder.claim(data_dir, "events/shard-1", identity)
    before = files_in(data_dir)
    assert "in use by another process; stop it first" in refusal(*arguments)
    assert files_in(data_dir) == before
    claimed.close()


@pytest.mark.parametrize("arguments", [("verify",), ("repair", "--accept-loss"), ("export", "out")])
def test_a_folder_that_is_no_storage_is_refused(arguments: tuple[str, ...]) -> None:
    assert "is no storage folder" in refusal(*arguments)
    assert not Path("rheos-data").exists()
