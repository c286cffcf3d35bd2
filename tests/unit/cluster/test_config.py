import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Settings, SettingsError, describe_settings, load_settings
from recommender.settings import Section

README = Path(__file__).parents[3] / "README.md"
README_ROW = re.compile(r"^\| `(\w+)\.(\w+)` \| `(.+?)` \| (.+) \|$", re.MULTILINE)


def toml_file(folder: Path, text: str) -> Path:
    path = folder / "rheos.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(toml_file(folder, text))
    return str(caught.value)


def sections(settings: Settings) -> dict[str, Section]:
    return dict(settings)


def plain(value: Any) -> Any:
    """A value as TOML has it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def test_every_setting_says_what_it_means() -> None:
    silent = [
        f"{name}.{key}"
        for name, section in sections(Settings()).items()
        for key, field in type(section).model_fields.items()
        if not (field.description or "").strip()
    ]
    assert silent == []
    assert all(type(section).__doc__ for section in sections(Settings()).values())


def test_what_is_printed_as_settings_is_a_file_with_every_default() -> None:
    text = ""
    for line in describe_settings():
        text += f"{line.section}.{line.key} = {line.default}\n"
    tree = tomllib.loads(text)
    assert tree == {
        name: {key: plain(value) for key, value in section}
        for name, section in sections(Settings()).items()
    }
    assert Settings.model_validate(tree) == Settings()


def test_the_table_of_settings_in_the_readme_is_the_code() -> None:
    rows = README_ROW.findall(README.read_text(encoding="utf-8"))
    table = {f"{s}.{k}": (tomllib.loads(f"v = {d}")["v"], meaning) for s, k, d, meaning in rows}
    code = {
        f"{name}.{key}": (plain(value), type(section).model_fields[key].description)
        for name, section in sections(Settings()).items()
        for key, value in section
    }
    assert table == code
    assert len(rows) == len(table), "a setting stands in the table twice"


def test_a_whole_file_of_other_values_comes_out_as_it_went_in(tmp_path: Path) -> None:
    text = """
        [storage]
        data_dir = "/somewhere/else"
        [buffer]
        num_shards = 5
        history_length = 600
        [loop]
        device = "gpu"
        [model]
        window = 512
        half_lives = [10, 200.5]
        [training]
        betas = [0.8, 0.9]
        precision = "bfloat16"
        [serving]
        host = "0.0.0.0"
        port = 8123
    """
    settings = load_settings(toml_file(tmp_path, text))
    assert settings.storage.data_dir == Path("/somewhere/else")
    assert (settings.buffer.num_shards, settings.buffer.history_length) == (5, 600)
    assert (settings.loop.device, settings.training.precision) == ("gpu", "bfloat16")
    assert (settings.model.window, settings.model.half_lives) == (512, (10.0, 200.5))
    assert (settings.serving.host, settings.serving.port) == ("0.0.0.0", 8123)
    assert settings.keeper == Settings().keeper
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_an_empty_file_and_none_are_the_defaults_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(toml_file(tmp_path, ""))
    assert settings == load_settings()
    assert settings.storage.data_dir == tmp_path / "rheos-data"


def test_a_folder_that_is_given_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = toml_file(tmp_path, '[storage]\ndata_dir = "a"\nmin_free_bytes = 7\n')
    settings = load_settings(path, data_dir=Path("b"))
    assert settings.storage.data_dir == tmp_path / "b"
    assert settings.storage.min_free_bytes == 7


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[loop]\nround_evnets = 5", ["loop.round_evnets", "not permitted", "5"]),
        ("[lop]\nround_events = 5", ["lop", "not permitted"]),
        ("[buffer]\nnum_shards = 0", ["buffer.num_shards", "greater than or equal to 1", "0"]),
        ("[model]\nwindow = 513", ["model.window", "less than or equal to 512", "513"]),
        ("[training]\nema_decay = 1.0", ["training.ema_decay", "less than 1", "1.0"]),
        ("[keeper]\ninterval_s = nan", ["keeper.interval_s", "greater than 0", "nan"]),
        ("[loop]\ndevice = 'tpu'", ["loop.device", "'auto', 'cpu' or 'gpu'", "'tpu'"]),
        ("[serving]\nport = 'http'", ["serving.port", "valid integer", "'http'"]),
        ("storage = 3", ["storage", "3"]),
    ],
)
def test_a_refused_key_is_named_with_its_bound_and_its_value(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'rheos.toml'}: 1 setting(s) refused")
    assert [part for part in parts if part not in message] == []


def test_all_refused_keys_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[loop]\nthreads = 0\n[store]\nkeep_versions = 1\n")
    assert "2 setting(s)" in message
    assert "loop.threads" in message
    assert "store.keep_versions" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "[buffer]\nhistory_length = 60\n[model]\nwindow = 60",
            ["buffer.history_length is 60", "must exceed model.window, which is 60"],
        ),
        (
            "[serving]\nmin_replicas = 5",
            ["serving.min_replicas is 5", "must not exceed serving.max_replicas, which is 4"],
        ),
        (
            "[model]\nnum_heads = 3",
            ["model.num_heads is 3", "must divide model.dim, which is 64"],
        ),
        (
            "[training]\nfresh_windows = 65",
            ["training.fresh_windows is 65", "exceed training.batch_windows, which is 64"],
        ),
        ("[model]\nhalf_lives = []", ["model.half_lives is ()", "at least one"]),
        ("[model]\nhalf_lives = [5, 0]", ["model.half_lives is (5.0, 0.0)", "above 0"]),
        ("[model]\nhalf_lives = [inf]", ["model.half_lives is (inf,)", "finite"]),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused_with_both_values(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    message = refusal(tmp_path, text)
    assert [part for part in parts if part not in message] == []
    assert "storage=" not in message, "the whole tree is not what is wrong"


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"[loop", "not valid TOML"), (b"\xff\xfe[loop]", "not valid TOML")]
)
def test_a_file_that_is_no_toml_is_refused_by_name(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "rheos.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=complaint) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.toml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(SettingsError, match=reason) as caught:
            load_settings(path)
        assert str(path) in str(caught.value)


def test_a_folder_that_is_given_does_not_hide_a_bad_section(tmp_path: Path) -> None:
    path = toml_file(tmp_path, "storage = 3")
    with pytest.raises(SettingsError, match="storage"):
        load_settings(path, data_dir=tmp_path)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().loop.threads = 2
