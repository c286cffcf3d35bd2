"""The text tuner as the teacher drives it; without one, every call is free and changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.lessons import TrainingJobSettings, newest_windows
from actors.stream_feed import CatalogGrowth, FreshPart
from recommender.model import Recommender
from recommender.scorer import Scorer
from recommender.text_encoder import load_bert
from recommender.text_tower import TextTower
from recommender.text_tuning import TextTuner, TextUpdate
from recommender.training import Learner
from recommender.windows import Windows


class TextLane:
    """BERT's part of the training loop, on the first worker only."""

    def __init__(self, tuner: TextTuner | None, num_compared: int) -> None:
        """`num_compared` events of a round, at most, tell whether tuning loses."""
        self._tuner = tuner
        self._num_compared = num_compared

    @classmethod
    def of(cls, settings: TrainingJobSettings) -> TextLane:
        """The lane of a job; loads BERT unless it is frozen.

        Raises:
            TextEncoderError: If the model cannot be tuned like that.
        """
        tuning, text = settings.text_tuning, settings.text
        tuner = None
        if tuning.mode != "frozen":
            bert = load_bert(text.encoder)
            name = f"{text.encoder}@{bert.sha256[:12]}/{text.max_tokens}"
            use_gpu = settings.loop.device != "cpu" and torch.cuda.is_available()
            device = "cuda" if use_gpu else "cpu"
            tower = TextTower(bert, text, tuning, seed=settings.seed, device=device)
            tuner = TextTuner(tower, tuning, name=name, seed=settings.seed)
        return cls(tuner, settings.loop.scored_per_round)

    def restart(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from the trainer state of a version."""
        if self._tuner is not None:
            self._tuner.load_state(state)

    def take(self, growth: CatalogGrowth) -> CatalogGrowth:
        """Note what the catalogue gained.

        After a restart the catalogue tells of every item again.

        Returns:
            The same without the rows whose text is the old one: their tuned vectors stay.
        """
        if self._tuner is None:
            return growth
        changed = self._tuner.change_items(
            growth.changed_rows, growth.changed_texts, growth.changed_VD
        )
        self._tuner.add_items(growth.new_texts, growth.new_VD)
        return dataclasses.replace(
            growth,
            changed_rows=growth.changed_rows[changed],
            changed_VD=growth.changed_VD[changed],
            changed_texts=tuple(np.array(growth.changed_texts, object)[changed]),
        )

    def begin(self, learner: Learner) -> None:
        """Tuning starts, or goes on after a restart, with this learner over the whole catalogue."""
        if self._tuner is not None:
            self._tuner.begin(learner)

    def step_reference(
        self,
        batch: Windows,
        popularity_MV: NDArray[np.float32],
        touched_V: NDArray[np.bool_],
        *,
        learning_rate: float,
    ) -> None:
        """After a step of the group on a batch, of that size."""
        if self._tuner is not None:
            self._tuner.step_reference(batch, popularity_MV, touched_V, learning_rate=learning_rate)

    def lost_to(self) -> Mapping[str, NDArray[Any]] | None:
        """What every learner must load now, because tuning has lost."""
        return None if self._tuner is None else self._tuner.lost_to()

    def compare(
        self, scorer: Scorer | None, parts: list[FreshPart], popularity_MV: NDArray[np.float32]
    ) -> None:
        """Judge the tower by fresh events that nothing has learned yet."""
        windows = newest_windows(parts, self._num_compared)
        if self._tuner is not None and scorer is not None and windows is not None:
            self._tuner.compare(scorer, windows, popularity_MV)

    def update(self, model: Recommender) -> TextUpdate | None:
        """After a backward pass: text vectors that change now.

        Raises:
            RuntimeError: If BERT's gradient is not finite. Only this worker knows, so unlike a
                fault of the group's own gradient it has to end the group, which starts again.
        """
        if self._tuner is None:
            return None
        self._tuner.gather(model)
        try:
            return self._tuner.next_update(model)
        except FloatingPointError as error:
            raise RuntimeError(f"the text tower cannot go on: {error}") from error

    def state(self) -> dict[str, NDArray[Any]]:
        """What belongs into the trainer state of a version."""
        return {} if self._tuner is None else self._tuner.state()

    def metrics(self) -> dict[str, float]:
        """Numbers for the manifest."""
        return {} if self._tuner is None else self._tuner.metrics()
