"""Softmax over the catalogue with two masks, whole or sampled.

At each trained position the target competes with every item that somebody has touched and that
the user has not had yet. Items nobody has touched take no part: as eternal negatives they would be
trained down before anyone could like them. Seen items take no part because serving never shows
them.

Axes: N trained positions, C candidates, J = 1 + C, K query width, V items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recommender.windows import Windows


@dataclass(frozen=True)
class Candidates:
    """The items that targets compete with.

    Attributes:
        rows_C: int64 item rows, rising, without repeats.
        log_inclusion_C: float32 log of the probability that a row was drawn; 0 when all are here.
    """

    rows_C: NDArray[np.int64]
    log_inclusion_C: NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """What to predict, where, and against what; all tensors on the model's device.

    Attributes:
        rows_N: int64 row of the batch.
        positions_N: int64 position in that row: how many items were seen before the target.
        items_N: int64 the target's item row.
        candidates_C: int64 competing item rows.
        log_inclusion_C: float32, see `Candidates`.
        excluded_2E: int64 pairs (position n, candidate c) that do not compete.
        anchor_NJ: float32 what `competing_logits` gives for the model to stay near to, or None.
        anchor_weight: How much staying near counts beside the targets.
    """

    rows_N: Tensor
    positions_N: Tensor
    items_N: Tensor
    candidates_C: Tensor
    log_inclusion_C: Tensor
    excluded_2E: Tensor
    anchor_NJ: Tensor | None = None
    anchor_weight: float = 0.0


def draw_candidates(
    touched_V: NDArray[np.bool_],
    popularity_V: NDArray[np.float32],
    *,
    all_up_to: int,
    num_sampled: int,
    rng: np.random.Generator,
) -> Candidates:
    """Every touched item, or a sample of them when there are more than `all_up_to`.

    The sample is drawn half by popularity, half uniformly, so no item is so rarely drawn that its
    correction dominates the loss. Repeats are dropped; what is kept of them is the probability that
    an item is in the sample at all.
    """
    touched_C = np.flatnonzero(touched_V)
    if len(touched_C) <= all_up_to:
        return Candidates(touched_C, np.zeros(len(touched_C), np.float32))
    counts_C = popularity_V[touched_C].astype(np.float64)
    share_C = 0.5 * counts_C / max(counts_C.sum(), 1e-12) + 0.5 / len(touched_C)
    share_C /= share_C.sum()
    drawn = np.unique(rng.choice(len(touched_C), size=num_sampled, p=share_C))
    inclusion = -np.expm1(num_sampled * np.log1p(-share_C[drawn]))
    return Candidates(touched_C[drawn], np.log(inclusion).astype(np.float32))


def draw_targets(
    windows: Windows,
    candidates: Candidates,
    num_items: int,
    rng: np.random.Generator,
    device: torch.device,
) -> Targets:
    """A random half of the used positions of the windows, at least one.

    Raises:
        ValueError: If no window has a used position.
    """
    lengths_B = windows.lengths_B
    columns_BT = np.arange(windows.items_BT.shape[1])[None, :]
    rows, positions = np.nonzero(columns_BT < lengths_B[:, None])
    if not len(rows):
        raise ValueError(f"nothing to learn from {len(windows)} empty windows")
    half = rng.permutation(len(rows))[: (len(rows) + 1) // 2]
    rows_N, positions_N = rows[half], positions[half]
    items_N = windows.items_BT[rows_N, positions_N].astype(np.int64)
    excluded_2E = _excluded(windows, rows_N, positions_N, candidates.rows_C, num_items)

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Targets(
        rows_N=tensor(rows_N),
        positions_N=tensor(positions_N),
        items_N=tensor(items_N),
        candidates_C=tensor(candidates.rows_C),
        log_inclusion_C=tensor(candidates.log_inclusion_C),
        excluded_2E=tensor(excluded_2E),
    )


def masked_softmax_loss(queries_NK: Tensor, keys_VK: Tensor, targets: Targets) -> Tensor:
    """Mean cross-entropy of the targets against their candidates; with an anchor, and the distance.

    The distance is the mean Kullback-Leibler divergence from the anchor's distribution over what
    competes to the model's: learning without forgetting (Li and Hoiem 2016,
    doi:10.1109/TPAMI.2017.2773081) with replayed windows in the place of the new task's.
    """
    logits_NJ = competing_logits(queries_NK, keys_VK, targets)
    log_shares_NJ = logits_NJ.log_softmax(dim=1)
    loss = -log_shares_NJ[:, 0].mean()
    if targets.anchor_NJ is None:
        return loss
    anchor_NJ = targets.anchor_NJ.log_softmax(dim=1)
    # What does not compete is -inf in both: 0 * (-inf + inf) would be NaN.
    gaps_NJ = (anchor_NJ - log_shares_NJ).masked_fill(torch.isneginf(anchor_NJ), 0.0)
    distance = (anchor_NJ.exp() * gaps_NJ).sum(dim=1).mean()
    return loss + targets.anchor_weight * distance


def competing_logits(queries_NK: Tensor, keys_VK: Tensor, targets: Targets) -> Tensor:
    """Logits of each position's target, first, and its candidates; [N, J = 1 + C].

    -inf where a candidate does not compete. A candidate's logit is lowered by the log of its
    inclusion probability, which makes the sum over a sample an unbiased estimate of the sum over
    all. The target is always there, so it is not corrected.

    Source: Bengio and Senecal 2008, doi:10.1109/TNN.2007.912312 (importance-sampled softmax).
    """
    target_N = (queries_NK * keys_VK[targets.items_N]).sum(dim=1).float()
    logits_NC = (queries_NK @ keys_VK[targets.candidates_C].T).float()
    logits_NC = logits_NC - targets.log_inclusion_C
    logits_NC[targets.excluded_2E[0], targets.excluded_2E[1]] = -torch.inf
    return torch.cat([target_N[:, None], logits_NC], dim=1)


def _excluded(
    windows: Windows,
    rows_N: NDArray[np.int64],
    positions_N: NDArray[np.int64],
    candidates_C: NDArray[np.int64],
    num_items: int,
) -> NDArray[np.int64]:
    """Pairs of a position and the candidates it has already seen, or has as its target."""
    columns_T = np.arange(windows.items_BT.shape[1])
    candidate_of_V = np.full(num_items, -1, np.int64)
    candidate_of_V[candidates_C] = np.arange(len(candidates_C))
    candidate_BT = candidate_of_V[windows.items_BT]
    seen_NT = columns_T[None, :] <= positions_N[:, None]
    candidate_NT = np.where(seen_NT, candidate_BT[rows_N], -1)
    n, t = np.nonzero(candidate_NT >= 0)
    return np.stack([n, candidate_NT[n, t]])
