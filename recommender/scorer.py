"""One published version, ready to answer: the same net as `model.Recommender`, in plain numpy.

A replica thereby needs neither torch nor transformers, and for one user the forward pass is quicker
than either: only the last position is computed in the top layer.

Axes: B users, V items, D text dimensions, H model dimensions, M popularity half-lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recommender.model_inputs import latest_items, popularity_features, unit_text
from recommender.settings import ModelSettings
from recommender.user_tower import Linear, UserTower
from recommender.windows import Windows

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scorer:
    """Scores all items for users who are in no table: their history comes with the request.

    Immutable; a newer version is another Scorer. Arrays of the state are used as they are, shared
    memory included, and never written to.

    Attributes:
        item_vectors: Float32 [V, H].
        item_bias: Float32 [V].
        text_unit: Float32 [V, D], standardised text vectors of unit length.
    """

    item_vectors: Floats
    item_bias: Floats
    text_unit: Floats
    _text_mean_D: Floats
    _text_std_D: Floats
    _text_projection_HD: Floats
    _user_tower: UserTower
    _output: Linear
    _gate: Linear

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], settings: ModelSettings) -> Self:
        """A scorer of what `Recommender.export_state` gave.

        Raises:
            KeyError: If an array is missing.
        """
        return cls(
            item_vectors=state["item_vectors"],
            item_bias=state["item_bias"],
            text_unit=state["item_text"],
            _text_mean_D=state["text_mean"],
            _text_std_D=state["text_std"],
            _text_projection_HD=state["text_projection"],
            _user_tower=UserTower.from_state(state, settings),
            _output=Linear(state["output"].T, np.float32(0)),
            _gate=Linear(state["gate_weight"].T, state["gate_bias"]),
        )

    @property
    def num_items(self) -> int:
        return len(self.item_bias)

    def with_items(self, rows: NDArray[np.int64], text_vectors: Floats) -> Scorer:
        """This version over a catalogue that is newer than it.

        Args:
            rows: Catalogue rows, rising. Rows the version knows get the new text and keep what was
                learned of them; rows it does not know must follow on without a gap, and are scored
                by their text and popularity.
            text_vectors: Float32 [len(rows), D], as the encoder gives them.

        Raises:
            ValueError: If the new rows leave a gap.
        """
        is_new = rows >= self.num_items
        new_rows, old_rows = rows[is_new], rows[~is_new]
        num_items = self.num_items + len(new_rows)
        if not np.array_equal(new_rows, np.arange(self.num_items, num_items)):
            raise ValueError(f"rows {new_rows} do not follow on {self.num_items} known items")
        unit = unit_text(text_vectors, self._text_mean_D, self._text_std_D)
        text_unit = np.concatenate([self.text_unit, unit[is_new]])
        text_unit[old_rows] = unit[~is_new]
        projection_DH = self._text_projection_HD.T
        item_vectors = np.concatenate([self.item_vectors, unit[is_new] @ projection_DH])
        changes = unit[~is_new] - self.text_unit[old_rows]
        item_vectors[old_rows] += changes @ projection_DH
        return replace(
            self,
            item_vectors=item_vectors,
            item_bias=np.pad(self.item_bias, (0, len(new_rows))),
            text_unit=text_unit,
        )

    def net_scores(self, windows: Windows, popularity_MV: Floats) -> Floats:
        """Scores of all items, higher is better.

        Args:
            windows: Over catalogue rows below `num_items`; an empty one scores a new user.
            popularity_MV: Decayed counts as of now; missing columns count zero.

        Returns:
            Float32 [B, V].
        """
        tower = self._user_tower
        hidden_BH = tower.last_hidden(latest_items(windows, tower.window), self.item_vectors)
        scores_BV = self._output(hidden_BH) @ self.item_vectors.T
        scores_BV += self.item_bias
        gates_BM = np.logaddexp(self._gate(hidden_BH), np.float32(0))  # softplus
        scores_BV += gates_BM @ popularity_features(popularity_MV, self.num_items)
        return scores_BV
