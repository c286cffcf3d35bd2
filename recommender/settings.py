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


class TextTuningSettings(Section):
    """Whether the BERT that reads item texts learns too, in a slow lane beside the towers."""

    mode: Literal["frozen", "lora", "top_layers", "full"] = "frozen"
    """What of BERT learns online: nothing, additions of low rank (needs `peft`), layers, all."""
    num_layers: int = Field(default=1, ge=1, le=48)
    """Top layers that `lora` and `top_layers` train."""
    lora_rank: int = Field(default=8, ge=1, le=256)
    """Rank of the additions to query, value and dense matrices."""
    learning_rate: float = Field(default=5e-5, gt=0.0, le=0.1)
    """AdamW step size of BERT."""
    weight_decay: float = Field(default=0.01, ge=0.0, le=1.0)
    """AdamW decoupled weight decay of what learns of BERT."""
    gather_steps: int = Field(default=4, ge=1, le=1_000)
    """Steps of the towers whose gradients make one step of BERT."""
    items_per_step: int = Field(default=96, ge=1, le=4_096)
    """Items of one step of BERT, drawn by the norm of their gradient."""
    refresh_steps: int = Field(default=16, ge=1, le=10_000)
    """Steps of BERT after which the vectors of all items are computed again."""
    cpu_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Most that BERT may take of the training process's CPU time; what is due then waits."""
    cache_mib: int = Field(default=512, ge=0)
    """Memory for the states below the layers that learn; beyond it they are computed each time."""
    compared_events: int = Field(default=1_000, ge=50)
    """Newest scored events on which tuned and pretrained texts are compared."""
    max_loss_errors: float = Field(default=2.0, ge=0.0)
    """Tuning starts over when it loses by more than this many standard errors on them."""


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
    adversarial_size: float = Field(default=0.0, ge=0.0, le=10.0)
    """Length of the worst-case shift of item vectors that training also has to bear; 0 is off."""
    adversarial_weight: float = Field(default=1.0, ge=0.0, le=10.0)
    """How much the loss under that shift counts beside the plain loss."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 autocast on a GPU and float32 on a CPU."""


class FactorSettings(Section):
    """Implicit matrix factorisation (iALS), an optional component; needs the extra `ials`."""

    enabled: bool = False
    """Whether the training loop fits it and the blend may serve it. Needs `rheos[ials]`."""
    factors: int = Field(default=64, ge=1, le=1024)
    """Factors of a user and of an item."""
    regularisation: float = Field(default=20.0, gt=0.0)
    """Weight of the squared factors in the loss."""
    alpha: float = Field(default=4.0, ge=1.0)
    """Confidence in an item that a user had, where one that the user did not have counts 1."""
    sweeps: int = Field(default=3, ge=1, le=100)
    """Alternations of one fit, which starts where the last one ended."""
    refit_events: int = Field(default=5_000, ge=1)
    """Events between two fits."""
    max_events: int = Field(default=1_000_000, ge=1)
    """Latest events that a fit is made of; a million takes 1.5 CPU s and 0.2 GB for a fit."""


class BlendSettings(Section):
    """How the rankings are fused, and the guard that keeps a bad component out."""

    learning_rate: float = Field(default=0.05, gt=0.0)
    """Adam step size of the blend weights at the start."""
    settle_events: float = Field(default=1_000.0, gt=0.0)
    """Scored events after which the step size has halved; it goes on falling, to a tenth."""
    events_per_step: int = Field(default=5, ge=1)
    """Scored events for one step."""
    top: int = Field(default=20, ge=1)
    """The loss is taken over the union of each component's best `top` items."""
    guard_half_life: float = Field(default=1_000.0, gt=0.0)
    """Half-life, in scored events, of the quality the guard compares."""
    guard_margin: float = Field(default=0.03, ge=0.0)
    """A component must beat the blend by this share, plus 0.002, to be served instead."""
    guard_certainty: float = Field(default=2.0, ge=0.0)
    """And by this many standard errors of the difference, so that chance does not decide."""
    guard_min_events: int = Field(default=50, ge=1)
    """Scored events in a bucket before the guard may act."""


class FilterSettings(Section):
    """Which fresh events may teach weights, counters and blend. A bound of 0 is off."""

    span: int = Field(default=1_000, ge=10, le=100_000)
    """Events of a shard over which the bounds below are counted."""
    max_repeats: int = Field(default=0, ge=0)
    """How often one item of a user's window teaches."""
    max_user_events: int = Field(default=0, ge=0)
    """Events of one user in a span that teach."""
    max_twins: int = Field(default=0, ge=0)
    """Users in a span who may come to an item after nearly the same items; more are bots."""
    max_growth: float = Field(default=0.0, ge=0.0)
    """An item with over 10 events in a span may have so many times what its past suggests."""


NO_FILTERS = FilterSettings()
"""Every event teaches."""

MEASURED_FILTERS = FilterSettings(max_repeats=2, max_user_events=500, max_twins=3)
"""Bounds that hold off clones and leave out fewer than 3 in 1,000 honest events of ml-100k."""


class GuardSettings(Section):
    """What keeps learning from making the served version worse."""

    hold_out_every: int = Field(default=0, ge=0)
    """One user in so many is measured and never learned from; 0 is nobody, replay is measured."""
    period_events: int = Field(default=5_000, ge=1)
    """Fresh events of the period that one set of probes stands for; doubles as the stream grows."""
    probes_per_period: int = Field(default=64, ge=1, le=10_000)
    """Held-out events kept of each of at most eight periods."""
    margin: float = Field(default=0.10, ge=0.0, lt=1.0)
    """Share of its NDCG@10 on probes or replayed events that a new version may lose at once."""
    num_errors: float = Field(default=3.0, ge=0.0)
    """A difference is believed when it is larger than so many standard errors."""
    fall_threshold: float = Field(default=50.0, gt=0.0)
    """Page-Hinkley threshold of the progressive NDCG@10, in standard deviations."""
    fall_tolerance: float = Field(default=0.1, gt=0.0)
    """Fall of the progressive NDCG@10 that is put up with, in standard deviations."""
    trust_events: int = Field(default=500, ge=1)
    """Scored events without an alarm after which a version counts as one to go back to."""
    urgent_half_life: float = Field(default=10_000.0, gt=0.0)
    """Events after which half of the faster pace after a drift is left."""
    urgent_rate_factor: float = Field(default=2.0, ge=1.0, le=10.0)
    """What a drift multiplies the learning rate by at most."""
    urgent_fresh_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of fresh windows in a batch right after a drift."""
    urgent_replay_half_life: float = Field(default=2_000.0, gt=0.0)
    """Half-life, in events, of the age of replayed events right after a drift."""
