"""The blend's guard: is a component better than the blend, and is that more than chance?

Axes: G history-length buckets, C components, J of them that were judged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recommender.settings import BlendSettings

_SLACK = 0.002
_TINY = 1e-12


class BlendGuard:
    """Discounted NDCG@10 of every component and of the blend, by bucket, and of their differences.

    All are judged on the same events, so a lead is held against the standard error of the
    difference, which is smaller than that of either.
    """

    def __init__(self, num_buckets: int, num_components: int, settings: BlendSettings) -> None:
        self._settings = settings
        self._keep = 0.5 ** (1.0 / settings.guard_half_life)
        shape, with_blend = (num_buckets, num_components), (num_buckets, num_components + 1)
        # Discounted sums. The last column of some is the blend's own; a gain is the NDCG of the
        # component less that of the blend.
        self._ndcg_GC = np.zeros(with_blend)
        self._gain_GC = np.zeros(shape)
        self._gain_square_GC = np.zeros(shape)
        self._weight_GC = np.zeros(with_blend)
        self._weight_square_GC = np.zeros(with_blend)
        self.num_events_G = np.zeros(num_buckets, np.int64)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What it stands on, to be stored and written to: a column a component, then the blend."""
        return {
            "ndcg": self._ndcg_GC,
            "gain": self._gain_GC,
            "gain_square": self._gain_square_GC,
            "weight": self._weight_GC,
            "weight_square": self._weight_square_GC,
        }

    def judge(
        self, bucket: int, columns_J: NDArray[np.int64], ndcg_J1: NDArray[np.float64]
    ) -> None:
        """Count an event: the NDCG of the components in these columns, then of the blend."""
        gain_J = ndcg_J1[:-1] - ndcg_J1[-1]
        judged = np.append(columns_J, self._ndcg_GC.shape[1] - 1)
        for sums_GC, columns, keep, values in (
            (self._ndcg_GC, judged, self._keep, ndcg_J1),
            (self._gain_GC, columns_J, self._keep, gain_J),
            (self._gain_square_GC, columns_J, self._keep, gain_J**2),
            (self._weight_GC, judged, self._keep, 1.0),
            (self._weight_square_GC, judged, self._keep**2, 1.0),
        ):
            sums_GC[bucket, columns] = sums_GC[bucket, columns] * keep + values
        self.num_events_G[bucket] += 1

    def ndcg_GC(self) -> NDArray[np.float64]:
        """Discounted means by bucket; the last column is the blend's."""
        return np.asarray(self._ndcg_GC / np.maximum(self._weight_GC, _TINY))

    def leader(self, bucket: int, columns_J: NDArray[np.int64]) -> int | None:
        """Position in `columns_J` of a component to serve in place of the blend, if there is one.

        It leads by the margin, and by so many standard errors that chance does not explain it.
        """
        settings = self._settings
        if self.num_events_G[bucket] < settings.guard_min_events:
            return None
        weight_J = np.maximum(self._weight_GC[bucket, columns_J], _TINY)
        gain_J = self._gain_GC[bucket, columns_J] / weight_J
        best = int(np.argmax(gain_J))
        column = columns_J[best]
        variance = self._gain_square_GC[bucket, column] / weight_J[best] - gain_J[best] ** 2
        # The error of a weighted mean: sqrt(variance * sum of w^2) / sum of w.
        error = np.sqrt(max(variance, 0.0) * self._weight_square_GC[bucket, column])
        error /= weight_J[best]
        margin = settings.guard_margin * self.ndcg_GC()[bucket, -1] + _SLACK
        is_certain = gain_J[best] > max(margin, settings.guard_certainty * error)
        return best if is_certain else None
