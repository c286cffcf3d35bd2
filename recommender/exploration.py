"""Places in an answer that are kept for items which nobody has had an event on yet.

No counter and no weight speaks for such an item, so the blend seldom brings it to the top, and
what is never shown is never learned. Axes: V items, C candidates, K rows of an answer.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_PER = 10


def num_slots(k: int, slots_of_ten: int) -> int:
    """Places of an answer of `k` that are kept, rounded down: a short answer has none."""
    return k * slots_of_ten // _PER


def seed_of(request_id: str) -> int:
    """The same request explores the same, whichever replica answers it."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big")


def draw_unseen(
    similarity_V: NDArray[np.float32], candidates_V: NDArray[np.bool_], num: int, seed: int
) -> NDArray[np.int32]:
    """Up to `num` of the candidates, near ones more often, far ones now and then.

    The n-th most similar is drawn with a weight of 1 / n, so that items rotate over requests
    and none is shut out. Where nothing is known of the user all are alike.
    Source: Kool et al. 2019, arXiv:1903.06059 (Gumbel-top-k draws without replacement).

    Args:
        similarity_V: Likeness of each item's text to those of the user's history.
        candidates_V: Items that may be drawn.
        num: How many.
        seed: Decides what is drawn, see `seed_of`.
    """
    rows_C = np.flatnonzero(candidates_V)
    places_C = np.zeros(len(rows_C))
    if len(rows_C) and np.ptp(similarity_V[rows_C]) > 0:
        places_C[np.argsort(-similarity_V[rows_C], kind="stable")] = np.arange(len(rows_C))
    keys_C = np.random.default_rng(seed).gumbel(size=len(rows_C)) - np.log1p(places_C)
    return rows_C[np.argsort(-keys_C, kind="stable")][:num].astype(np.int32)


def with_unseen(
    ranked_K: NDArray[np.int32],
    k: int,
    similarity_V: NDArray[np.float32],
    unseen_V: NDArray[np.bool_],
    *,
    num: int,
    seed: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """An answer whose last `num` places explore.

    Args:
        ranked_K: The answer without exploration, best first, at most `k`.
        k: Wanted length.
        similarity_V: See `draw_unseen`.
        unseen_V: Items that may be recommended and had no event yet.
        num: Places kept. Those for which there is no unseen item go back to the ranked ones.
        seed: See `seed_of`.

    Returns:
        Rows of the answer, and which of them explore.
    """
    safe = ranked_K[: max(0, k - num)]
    candidates_V = unseen_V.copy()
    candidates_V[safe] = False
    drawn = draw_unseen(similarity_V, candidates_V, num, seed)
    others = ranked_K[~np.isin(ranked_K, drawn)][: k - len(drawn)]
    return np.concatenate([others, drawn]), np.arange(len(others) + len(drawn)) >= len(others)
