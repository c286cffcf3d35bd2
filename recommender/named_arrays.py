"""Arrays by name in one mapping, where the start of a name says whose an array is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays whose names start with a prefix, which is taken off."""
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def tensors_under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Copies of the arrays under a prefix, as tensors."""
    return {n: torch.from_numpy(np.array(value)) for n, value in under(prefix, arrays).items()}


def put_under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays with a prefix before their names, for `under`."""
    return {f"{prefix}{name}": value for name, value in arrays.items()}
