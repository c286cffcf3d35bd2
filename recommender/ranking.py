"""From what is known of a user to ranked items: the one path that serving and evaluation share.

Axes: V items of the catalogue, H items of a history, M half-lives, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recommender.counters import Counters
from recommender.implicit_factors import IALS, ItemFactors
from recommender.replay import UserSequence, windows_of
from recommender.windows import Windows

COMPONENTS = ("net", "rules", "popularity", "content", "ials")
"""Rankings that the blend can fuse, by the names in answers and reports. Stored blends know them by
their place, so a new one comes last."""

BLEND_HALF_LIFE = 2_000.0
"""Half-life, in events, of the popularity that the blend fuses."""

_LONGEST_WINDOW = 512  # the most that `ModelSettings.window` allows
_PROFILE_ITEMS = 20
_PROFILE_FADE = 0.9


class NetScorer(Protocol):
    """What ranking asks of a published version; `scorer.Scorer` is one."""

    @property
    def num_items(self) -> int:
        """Catalogue rows it can score."""

    @property
    def text_unit(self) -> NDArray[np.float32]:
        """Standardised text vectors of unit length, [num_items, text_dim]."""

    def net_scores(
        self, windows: Windows, popularity_MV: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Logits of the windows' users, [B, num_items]."""


@dataclass(frozen=True)
class History:
    """All that a user had, oldest first.

    Attributes:
        rows_H: int32 catalogue rows.
        feedback_H: int8, see `events.feedback_code`.
        timestamps_ms_H: int64, rising.
    """

    rows_H: NDArray[np.int32]
    feedback_H: NDArray[np.int8]
    timestamps_ms_H: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows_H)

    def window(self, num_items: int) -> Windows:
        """The last `num_items` items, as one row."""
        sequence = UserSequence(self.rows_H, self.feedback_H, self.timestamps_ms_H)
        return windows_of([sequence], num_items)


def component_scores(
    scorer: NetScorer | None,
    counters: Counters,
    history: History,
    *,
    half_life_index: int,
    num_items: int | None = None,
    factors: ItemFactors | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Scores of every item by each component that can speak, each [V], higher is better.

    Args:
        scorer: The served version; without one there is neither `net` nor `content`.
        counters: As of now.
        history: Of the user; may be empty.
        half_life_index: Which of the counters' half-lives `popularity` decays with.
        num_items: V; as many as the scorer or the counters know if left out. Items that a
            component does not know get the lowest score it gives, of `ials` 0.
        factors: The latest fit; without one there is no `ials`.
    """
    return window_scores(
        scorer,
        counters,
        history.window(_LONGEST_WINDOW),
        history.rows_H,
        half_life_index=half_life_index,
        num_items=num_items,
        factors=factors,
    )


def window_scores(
    scorer: NetScorer | None,
    counters: Counters,
    window: Windows,
    seen_rows: NDArray[np.int32],
    *,
    half_life_index: int,
    num_items: int | None = None,
    factors: ItemFactors | None = None,
) -> dict[str, NDArray[np.float32]]:
    """`component_scores` of a user whose latest items are the one row of `window`.

    `seen_rows` are all items the user had, of which only `ials` uses more than the window has.

    Raises:
        ValueError: If `window` has not one row.
    """
    if len(window) != 1:
        raise ValueError(f"one user at a time, got {len(window)}")
    if num_items is None:
        num_items = max(counters.num_items, scorer.num_items if scorer else 0)
    history_rows = window.items_BT[0, : window.lengths_B[0]]
    popularity_MV = counters.popularity()
    components = {
        "rules": counters.rule_scores(history_rows),
        "popularity": popularity_MV[half_life_index],
    }
    if scorer is not None:
        components["net"] = scorer.net_scores(window, popularity_MV)[0]
        components["content"] = content_scores(scorer.text_unit, history_rows)
    if factors is not None:
        components[IALS] = factors.scores(seen_rows, num_items)
    return {name: fit_items(scores_V, num_items) for name, scores_V in components.items()}


def nearest_half_life(half_lives: Sequence[float], wanted: float) -> int:
    """Index of the half-life closest to `wanted` as a ratio."""
    return int(np.argmin(np.abs(np.log(np.array(half_lives) / wanted))))


def content_scores(
    text_unit_VD: NDArray[np.float32], history_rows: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Likeness of each item's text to those of the user's last 20 items, [V]; 0 without any.

    The a-th last item weighs 0.9^a. The only component that can tell new items apart.
    """
    profile_D = _profile(text_unit_VD, history_rows).sum(axis=0)
    scores_V: NDArray[np.float32] = text_unit_VD @ profile_D
    return scores_V


def content_contributions(
    text_unit_VD: NDArray[np.float32],
    history_rows: NDArray[np.int32],
    texts_KD: NDArray[np.float32],
) -> NDArray[np.float32]:
    """What each of the user's last 20 items adds to the `content_scores` of some texts.

    Returns:
        [S, K], sources oldest first as in `history_rows`; sums over S to the scores.
    """
    contributions_SK: NDArray[np.float32] = _profile(text_unit_VD, history_rows) @ texts_KD.T
    return contributions_SK


def _profile(
    text_unit_VD: NDArray[np.float32], history_rows: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Faded text vectors of the user's last 20 items, oldest first; zeros for unknown rows."""
    rows_S = history_rows[-_PROFILE_ITEMS:]
    fade_S = np.power(_PROFILE_FADE, np.arange(len(rows_S)), dtype=np.float32)[::-1]
    known_S = (rows_S >= 0) & (rows_S < len(text_unit_VD))
    if not known_S.any():
        return np.zeros((len(rows_S), text_unit_VD.shape[1]), np.float32)
    profile_SD: NDArray[np.float32] = text_unit_VD[np.where(known_S, rows_S, 0)]
    profile_SD *= (fade_S * known_S)[:, None]
    return profile_SD


def fit_items(scores_V: NDArray[np.float32], num_items: int) -> NDArray[np.float32]:
    """Scores cut or filled to `num_items`; an item without a score gets the lowest there is.

    The parts of the system learn of a new item at slightly different times.
    """
    missing = num_items - len(scores_V)
    if missing <= 0:
        return scores_V[:num_items]
    lowest = scores_V.min() if len(scores_V) else 0.0
    return np.pad(scores_V, (0, missing), constant_values=lowest)


def eligible_items(num_items: int, left_out: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mask [V] of the items that may be ranked: all but `left_out` (rows outside are ignored)."""
    eligible_V = np.ones(num_items, np.bool_)
    eligible_V[left_out[(left_out >= 0) & (left_out < num_items)]] = False
    return eligible_V


def ranks_of(
    scores_V: NDArray[np.floating], eligible_V: NDArray[np.bool_], targets_N: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Rank of each target among the eligible items, [N], 1 is best, ties share their mean rank.

    Raises:
        ValueError: If a target is not eligible.
    """
    if not eligible_V[targets_N].all():
        raise ValueError(f"targets {targets_N[~eligible_V[targets_N]].tolist()} are not eligible")
    ascending = np.sort(scores_V[eligible_V])
    targets_scores_N = scores_V[targets_N]
    num_up_to_N = np.searchsorted(ascending, targets_scores_N, side="right")
    num_below_N = np.searchsorted(ascending, targets_scores_N, side="left")
    return np.asarray(len(ascending) + 0.5 - (num_up_to_N + num_below_N) / 2, np.float64)


def top_k(
    scores_V: NDArray[np.floating], eligible_V: NDArray[np.bool_], k: int
) -> NDArray[np.int32]:
    """Rows of the best `k` eligible items (fewer if there are fewer), best first; ties by row."""
    rows = np.flatnonzero(eligible_V)
    scores = scores_V[rows]
    if k < len(rows):
        # Everything level with the k-th stays in until the ties are broken.
        kth_best = np.partition(scores, len(rows) - k)[len(rows) - k] if k else np.inf
        rows, scores = rows[scores >= kth_best], scores[scores >= kth_best]
    return rows[np.argsort(-scores, kind="stable")][:k].astype(np.int32)
