"""The one settings tree: joins the sections, reads TOML once, says what is wrong with a key."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from actors.settings import (
    BufferSettings,
    KeeperSettings,
    LoopSettings,
    StorageSettings,
    StoreSettings,
)
from recommender.counters import RULE_SOURCES
from recommender.settings import (
    BlendSettings,
    FactorSettings,
    FilterSettings,
    GuardSettings,
    ModelSettings,
    Section,
    TextSettings,
    TextTuningSettings,
    TrainingSettings,
)
from serve_app.settings import ServingSettings


class SettingsError(ValueError):
    """A settings file that cannot be used: names the file, the key, the value's fault."""


class ClusterSettings(Section):
    """The local Ray cluster that `rheos up` starts. A real cluster brings its own."""

    num_cpus: int = Field(default=16, ge=4, le=4_096)
    """Logical CPUs. More than the machine has is fine: most of our actors wait most of the time."""
    dashboard_port: int = Field(default=8265, ge=1, le=65_535)
    """Port of Ray's dashboard and job API; the next free one is taken if it is in use."""
    object_store_bytes: int = Field(default=512 * 1024 * 1024, ge=80 * 1024 * 1024)
    """Shared memory for weights and batches."""
    min_memory_bytes: int = Field(default=3 * 1024**3, ge=0)
    """Start-up is refused with less available memory than this."""
    start_timeout_s: float = Field(default=180.0, gt=0.0)
    """Longest a start may take."""


class Settings(Section):
    """Everything that can be set. `rheos.toml` has one table for each section."""

    storage: StorageSettings = StorageSettings()
    """`[storage]`"""
    cluster: ClusterSettings = ClusterSettings()
    """`[cluster]`"""
    buffer: BufferSettings = BufferSettings()
    """`[buffer]`"""
    store: StoreSettings = StoreSettings()
    """`[store]`"""
    loop: LoopSettings = LoopSettings()
    """`[loop]`"""
    keeper: KeeperSettings = KeeperSettings()
    """`[keeper]`"""
    text: TextSettings = TextSettings()
    """`[text]`"""
    text_tuning: TextTuningSettings = TextTuningSettings()
    """`[text_tuning]`"""
    model: ModelSettings = ModelSettings()
    """`[model]`"""
    training: TrainingSettings = TrainingSettings()
    """`[training]`"""
    blend: BlendSettings = BlendSettings()
    """`[blend]`"""
    ials: FactorSettings = FactorSettings()
    """`[ials]`"""
    filters: FilterSettings = FilterSettings()
    """`[filters]`"""
    guard: GuardSettings = GuardSettings()
    """`[guard]`"""
    serving: ServingSettings = ServingSettings()
    """`[serving]`"""

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Settings:
        if self.buffer.history_length <= self.model.window:
            raise ValueError(
                f"buffer.history_length is {self.buffer.history_length} and must exceed "
                f"model.window, which is {self.model.window}"
            )
        if self.model.window < RULE_SOURCES:
            raise ValueError(
                f"model.window is {self.model.window} and must be at least {RULE_SOURCES}: rules "
                "and texts read so many items of a history when serving, so training must too"
            )
        if self.serving.min_replicas > self.serving.max_replicas:
            raise ValueError(
                f"serving.min_replicas is {self.serving.min_replicas} and must not exceed "
                f"serving.max_replicas, which is {self.serving.max_replicas}"
            )
        if self.model.dim % self.model.num_heads:
            raise ValueError(
                f"model.num_heads is {self.model.num_heads} and must divide model.dim, "
                f"which is {self.model.dim}"
            )
        if self.training.fresh_windows > self.training.batch_windows:
            raise ValueError(
                f"training.fresh_windows is {self.training.fresh_windows} and must not exceed "
                f"training.batch_windows, which is {self.training.batch_windows}"
            )
        half_lives = self.model.half_lives
        if not half_lives or not all(0.0 < half_life < math.inf for half_life in half_lives):
            raise ValueError(
                f"model.half_lives is {half_lives} and must hold at least one number, "
                "each above 0 and finite"
            )
        return self


def load_settings(path: Path | None = None, data_dir: Path | None = None) -> Settings:
    """Read settings from a TOML file, or the defaults; `data_dir` overrides the storage folder.

    Raises:
        SettingsError: If the file is missing, is no TOML, or has a key or value that is refused.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise SettingsError(f"cannot read settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(path, error)) from error
    absolute = (data_dir or settings.storage.data_dir).expanduser().absolute()
    storage = settings.storage.model_copy(update={"data_dir": absolute})
    return settings.model_copy(update={"storage": storage})


@dataclass(frozen=True)
class SettingLine:
    """One setting, for people: its name, its default as TOML, and what it means."""

    section: str
    key: str
    default: str
    meaning: str


def describe_settings() -> list[SettingLine]:
    """Every setting there is, in the order of the code."""
    return [
        SettingLine(section, key, _as_toml(value), type(table).model_fields[key].description or "")
        for section, table in Settings()
        for key, value in table
    ]


def _as_toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_as_toml(part) for part in value) + "]"
    if isinstance(value, str | Path):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explain(path: Path | None, error: ValidationError) -> str:
    lines = [f"{path or 'settings'}: {error.error_count()} setting(s) refused"]
    for problem in error.errors():
        if key := ".".join(str(part) for part in problem["loc"]):
            lines.append(f"  {key}: {problem['msg']} (given: {problem['input']!r:.80})")
        else:  # a relation between keys: its message names them
            lines.append(f"  {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
