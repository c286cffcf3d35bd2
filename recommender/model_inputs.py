"""What goes into the model without any learning: texts, popularity, the latest items of a user.

Pure numpy, shared by training and serving so that both see the same numbers.

Axes: V items, D text dimensions, M popularity half-lives, B users, T columns of a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recommender.windows import PAD, Windows

MIN_ITEMS_TO_STANDARDISE = 32
"""Below this, the mean and spread of a catalogue say more about chance than about language."""

POPULARITY_FLOOR = 0.05
"""Added to a decayed count before the logarithm: what an item nobody touched is worth."""

_TINY = 1e-6


def text_moments(text_VD: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each text dimension over the catalogue.

    Returns:
        Two arrays of length D; zeros and ones when the catalogue is too small to say.
    """
    if len(text_VD) < MIN_ITEMS_TO_STANDARDISE:
        dim = text_VD.shape[1]
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
    std_D = text_VD.std(axis=0, dtype=np.float64)
    return (
        text_VD.mean(axis=0, dtype=np.float64).astype(np.float32),
        np.maximum(std_D, _TINY).astype(np.float32),
    )


def unit_text(
    text_VD: NDArray[np.float32], mean_D: NDArray[np.float32], std_D: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Text vectors standardised per dimension, then scaled to unit length."""
    centred_VD = (text_VD - mean_D) / std_D
    norms_V1 = np.linalg.norm(centred_VD, axis=1, keepdims=True)
    return np.asarray(centred_VD / np.maximum(norms_V1, _TINY), dtype=np.float32)


def popularity_features(popularity_MV: NDArray[np.float32], num_items: int) -> NDArray[np.float32]:
    """Log of the decayed counts, centred over the items.

    Args:
        popularity_MV: Decayed counts; may have fewer or more columns than the model has items,
            because counters and weights travel separately. A missing item counts zero.
        num_items: Columns of the answer.

    Returns:
        Float32 [M, num_items].
    """
    counts_MV = popularity_MV[:, :num_items]
    missing = num_items - counts_MV.shape[1]
    if missing:
        counts_MV = np.pad(counts_MV, ((0, 0), (0, missing)))
    logs_MV: NDArray[np.float32] = np.log(counts_MV + np.float32(POPULARITY_FLOOR))
    logs_MV -= logs_MV.sum(axis=1, keepdims=True) / max(1, num_items)
    return logs_MV


def latest_items(windows: Windows, window: int) -> Windows:
    """The last `window` used items of each row, moved to the left; columns nobody uses go."""
    lengths_B = np.minimum(windows.lengths_B, window)
    starts_B = windows.lengths_B - lengths_B
    columns_T = np.arange(lengths_B.max(initial=0))
    source_BT = starts_B[:, None] + columns_T
    used_BT = columns_T < lengths_B[:, None]
    source_BT = np.where(used_BT, source_BT, 0)
    return Windows(
        items_BT=np.where(used_BT, np.take_along_axis(windows.items_BT, source_BT, 1), PAD),
        feedback_BT=np.where(used_BT, np.take_along_axis(windows.feedback_BT, source_BT, 1), 0),
        gaps_BT=np.where(used_BT, np.take_along_axis(windows.gaps_BT, source_BT, 1), 0),
        lengths_B=lengths_B,
    )
