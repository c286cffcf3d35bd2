"""A version as training left it: the weights, and all that the next process goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.messages import Manifest
from recommender.counters import Counters
from recommender.guard import Guard
from recommender.named_arrays import put_under, under
from recommender.probes import MemoryProbes

_PROBES = "probes."
_GUARD = "guard."
_COMPARED = "compared."
_POPULARITY = "popularity."
_SERVED = "served"


@dataclass(frozen=True)
class SavedVersion:
    """One version, read from the store.

    Attributes:
        manifest: Where it came from.
        payload: What is served.
        trainer: What training goes on from.
    """

    manifest: Manifest
    payload: Mapping[str, NDArray[Any]]
    trainer: Mapping[str, NDArray[Any]]

    def knows(self, head: int) -> bool:
        """Whether training stood on that head when it went on after storing this version.

        So it is the head itself, as it was meant to be, or a candidate that was rejected there.
        """
        if _SERVED not in self.trainer:
            return False
        if self.manifest.version == head:
            return self._is_served
        return not self._is_served and self.manifest.parent == head

    def give(self, guard: Guard, memory: MemoryProbes) -> None:
        """Let them know what they knew right after this version was stored and perhaps served.

        Without held-out users their probes would be learned from: then they are left.
        """
        memory.load_state(under(_COMPARED, self.trainer))
        if guard.settings.hold_out_every:
            guard.probes.load_state(under(_PROBES, self.trainer))
        if watched := under(_GUARD, self.trainer):
            guard.load_state(watched)
            if self._is_served:
                guard.promoted(self.manifest.version)

    def order(self, counters: Counters) -> None:
        """Let counters that read the logs again have counted in the order of the lessons."""
        counters.take_popularity(under(_POPULARITY, self.trainer))

    @property
    def _is_served(self) -> bool:
        return bool(self.trainer[_SERVED])


def saved_with(
    guard: Guard, memory: MemoryProbes, counters: Counters, *, is_served: bool
) -> dict[str, NDArray[Any]]:
    """What belongs into the trainer state of a version beside the learner's."""
    return {
        _SERVED: np.array(is_served),
        **put_under(_PROBES, guard.probes.state() if guard.settings.hold_out_every else {}),
        **put_under(_GUARD, guard.state()),
        **put_under(_COMPARED, memory.state()),
        **put_under(_POPULARITY, counters.popularity_state()),
    }
