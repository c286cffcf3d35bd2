"""How pictures look: one colour for each ranking, quiet axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

GREY = "#666666"

# Okabe and Ito 2008: told apart by colour-blind readers, and in print by lightness.
COLOURS = {
    "blend": "#0072B2",
    "learning": "#D55E00",
    "net": "#D55E00",
    "rules": "#009E73",
    "popularity": "#777777",
    "frozen": "#E69F00",
    "content": "#56B4E9",
    "item_knn": "#CC79A7",
    "ease": "#56B4E9",
    "blend_ials": "#0072B2",
    "ials": "#F0E442",
    "trending": "#999999",
}
_OTHER_COLOUR = "#000000"


def colour_of(name: str) -> str:
    """The colour of a ranking, black if it has none of its own."""
    return COLOURS.get(name, _OTHER_COLOUR)


def lighter(colour: str, share: float) -> tuple[float, ...]:
    """The colour mixed with a share of white; opaque, unlike alpha, over grid lines."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(channel + (1.0 - channel) * share for channel in channels)


def series(values: Sequence[float | None]) -> Series:
    """Numbers to draw, with gaps where nothing was measured."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def style(panel: Any, title: str, x_label: str, grid_axis: str = "y") -> None:
    """Title on the left, grid behind, no box."""
    panel.set_title(title, loc="left", fontsize=14, pad=10)
    panel.set_xlabel(x_label, fontsize=11, color=GREY)
    panel.grid(axis=grid_axis, color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near the values, in their order, no two nearer than `gap`."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    positions = list(values)
    for lower, upper in pairwise(order):
        positions[upper] = max(positions[upper], positions[lower] + gap)
    if order:  # all were pushed up: back by half of the largest push
        shift = max(positions[index] - values[index] for index in order) / 2
        positions = [position - shift for position in positions]
    return positions
