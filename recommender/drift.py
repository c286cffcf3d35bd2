"""When a metric has fallen for certain, and how much faster to learn while it recovers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.settings import TrainingSettings


@dataclass
class PageHinkley:
    """Notices that the mean of a stream of numbers has fallen.

    The sum of how far each value lies below the mean so far, less `tolerance`, is compared with its
    lowest point; both are in standard deviations of the stream, so that one threshold serves every
    metric. Of a stream that stays as it is, an alarm comes about once in
    exp(2 * tolerance * threshold) / (2 * tolerance**2) values; after a fall of f deviations it
    comes after about threshold / (f - tolerance) of them.

    A library (river) has it without the scaling and with much else, so it is written out here.

    Source: Page 1954, doi:10.1093/biomet/41.1-2.100; Hinkley 1971, doi:10.1093/biomet/58.3.509.

    Args:
        threshold: How far above its lowest point the sum must rise, in standard deviations.
        tolerance: Fall that is put up with, in standard deviations.
        min_values: Values that only tell the mean and the deviation.
    """

    threshold: float = 50.0
    tolerance: float = 0.1
    min_values: int = 500
    num_values: int = 0
    num_since_lowest: int = 0
    mean: float = 0.0
    _squares: float = 0.0
    _excess: float = 0.0

    def observe(self, value: float) -> bool:
        """Take in the next value; whether the mean has fallen."""
        deviation = self._deviation()
        if self.num_values >= self.min_values and deviation > 0:
            self._excess += (self.mean - value) / deviation - self.tolerance
            self.num_since_lowest += 1
        if self._excess <= 0:
            # The sum less its lowest point, which cannot be negative: the same test, in one number.
            self._excess, self.num_since_lowest = 0.0, 0
        self.num_values += 1
        step = value - self.mean
        self.mean += step / self.num_values
        self._squares += step * (value - self.mean)
        return self._excess > self.threshold

    def reset(self) -> None:
        """Forget the stream: what comes next is the new normal."""
        self.num_values = self.num_since_lowest = 0
        self.mean = self._squares = self._excess = 0.0

    def state(self) -> NDArray[np.float64]:
        """What was taken in, for `load_state` of one with the same settings."""
        counts = self.num_values, self.num_since_lowest
        return np.array([*counts, self.mean, self._squares, self._excess], np.float64)

    def load_state(self, state: NDArray[np.float64]) -> None:
        """Go on as the one whose `state` this is."""
        self.num_values, self.num_since_lowest = int(state[0]), int(state[1])
        self.mean, self._squares, self._excess = state[2:].tolist()

    def _deviation(self) -> float:
        return math.sqrt(self._squares / self.num_values) if self.num_values else 0.0


@dataclass(frozen=True)
class Pace:
    """How hard to learn in a round.

    Attributes:
        learning_rate: Step size of the optimiser.
        fresh_windows: How many windows of a batch end at the newest events.
        replay_half_life: Half-life, in events, of the age of the replayed ones under `recency`.
    """

    learning_rate: float
    fresh_windows: int
    replay_half_life: float

    @classmethod
    def of(cls, training: TrainingSettings) -> Pace:
        """The pace that the settings give."""
        return cls(training.learning_rate, training.fresh_windows, training.replay_half_life)


@dataclass
class Urgency:
    """Raises the pace after a drift and lets it come back, never outside its bounds.

    Attributes:
        level: In [0, 1]; 1 right after an alarm.
        half_life: Events after which half of it is left.
        max_rate_factor: What the learning rate is multiplied by at level 1.
        max_fresh_share: Share of fresh windows in a batch at level 1.
        min_replay_half_life: Half-life of the age of replayed events at level 1.
    """

    half_life: float
    max_rate_factor: float
    max_fresh_share: float
    min_replay_half_life: float
    level: float = 0.0

    def alarm(self) -> None:
        """The world has changed."""
        self.level = 1.0

    def passed(self, num_events: int) -> None:
        """So many events were learned since."""
        self.level *= 0.5 ** (num_events / self.half_life)

    def pace(self, training: TrainingSettings) -> Pace:
        """The pace at this level; that of the settings at level 0."""
        fresh = training.fresh_windows
        shorter = min(1.0, self.min_replay_half_life / training.replay_half_life)
        most_fresh = max(fresh, round(self.max_fresh_share * training.batch_windows))
        return Pace(
            learning_rate=training.learning_rate * (1 + self.level * (self.max_rate_factor - 1)),
            fresh_windows=round(fresh + self.level * (most_fresh - fresh)),
            replay_half_life=training.replay_half_life * shorter**self.level,
        )
