"""A few votes a user: so that a few who flood the stream do not decide what is good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def votes(users_N: NDArray[np.integer], most: int) -> NDArray[np.int64]:
    """Places of the last `most` events of every user, rising."""
    counts: dict[int, int] = {}
    kept: list[int] = []
    for place in range(len(users_N) - 1, -1, -1):
        user = int(users_N[place])
        counts[user] = counts.get(user, 0) + 1
        if counts[user] <= most:
            kept.append(place)
    return np.array(kept[::-1], np.int64)
