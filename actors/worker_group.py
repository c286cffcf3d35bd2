"""The workers of one training group: what one makes, all get; each takes its part of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recommender.windows import Windows, select

T = TypeVar("T")


class WorkerGroup:
    """One worker's place in the group. Every method but the properties is collective."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @property
    def is_first(self) -> bool:
        """Whether this worker reads the stream and publishes."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first worker, on all of them.

        If `make` raises, the first worker fails and Ray Train starts the whole group again.
        """
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.is_first else None]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        value: T = box[0]
        return value

    def part(self, windows: Windows) -> Windows:
        """This worker's rows of a batch: every `size`-th, and never none."""
        if self.size == 1:
            return windows
        rows = np.arange(len(windows))
        mine = rows[self.rank :: self.size]
        return select(windows, mine if len(mine) else rows[:1])

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, averaging gradients over the group."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)
