"""How one round's windows are dealt to its optimiser steps: the same live and offline."""

from __future__ import annotations

import numpy as np

from recommender.windows import Windows, concatenate, select


def round_batches(
    newest: Windows | None, older: Windows | None, num_steps: int, rng: np.random.Generator
) -> list[Windows]:
    """One batch a step: each gets its share of the newest windows and of the replayed ones.

    Dealt out, because the same newest windows at every step would be overfitted.

    Args:
        newest: Windows that end at fresh events, None or empty if there are none.
        older: Replayed windows, None if there are none.
        num_steps: How many batches to make, at least 1.
        rng: Shuffles the newest windows.

    Returns:
        At most `num_steps` batches, none of them empty.
    """
    shares: list[list[Windows]] = [[] for _ in range(num_steps)]
    for windows, shuffled in ((newest, True), (older, False)):
        if windows is None:
            continue
        order = rng.permutation(len(windows)) if shuffled else np.arange(len(windows))
        for share, rows in zip(shares, np.array_split(order, num_steps), strict=True):
            if len(rows):
                share.append(select(windows, rows))
    return [concatenate(share) for share in shares if share]
