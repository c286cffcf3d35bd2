"""What the arrays of a published version belong to, by the start of their names."""

from __future__ import annotations

MODEL = "model."
"""Of `recommender.scorer.Scorer.from_state`."""
BLEND = "blend."
"""Of `recommender.blend.Blend.from_state`."""
FACTORS = "ials."
"""Of `recommender.implicit_factors.ItemFactors.from_state`; absent without iALS."""
