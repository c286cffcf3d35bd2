"""The world of the simulator: who likes what, what there is, and when that changes.

Users have tastes over topics, items belong to topics and say so in plain English, some items are
parts of a series, popularity is skewed, users and items arrive over time, and at `drift_at` all
tastes and popularities change at once.

Legend: U users, V items, K topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recommender.events import Item
from recommender.settings import Section
from recommender.simulator_topics import TOPICS, part_text, part_title, series_title


class SimulatorSettings(Section):
    """Size and nature of a simulated stream."""

    num_users: int = Field(default=500, ge=1)
    """Users in all, early and late ones."""
    num_items: int = Field(default=600, ge=24)
    """Items in all, early and late ones."""
    num_events: int = Field(default=20_000, ge=1)
    """Length of the stream."""
    num_topics: int = Field(default=12, ge=2, le=len(TOPICS))
    """Topics that items belong to."""
    num_sentences: int = Field(default=1, ge=1, le=5)
    """Sentences about its topic in an item's text."""
    drift_at: int | None = Field(default=None, ge=0)
    """First event after tastes and popularity have changed; None for a world that stays."""
    seed: int = Field(default=0, ge=0)
    """The same settings give the same stream, byte for byte."""
    taste_concentration: float = Field(default=0.1, gt=0.0, le=10.0)
    """Of the Dirichlet that tastes come from: small is one topic a user, large all of them."""
    popularity_exponent: float = Field(default=0.8, ge=0.0, le=3.0)
    """An item's weight within its topic is its rank to the power of minus this."""
    series_length: int = Field(default=4, ge=1, le=20)
    """Items of a topic that follow each other."""
    series_probability: float = Field(default=0.5, ge=0.0, lt=1.0)
    """How often a user takes the next part of a series right after a part."""
    initial_share: float = Field(default=0.4, gt=0.0, le=1.0)
    """Users and items that are there from the start; the others arrive evenly."""
    session_length: float = Field(default=8.0, ge=1.0)
    """Mean events of a session."""
    num_concurrent: int = Field(default=20, ge=1)
    """Sessions that run at the same time."""
    mean_gap_s: float = Field(default=10.0, gt=0.0)
    """Mean time between two events of the stream."""
    start_ms: int = Field(default=1_750_000_000_000, ge=0)
    """Time of the first event."""


@dataclass(frozen=True)
class Regime:
    """What holds between two drifts: tastes_UK (rows sum to 1) and popularity_V."""

    tastes_UK: NDArray[np.float64]
    popularity_V: NDArray[np.float64]


class GroundTruth:
    """The world a stream was made in: what an oracle would know.

    Attributes:
        items: The catalogue, in order of arrival, so that rows of new items come last.
        topics_V: Topic of each item.
        next_part_V: Row of the next part of the series, -1 after the last.
        item_arrivals_V: Event from which on an item is there; never falling.
        user_arrivals_U: Event from which on a user is there.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        rng = np.random.default_rng([settings.seed, 1])
        self.user_arrivals_U = _arrivals(settings.num_users, settings)
        self._make_items(rng)
        before = Regime(self._tastes(rng), self._popularity(rng))
        self._regimes = (before, self._drifted(before, rng))

    def regime(self, at_event: int) -> Regime:
        """Tastes and popularity as they are at an event of the stream."""
        drift_at = self.settings.drift_at
        return self._regimes[int(drift_at is not None and at_event >= drift_at)]

    def relevance(
        self, user_id: str, at_event: int, previous_row: int | None = None
    ) -> NDArray[np.float64]:
        """Probability that the user's next event is on each item, before leaving out seen ones.

        Args:
            user_id: As in the dataset.
            at_event: Index in the stream.
            previous_row: The item of the user's event before, if it is known.

        Returns:
            [V], sums to 1; 0 for items that have not arrived.
        """
        regime = self.regime(at_event)
        weights_V = np.where(self.item_arrivals_V <= at_event, regime.popularity_V, 0.0)
        sums_K = np.bincount(self.topics_V, weights_V, minlength=self.settings.num_topics)
        tastes_K = np.where(sums_K > 0, regime.tastes_UK[user_row(user_id)], 0.0)
        tastes_K /= tastes_K.sum()
        shares_K = np.divide(tastes_K, sums_K, out=np.zeros_like(tastes_K), where=sums_K > 0)
        relevance_V: NDArray[np.float64] = weights_V * shares_K[self.topics_V]
        if previous_row is not None and (next_part := self.next_part_V[previous_row]) >= 0:
            relevance_V *= 1.0 - self.settings.series_probability
            relevance_V[next_part] += self.settings.series_probability
        return relevance_V

    def _make_items(self, rng: np.random.Generator) -> None:
        """Deal series to topics in a random order, so that each topic has items at any time."""
        settings = self.settings
        starts = range(0, settings.num_items, settings.series_length)
        topic_of_series = np.resize(np.arange(settings.num_topics), len(starts))
        rng.shuffle(topic_of_series)
        num_series_K = [0] * settings.num_topics
        items: list[Item] = []
        topics: list[int] = []
        for start, topic_index in zip(starts, topic_of_series.tolist(), strict=True):
            topic = TOPICS[topic_index]
            title = series_title(topic, num_series_K[topic_index])
            num_series_K[topic_index] += 1
            for part in range(min(settings.series_length, settings.num_items - start)):
                items.append(
                    Item(
                        item_id=f"item-{start + part:05d}",
                        text=part_text(topic, title, part, settings.num_sentences),
                        title=part_title(title, part),
                        categories=(topic.name,),
                    )
                )
                topics.append(topic_index)
        rows_V = np.arange(len(items))
        self.items = tuple(items)
        self.topics_V = np.array(topics)
        is_last_V = (rows_V % settings.series_length == settings.series_length - 1) | (
            rows_V == len(items) - 1
        )
        self.next_part_V = np.where(is_last_V, -1, rows_V + 1)
        # All parts of a series arrive with its first one.
        first_V = rows_V - rows_V % settings.series_length
        self.item_arrivals_V = _arrivals(settings.num_items, settings)[first_V]

    def _tastes(self, rng: np.random.Generator) -> NDArray[np.float64]:
        concentration_K = np.full(self.settings.num_topics, self.settings.taste_concentration)
        tastes_UK = rng.dirichlet(concentration_K, self.settings.num_users)
        tastes_UK *= 0.97
        tastes_UK += 0.03 / self.settings.num_topics  # nobody rules a topic out altogether
        return tastes_UK

    def _popularity(self, rng: np.random.Generator) -> NDArray[np.float64]:
        ranks_V = rng.permutation(self.settings.num_items) + 1
        popularity_V: NDArray[np.float64] = np.power(ranks_V, -self.settings.popularity_exponent)
        return popularity_V

    def _drifted(self, before: Regime, rng: np.random.Generator) -> Regime:
        """Each topic's fans move on to another topic, and other items become popular."""
        order_K = rng.permutation(self.settings.num_topics)
        moved_K = np.empty_like(order_K)
        moved_K[order_K] = np.roll(order_K, 1)  # one cycle: no topic stays where it was
        return Regime(before.tastes_UK[:, moved_K], self._popularity(rng))


def user_id(user: int) -> str:
    """Id of the user in a row of the tables of the ground truth."""
    return f"user-{user:05d}"


def user_row(user_id: str) -> int:
    """Row of a user in the tables of the ground truth."""
    return int(user_id.removeprefix("user-"))


def _arrivals(count: int, settings: SimulatorSettings) -> NDArray[np.int64]:
    """Events at which each arrives: a share at the start, the others evenly, in order."""
    num_initial = max(1, round(count * settings.initial_share))
    late = np.linspace(0, settings.num_events, count - num_initial + 1, endpoint=False)[1:]
    return np.concatenate([np.zeros(num_initial, np.int64), late.astype(np.int64)])
