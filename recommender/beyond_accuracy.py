"""What is in the lists beside what was taken: coverage, novelty, diversity, popularity.

Axes: V items of the catalogue, D text dimensions, K items of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.ranking import top_k

LIST_LENGTH = 10
_HEAD_SHARE = 0.1


@dataclass(frozen=True)
class ListQuality:
    """Means over the top ten of one ranking at every scored event.

    Attributes:
        coverage: Share of the catalogue that was in any list.
        novelty: Mean surprise of a recommended item in bits, -log2 of its share of the events so
            far (each item is given one event more than it has).
        diversity: Mean of 1 - cosine over the pairs of a list, by their texts.
        popularity_share: Share of the recommended items that were among the tenth of the catalogue
            with the most events.

    Source: Castells, Hurley and Vargas 2022, Novelty and diversity in recommender systems,
    doi:10.1007/978-1-0716-2197-4_16.
    """

    coverage: float
    novelty: float
    diversity: float
    popularity_share: float


class ListObserver:
    """Looks at the top ten of some rankings; takes part in nothing."""

    def __init__(self, text_unit_VD: NDArray[np.float32]) -> None:
        """Text vectors must be standardised and of unit length."""
        self._text_unit_VD = text_unit_VD
        self._num_lists = 0
        self._shown: dict[str, NDArray[np.bool_]] = {}
        self._sums: dict[str, NDArray[np.float64]] = {}

    def observe(
        self,
        rankings: Mapping[str, NDArray[np.floating]],
        eligible_V: NDArray[np.bool_],
        num_events_V: NDArray[np.floating],
    ) -> None:
        """Count one list of each ranking.

        Args:
            rankings: Scores of all items by the name of the ranking, each [V].
            eligible_V: Items that may be in a list.
            num_events_V: Events of each item so far (decayed ones will do).
        """
        self._num_lists += 1
        counts_V = num_events_V.astype(np.float64) + 1.0
        surprise_V = -np.log2(counts_V / counts_V.sum())
        num_head = max(1, round(_HEAD_SHARE * len(counts_V)))
        head_V = counts_V >= np.partition(counts_V, -num_head)[-num_head]
        for name, scores_V in rankings.items():
            rows_K = top_k(scores_V, eligible_V, LIST_LENGTH)
            shown_V = self._shown.setdefault(name, np.zeros(len(counts_V), np.bool_))
            shown_V[rows_K] = True
            if len(rows_K) == 0:
                continue
            figures = (surprise_V[rows_K].mean(), self._diversity(rows_K), head_V[rows_K].mean())
            self._sums[name] = self._sums.get(name, np.zeros(3)) + figures

    def result(self) -> dict[str, ListQuality]:
        """Figures by ranking; empty before the first list."""
        return {
            name: ListQuality(float(self._shown[name].mean()), *(sums / self._num_lists).tolist())
            for name, sums in self._sums.items()
        }

    def _diversity(self, rows_K: NDArray[np.int32]) -> float:
        """From the length of the sum of unit vectors: all pairs at once."""
        num = len(rows_K)
        if num < 2:
            return 0.0
        texts_KD = self._text_unit_VD[rows_K].astype(np.float64)
        total_D = texts_KD.sum(axis=0)
        twice_pairs = total_D @ total_D - (texts_KD * texts_KD).sum()
        return float(1.0 - twice_pairs / (num * (num - 1)))
