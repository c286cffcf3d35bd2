import json
import shutil
from pathlib import Path

import pytest

from actors.checked_json import checked_json, read_checked_json
from actors.messages import CorruptStorage, FolderInUse, OtherDisk, StorageError
from actors.storage_folder import StorageFolder, found_installation


def claim(data_dir: Path, **identity: int) -> StorageFolder:
    return StorageFolder.claim(data_dir, "events/shard-0", identity, lock_wait_s=0.0)


def claim_from(data_dir: Path, installation: str) -> StorageFolder:
    return StorageFolder.claim(
        data_dir, "events/shard-0", {}, installation=installation, lock_wait_s=0.0
    )


def test_a_folder_can_be_claimed_again_and_its_epoch_rises(tmp_path: Path) -> None:
    first = claim(tmp_path, num_shards=2)
    first.close()
    second = claim(tmp_path, num_shards=2)
    assert second.epoch == first.epoch + 1
    second.check_is_ours()


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    owner = claim(tmp_path)
    with pytest.raises(FolderInUse, match="in use by another process"):
        claim(tmp_path)
    owner.close()
    claim(tmp_path).close()


def test_an_owner_that_lost_its_lock_notices(tmp_path: Path) -> None:
    old = claim(tmp_path)
    old.close()  # as a network file system may do behind its back
    claim(tmp_path)
    with pytest.raises(StorageError, match="claimed by another process"):
        old.check_is_ours()


def test_an_emptied_folder_is_not_started_afresh(tmp_path: Path) -> None:
    claim(tmp_path).close()
    shutil.rmtree(tmp_path / "events")
    with pytest.raises(CorruptStorage, match="was in use before"):
        claim(tmp_path)


def test_a_folder_of_another_installation_is_refused(tmp_path: Path) -> None:
    claim(tmp_path / "one").close()
    claim(tmp_path / "two").close()
    shutil.rmtree(tmp_path / "two" / "events")
    shutil.copytree(tmp_path / "one" / "events", tmp_path / "two" / "events")
    with pytest.raises(CorruptStorage, match="install_id"):
        claim(tmp_path / "two")


def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, num_shards=2).close()
    with pytest.raises(CorruptStorage, match="num_shards"):
        claim(tmp_path, num_shards=3)


def test_a_crash_before_the_registration_is_made_good(tmp_path: Path) -> None:
    claim(tmp_path).close()
    registry = tmp_path / "installation.json"
    installation = read_checked_json(registry)
    registry.write_bytes(checked_json({**installation, "initialised": []}))
    claim(tmp_path).close()
    assert json.loads(registry.read_text())["initialised"] == ["events/shard-0"]


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    claim(tmp_path, num_shards=2).close()
    for _ in range(2):
        with pytest.raises(CorruptStorage):
            claim(tmp_path, num_shards=3)


def test_another_disk_is_refused_where_an_installation_is_expected(tmp_path: Path) -> None:
    installation = found_installation(tmp_path / "disk")
    assert found_installation(tmp_path / "disk", installation) == installation
    claim_from(tmp_path / "disk", installation).close()
    found_installation(tmp_path / "other")
    for folder, reason in (("other", "is of installation"), ("empty", "is empty")):
        with pytest.raises(OtherDisk, match=reason):
            claim_from(tmp_path / folder, installation)
    assert not (tmp_path / "empty" / "installation.json").exists()
