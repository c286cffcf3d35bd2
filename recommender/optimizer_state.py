"""AdamW's moments by the name of their parameter, so that they outlive the parameter object.

Growing the catalogue replaces parameters, and a resumed run has others: the moments move over.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""


def moments_of(optimizer: torch.optim.AdamW, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Moments by parameter name, not copied; empty before the first step."""
    return {
        name: {moment: optimizer.state[parameter][moment] for moment in MOMENTS}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def give_moments(
    optimizer: torch.optim.AdamW, model: nn.Module, moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Let a new optimiser of `model` go on with these moments; rows that are new start at zero."""
    for name, parameter in model.named_parameters():
        if name in moments:
            optimizer.state[parameter] = {
                moment: _padded(value, parameter).to(parameter.device)
                for moment, value in moments[name].items()
            }


def _padded(value: Tensor, parameter: Tensor) -> Tensor:
    if value.ndim == 0 or len(value) == len(parameter):
        return value
    padded = value.new_zeros(parameter.shape)
    padded[: len(value)] = value
    return padded
