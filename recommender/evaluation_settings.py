"""What an evaluation compares, and what learns in it."""

from __future__ import annotations

from pydantic import Field

from recommender.blend import BLEND
from recommender.fresh_scoring import LEARNING
from recommender.implicit_factors import IALS
from recommender.settings import (
    NO_FILTERS,
    BlendSettings,
    FactorSettings,
    FilterSettings,
    GuardSettings,
    ModelSettings,
    Section,
    TrainingSettings,
)

FROZEN = "frozen"
TRENDING = "trending"
"""Popularity at the half-life that the blend fuses."""
BLEND_IALS = "blend_ials"
"""The blend with iALS among its components."""

RANKINGS = (
    *("popularity", TRENDING, "content", "rules"),
    *("item_knn", IALS, "ease"),
    *(FROZEN, LEARNING, BLEND, BLEND_IALS),
)
"""All that can be compared; `item_knn` and `ease` cost a dense V by V matrix each, and those with
iALS need the extra `ials`."""

DEFAULT_RANKINGS = ("popularity", "rules", FROZEN, LEARNING, BLEND)

COSTLY_SEEDLESS_RANKINGS = frozenset({"item_knn", "ease"})
"""No seed changes them, so with several seeds once is enough."""


class EvaluationSettings(Section):
    """What learns from a dataset that is replayed."""

    model: ModelSettings = ModelSettings()
    """Shape of the towers."""
    training: TrainingSettings = TrainingSettings()
    """Optimiser and replay."""
    blend: BlendSettings = BlendSettings()
    """Fusion and guard."""
    factors: FactorSettings = FactorSettings()
    """Implicit matrix factorisation."""
    guard: GuardSettings | None = None
    """Guards of the training loop, with the users they hold out; without it all is learned."""
    filters: FilterSettings = NO_FILTERS
    """Which events may teach; the others only enter the history of their user."""
    round_events: int = Field(default=500, ge=1)
    """Events between two updates of the weights."""
