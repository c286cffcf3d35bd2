"""What the teacher hands the workers: where to begin, and what to learn next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.settings import BufferSettings, LoopSettings
from actors.stream_feed import CatalogGrowth, FreshPart
from recommender.hold_out import EVERYTHING, LeaveOut
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
from recommender.windows import Windows, concatenate, firsts_first, select


class TrainingJobSettings(Section):
    """What one training job needs to know: sections of `rheos.toml`."""

    loop: LoopSettings = LoopSettings()
    """`[loop]`"""
    buffer: BufferSettings = BufferSettings()
    """`[buffer]`"""
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
    text: TextSettings = TextSettings()
    """`[text]`; the encoder is written into every manifest."""
    text_tuning: TextTuningSettings = TextTuningSettings()
    """`[text_tuning]`"""
    seed: int = 0
    """Of the first weights and of every sample."""


@dataclass(frozen=True)
class Restart:
    """Begin at a version: its trainer state, or none for weights that know nothing yet."""

    state: Mapping[str, NDArray[Any]] | None
    growth: CatalogGrowth


@dataclass(frozen=True)
class Lesson:
    """Steps to take: one batch of windows each, their size, and the counters they see."""

    growth: CatalogGrowth
    batches: list[Windows]
    learning_rate: float
    popularity_MV: NDArray[np.float32]
    touched_V: NDArray[np.bool_]
    begin_from: Mapping[str, NDArray[Any]] | None = None
    """State to load before anything else, because tuned texts have lost."""


@dataclass
class RoundReport:
    """Numbers of one round, for the manifest, the metrics and the log."""

    num_fresh: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    num_steps: int = 0
    loss: float = float("nan")
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def newest_windows(
    parts: list[FreshPart], num_windows: int, leave_out: Sequence[LeaveOut] | None = None
) -> Windows | None:
    """Windows that end at fresh events: each user's latest first, then the others, newest first.

    `leave_out` says for each shard which events they may not end at; all may without it.
    """
    rules = [leave_out[part.shard] if leave_out else EVERYTHING for part in parts]
    learned = [
        (part, rule.may_learn(part.events.users_N, part.events.offsets_N))
        for part, rule in zip(parts, rules, strict=True)
    ]
    learned = [(part, may_N) for part, may_N in learned if may_N.any()]
    if not learned:
        return None
    windows = concatenate([select(part.events.windows, may_N) for part, may_N in learned])
    times_N = np.concatenate([part.events.acknowledged_ms_N[may_N] for part, may_N in learned])
    num_shards = 1 + max(part.shard for part, _ in learned)
    users_N = np.concatenate([part.users_among(num_shards)[may_N] for part, may_N in learned])
    # Events of one append share a time; the later one of them comes first too.
    newest_first = np.argsort(times_N, kind="stable")[::-1]
    return select(windows, newest_first[firsts_first(users_N[newest_first])][:num_windows])


def held_out_events(
    part: FreshPart, leave_out: Sequence[LeaveOut]
) -> tuple[Windows, NDArray[np.int64]]:
    """Windows that end at fresh events of users who are measured, and a number for each user."""
    held_N = leave_out[part.shard].held_out(part.events.users_N)
    return select(part.events.windows, held_N), part.users_among(len(leave_out))[held_N]
