"""Bursts of fake users that spoil what is learned, where push attacks want one item shown.

Axes: N events, V items, F fake users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recommender.datasets import Dataset
from recommender.poisoning import PoisonedStream, mingle

BurstKind = Literal["garbage", "clones", "crossed"]
BURST_KINDS: tuple[BurstKind, ...] = ("garbage", "clones", "crossed")


@dataclass(frozen=True)
class Burst:
    """Many fake users at once.

    Attributes:
        kind: `garbage` takes items at random. `clones` all take the same ones in the same order.
            `crossed` each takes what an honest user took, but in the place of every second item the
            one that a fixed permutation of the catalogue gives it: after what honest users know
            comes, always alike, what none of them would take.
        start: Honest event at which it begins.
        stop: Honest event by which it is over.
        rate: Fake events for each honest one meanwhile.
        events_each: Events of each fake user.
        seed: Of everything they do.
    """

    kind: BurstKind
    start: int
    stop: int
    rate: float = 1.0
    events_each: int = 40
    seed: int = 0


def burst(dataset: Dataset, attack: Burst | None) -> PoisonedStream:
    """The stream with a burst in it, users numbered in the order of first sight; None is without.

    Fake users come one after the other and stay for a quarter of the burst.
    """
    if attack is None:
        return PoisonedStream(dataset, np.zeros(len(dataset), np.bool_))
    rng = np.random.default_rng([attack.seed, 21])
    length = attack.stop - attack.start
    num_fakes = max(1, round(attack.rate * length / attack.events_each))
    arrivals_F = attack.start + np.linspace(0.0, 0.75, num_fakes) * length
    stays_FN = rng.uniform(0.0, 0.25 * length, (num_fakes, attack.events_each))
    places_FN = np.sort(arrivals_F[:, None] + stays_FN, axis=1)
    rows_FN = _rows(dataset, attack, num_fakes, rng)
    stream = mingle(dataset, f"{dataset.name}-{attack.kind}", rows_FN, places_FN)
    codes_N, first_N = pd.factorize(stream.dataset.users_N)
    renamed = replace(
        stream.dataset,
        users_N=codes_N.astype(np.int32),
        user_ids=tuple(stream.dataset.user_ids[user] for user in first_N.tolist()),
    )
    return PoisonedStream(renamed, stream.is_fake_N)


def _rows(
    dataset: Dataset, attack: Burst, num_fakes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """What each fake user takes, [F, events_each]; items that honest users had by then."""
    rows_N = dataset.rows_N[: attack.start]
    known = np.unique(rows_N)
    num = min(attack.events_each, len(known))
    if attack.kind == "garbage":
        rows = np.stack([rng.choice(known, num, replace=False) for _ in range(num_fakes)])
    elif attack.kind == "clones":
        rows = np.tile(rng.choice(known, num, replace=False), (num_fakes, 1))
    else:
        crossing_V = np.arange(len(dataset.items))
        crossing_V[known] = np.roll(rng.permutation(known), 1)
        rows = np.stack([_crossed(dataset, attack, crossing_V, rng) for _ in range(num_fakes)])
    return np.stack([np.resize(row, attack.events_each) for row in rows])


def _crossed(
    dataset: Dataset, attack: Burst, crossing_V: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """One honest user's items in order, every second one crossed, none twice."""
    users_N = dataset.users_N[: attack.start]
    user = users_N[rng.integers(len(users_N))]
    rows = dataset.rows_N[: attack.start][users_N == user].astype(np.int64)
    rows = np.resize(rows[-attack.events_each :], attack.events_each)
    rows[1::2] = crossing_V[rows[1::2]]
    return rows
