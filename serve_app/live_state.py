"""What a replica answers from, and how each kind of news changes it.

Every method here runs between two awaits of the replica's one event loop, so no request sees half
of a change. The model is one reference that is replaced; the counters and the catalogue, which
change at every event, are updated in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.messages import CatalogChanges, CounterSnapshot, CounterUpdates, Head, Watermark
from actors.payload import BLEND, FACTORS, MODEL
from recommender.blend import Blend
from recommender.counters import Counters
from recommender.implicit_factors import ItemFactors
from recommender.model_inputs import text_moments, unit_text
from recommender.named_arrays import under
from recommender.scorer import Scorer
from recommender.settings import BlendSettings, ModelSettings
from serve_app.catalog_view import CatalogView
from serve_app.staleness import StalenessClock


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One published version, ready to answer; with the factors that its blend was learned with."""

    head: Head
    scorer: Scorer
    blend: Blend
    factors: ItemFactors | None = None


class CatalogBehind(Exception):
    """News speaks of rows that this replica's catalogue does not have yet; try again later."""


class LiveState:
    """Model, counters and catalogue of one replica, always of one size."""

    def __init__(
        self, model_settings: ModelSettings, blend_settings: BlendSettings, num_shards: int
    ) -> None:
        self.catalog = CatalogView()
        self.counters = Counters(model_settings.half_lives)
        self.counters_boot_id = ""
        self.counters_sequence = 0
        self.counters_through: Watermark = (-1,) * num_shards
        self.model: ServedModel | None = None
        self.staleness = StalenessClock()
        self._untrained_text: tuple[int, NDArray[np.float32]] | None = None
        self._num_shards = num_shards
        self._model_settings = model_settings
        self._first_blend = Blend(blend_settings)
        self._blend_settings = blend_settings

    @property
    def blend(self) -> Blend:
        """The served version's blend; untrained before there is a version."""
        return self._first_blend if self.model is None else self.model.blend

    @property
    def model_version(self) -> int:
        """0 before the first version."""
        return 0 if self.model is None else self.model.head.manifest.version

    @property
    def head_sequence(self) -> int:
        return 0 if self.model is None else self.model.head.sequence

    @property
    def trained_through(self) -> Watermark:
        if self.model is None:
            return (-1,) * self._num_shards
        return self.model.head.manifest.trained_through

    @property
    def text_unit_VD(self) -> NDArray[np.float32]:
        """Standardised text vectors of unit length, also before there is a version."""
        if self.model is not None:
            return self.model.scorer.text_unit
        revision = self.catalog.revision
        if self._untrained_text is None or self._untrained_text[0] != revision:
            text_VD = self.catalog.vectors_VD
            self._untrained_text = revision, unit_text(text_VD, *text_moments(text_VD))
        return self._untrained_text[1]

    def staleness_ms(self, now_ms: int) -> int:
        """Age of the oldest known event that the served version has not learned from."""
        return self.staleness.staleness_ms(self.trained_through, now_ms)

    def build_model(self, head: Head, payload: Mapping[str, NDArray[Any]]) -> ServedModel:
        """Make a version ready to answer. Changes nothing here, so it may run in a thread.

        Raises:
            ValueError: If a number of it is not finite: it would rank nothing.
        """
        for name, array in payload.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"version {head.manifest.version}: {name} is not finite")
        settings = head.manifest.settings.get("model")
        factors = under(FACTORS, payload)
        return ServedModel(
            head=head,
            scorer=Scorer.from_state(
                under(MODEL, payload),
                self._model_settings
                if settings is None
                else ModelSettings.model_validate(settings),
            ),
            blend=Blend.from_state(under(BLEND, payload), self._blend_settings),
            factors=ItemFactors.from_state(factors) if factors else None,
        )

    def apply_model(self, model: ServedModel) -> None:
        """Serve this version from the next request on.

        Raises:
            CatalogBehind: If the version knows items that the catalogue here does not.
        """
        self._require_rows(model.scorer.num_items)
        self.model = self._with_all_items(model)

    def apply_catalog(self, changes: CatalogChanges) -> None:
        """Take over new items; they can be recommended from the next request on."""
        self.catalog.apply(changes)
        self.counters.grow(self.catalog.num_items)
        if self.model is not None and len(changes.rows):
            scorer = self.model.scorer.with_items(changes.rows, changes.vectors)
            self.model = replace(self.model, scorer=scorer)

    def apply_snapshot(self, snapshot: CounterSnapshot) -> None:
        """Start over with counters as a whole.

        Raises:
            CatalogBehind: If they count items that the catalogue here does not have.
        """
        counters = Counters.from_state(snapshot.state)
        self._require_rows(counters.num_items)
        counters.grow(self.catalog.num_items)
        self.counters = counters
        self.counters_boot_id = snapshot.boot_id
        self._note(snapshot)

    def apply_updates(self, updates: CounterUpdates) -> None:
        """Count more events.

        Raises:
            CatalogBehind: If they are of items that the catalogue here does not have.
        """
        if len(updates.rows_N):
            highest = max(int(updates.rows_N.max()), int(updates.previous_NP.max(initial=-1)))
            self._require_rows(highest + 1)
            self.counters.update(updates.rows_N, updates.previous_NP)
        self._note(updates)

    def _note(self, news: CounterSnapshot | CounterUpdates) -> None:
        self.counters_sequence = news.sequence
        self.counters_through = news.through
        self.staleness.mark(news.through, news.acknowledged_ms)

    def _require_rows(self, num_rows: int) -> None:
        if num_rows > self.catalog.num_items:
            raise CatalogBehind(f"{num_rows} rows needed, {self.catalog.num_items} known")

    def _with_all_items(self, model: ServedModel) -> ServedModel:
        """The same version that also ranks items which came after it, by their text."""
        known = model.scorer.num_items
        if known == self.catalog.num_items:
            return model
        rows = np.arange(known, self.catalog.num_items)
        scorer = model.scorer.with_items(rows, self.catalog.vectors_VD[known:])
        return replace(model, scorer=scorer)
