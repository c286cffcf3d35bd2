"""Settings of the model and its training. Each is a section of `rheos.toml`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every settings section: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TextSettings(Section):
    """The pretrained BERT that reads item texts."""

    encoder: str = "minilm"
    """`minilm` (packaged), any transformers hub name such as `bert-base-uncased`, or a folder."""
    max_tokens: int = Field(default=40, ge=4, le=512)
    """Tokens of an item's text that are read; longer texts are cut."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Texts a forward pass."""


class ModelSettings(Section):
    """Shape of the two towers."""

    dim: int = Field(default=64, ge=4, le=1024)
    """Size of item and user vectors."""
    num_layers: int = Field(default=2, ge=1, le=24)
    """Layers of the user tower."""
    num_heads: int = Field(default=2, ge=1, le=16)
    """Attention heads of the user tower; divides `dim`."""
    intermediate: int = Field(default=256, ge=4, le=4096)
    """Width of the user tower's feed-forward layers."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Hidden dropout of the user tower while it trains."""
    window: int = Field(default=50, ge=1, le=512)
    """Latest items of a user that the tower reads."""
    half_lives: tuple[float, ...] = (500.0, 2_000.0, 10_000.0, 100_000.0)
    """Half-lives, in events, of the decayed popularity counters."""


class TrainingSettings(Section):
    """Optimiser, batches and replay."""

    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    """AdamW step size of the online steps and the peak of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW moment decays."""
    weight_decay: float = Field(default=0.01, ge=0.0, le=1.0)
    """AdamW decoupled weight decay."""
    clip_norm: float = Field(default=5.0, gt=0.0)
    """Gradients are clipped to this global norm."""
    batch_windows: int = Field(default=64, ge=1, le=4096)
    """Windows in one optimiser step, over all workers."""
    fresh_windows: int = Field(default=16, ge=0, le=4096)
    """How many of them end at the newest events; the others are replayed."""
    warmup_epochs: int = Field(default=16, ge=0, le=200)
    """Passes over the first events before the first version."""
    ramp_steps: int = Field(default=50, ge=0)
    """Steps over which the warm-up's learning rate rises from zero."""
    steps_per_500_events: int = Field(default=8, ge=1, le=200)
    """Online optimiser steps for every 500 fresh events."""
    replay_strategy: Literal["uniform", "recency", "mix"] = "recency"
    """Which older events are replayed: evenly drawn, by an exponential age, or half of each."""
    replay_half_life: float = Field(default=20_000.0, gt=0.0)
    """Half-life, in events, of the age of replayed events under `recency`."""
    anchor_weight: float = Field(default=0.0, ge=0.0)
    """Distillation: how much staying near to an earlier version counts; 0 is off."""
    anchor_steps: int = Field(default=160, ge=1)
    """Optimiser steps after which the version served then becomes the one to stay near to."""
    ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0)
    """The served weights are a moving average of the trained ones with this decay a step."""
    sampled_softmax_above: int = Field(default=20_000, ge=2)
    """Catalogues larger than this train with a sampled, logQ-corrected softmax."""
    num_sampled: int = Field(default=4_096, ge=16)
    """Negatives a step of the sampled softmax."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 autocast on a GPU and float32 on a CPU."""


class BlendSettings(Section):
    """How the rankings are fused, and the guard that keeps a bad component out."""

    learning_rate: float = Field(default=0.05, gt=0.0)
    """Adam step size of the blend weights."""
    events_per_step: int = Field(default=20, ge=1)
    """Scored events for one step."""
    top: int = Field(default=20, ge=1)
    """The loss is taken over the union of each component's best `top` items."""
    guard_half_life: float = Field(default=1_000.0, gt=0.0)
    """Half-life, in scored events, of the quality the guard compares."""
    guard_margin: float = Field(default=0.03, ge=0.0)
    """A component must beat the blend by this share, plus 0.002, to be served instead."""
    guard_min_events: int = Field(default=50, ge=1)
    """Scored events in a bucket before the guard may act."""


class GuardSettings(Section):
    """What keeps learning from making the served version worse."""

    hold_out_every: int = Field(default=20, ge=0)
    """One user in so many is measured and never learned from; 0 turns the probes off."""
    period_events: int = Field(default=5_000, ge=1)
    """Fresh events of the period that one set of probes stands for; doubles as the stream grows."""
    probes_per_period: int = Field(default=64, ge=1, le=10_000)
    """Held-out events kept of each of at most eight periods."""
    margin: float = Field(default=0.10, ge=0.0, lt=1.0)
    """Share of its NDCG@10 on probes that a new version may lose at once."""
    num_errors: float = Field(default=3.0, ge=0.0)
    """A difference is believed when it is larger than so many standard errors."""
    fall_threshold: float = Field(default=50.0, gt=0.0)
    """Page-Hinkley threshold of the progressive NDCG@10, in standard deviations."""
    fall_tolerance: float = Field(default=0.1, gt=0.0)
    """Fall of the progressive NDCG@10 that is put up with, in standard deviations."""
    trust_events: int = Field(default=500, ge=1)
    """Scored events without an alarm after which a version counts as one to go back to."""
    urgent_half_life: float = Field(default=5_000.0, gt=0.0)
    """Events after which half of the faster pace after a drift is left."""
    urgent_rate_factor: float = Field(default=2.0, ge=1.0, le=10.0)
    """What a drift multiplies the learning rate by at most."""
    urgent_fresh_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of fresh windows in a batch right after a drift."""
