import sys
from pathlib import Path

import pytest
import ray

from actors.lessons import TrainingJobSettings
from actors.settings import LoopSettings
from cluster.config import Settings, SettingsError
from cluster.train_job import job_settings, main, read_settings, scaling

CHANGED = """
[loop]
num_workers = 3
[buffer]
num_shards = 5
[text]
encoder = "bert-base-uncased"
[model]
half_lives = [7.0, 70.0]
[training]
fresh_windows = 9
[blend]
top = 33
[ials]
factors = 7
[filters]
span = 77
[guard]
hold_out_every = 30
[text_tuning]
num_layers = 3
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "rheos.toml"
    path.write_text(CHANGED)
    return read_settings(path)


def test_settings_come_from_toml_or_from_the_json_that_a_start_wrote_alike(
    tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(settings.model_dump_json(indent=1))
    assert read_settings(path) == settings
    assert settings.loop.num_workers == 3
    assert read_settings(None).loop.num_workers == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(tmp_path / "none.toml")


def test_workers_get_every_section_they_need_as_it_was_set(settings: Settings) -> None:
    config = job_settings(settings).model_dump(mode="json")
    received = TrainingJobSettings.model_validate(config)
    assert {*TrainingJobSettings.model_fields} - {*Settings.model_fields} == {"seed"}
    for name in {*TrainingJobSettings.model_fields} - {"seed"}:
        assert getattr(received, name) == getattr(settings, name)
    assert received.text.encoder == "bert-base-uncased"


def test_without_the_solver_the_job_ends_with_what_to_install_before_it_joins_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rheos.toml"
    path.write_text("[ials]\nenabled = true\n")
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    monkeypatch.setattr(sys, "argv", ["train_job", "--settings", str(path)])
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("joined a cluster"))
    with pytest.raises(SystemExit, match=r"pip install 'rheos\[ials\]'"):
        main()


@pytest.mark.parametrize(
    ("device", "num_gpus", "uses_gpu"),
    [
        ("auto", 0.0, False),
        ("auto", 1.0, False),
        ("auto", 2.0, True),
        ("cpu", 8.0, False),
        ("gpu", 2.0, True),
    ],
)
def test_workers_run_on_gpus_if_asked_for_or_if_there_is_one_for_each(
    device: str, num_gpus: float, uses_gpu: bool
) -> None:
    loop = LoopSettings.model_validate({"num_workers": 2, "device": device, "cpus_per_worker": 0.5})
    config = scaling(loop, num_gpus)
    assert (config.num_workers, config.use_gpu) == (2, uses_gpu)
    assert config.resources_per_worker == {"CPU": 0.5} | ({"GPU": 1.0} if uses_gpu else {})


def test_too_few_gpus_are_refused_with_both_numbers() -> None:
    loop = LoopSettings(num_workers=4, device="gpu")
    with pytest.raises(ValueError, match="num_workers is 4, but the cluster has 3 GPUs"):
        scaling(loop, 3.0)
