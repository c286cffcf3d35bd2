"""Adversarial training on item vectors: a step also has to do well where it would hurt most.

Text BERT is given and items of few events have vectors that little holds in place; a push attack
moves just those. Training under the worst small shift makes the ranking depend less on any of them.

Sources: fast gradient method on embeddings, Miyato et al. 2017, arXiv:1605.07725; for recommenders,
with one shift an item, He et al. 2018, doi:10.1145/3209978.3209981.

Axes: V items, H model dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recommender.settings import TrainingSettings

_TINY = 1e-12


@dataclass(frozen=True)
class Adversary:
    """How far item vectors are shifted, and how much the loss there counts."""

    size: float
    weight: float

    def loss(self, loss_of: Callable[[Tensor], Tensor], items_VH: Tensor) -> Tensor:
        """The plain loss plus `weight` times the loss at the shifted vectors, over their sum.

        The scale of a loss stays what it was, so that learning rate and clipping keep their sense.
        """
        plain = loss_of(items_VH)
        shifted = loss_of(items_VH + self.shift(plain, items_VH))
        return (plain + self.weight * shifted) / (1.0 + self.weight)

    def shift(self, loss: Tensor, items_VH: Tensor) -> Tensor:
        """A step of `size` for each item, up the loss; a constant, 0 for items without gradient.

        It asks for the gradient of the item vectors alone, so no parameter's gradient hook runs
        and DistributedDataParallel sees one backward pass.
        """
        (gradient_VH,) = torch.autograd.grad(loss, items_VH, retain_graph=True)
        norms_V1 = gradient_VH.norm(dim=1, keepdim=True)
        shift_VH: Tensor = self.size * gradient_VH.detach() / norms_V1.clamp_min(_TINY)
        return shift_VH


def adversary_of(settings: TrainingSettings) -> Adversary | None:
    """What the settings ask for; None if they switch it off."""
    if not settings.adversarial_size or not settings.adversarial_weight:
        return None
    return Adversary(settings.adversarial_size, settings.adversarial_weight)
