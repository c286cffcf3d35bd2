"""The one settings tree: joins the sections, reads TOML once, says what is wrong with a key."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from actors.settings import (
    BufferSettings,
    KeeperSettings,
    LoopSettings,
    StorageSettings,
    StoreSettings,
)
from recommender.settings import (
    BlendSettings,
    ModelSettings,
    Section,
    TextSettings,
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
    model: ModelSettings = ModelSettings()
    """`[model]`"""
    training: TrainingSettings = TrainingSettings()
    """`[training]`"""
    blend: BlendSettings = BlendSettings()
    """`[blend]`"""
    serving: ServingSettings = ServingSettings()
    """`[serving]`"""

    @model_validator(mode="after")
    def _history_covers_the_window(self) -> Settings:
        if self.buffer.history_length <= self.model.window:
            raise ValueError(
                f"buffer.history_length is {self.buffer.history_length} and must exceed "
                f"model.window, which is {self.model.window}"
            )
        if self.serving.min_replicas > self.serving.max_replicas:
            raise ValueError(
                f"serving.min_replicas is {self.serving.min_replicas} and must not exceed "
                f"serving.max_replicas, which is {self.serving.max_replicas}"
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
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    if data_dir is not None:
        tree["storage"] = {**tree.get("storage", {}), "data_dir": str(data_dir)}
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(path, error)) from error
    absolute = settings.storage.data_dir.expanduser().absolute()
    storage = settings.storage.model_copy(update={"data_dir": absolute})
    return settings.model_copy(update={"storage": storage})


def _explain(path: Path | None, error: ValidationError) -> str:
    lines = [f"{path or 'settings'}: {error.error_count()} setting(s) refused"]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        lines.append(f"  {key}: {problem['msg']} (given: {problem['input']!r:.80})")
    return "\n".join(lines)
