"""The user tower of `model.Recommender` for serving: a BERT decoder in plain numpy.

It gives the state after the last item only, so the top layer computes one position a user. It
agrees with `transformers.BertModel` to float32 rounding; a test holds the two together.

Axes: B users, S positions (BOS and the latest items), H model dimensions, A attention heads,
P dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recommender.settings import ModelSettings
from recommender.windows import Windows

Floats = NDArray[np.float32]

_NORM_EPSILON = 1e-12  # layer_norm_eps of BertConfig
_MASKED = np.float32(-1e9)


@dataclass(frozen=True)
class Linear:
    """An affine map of the last axis: `weight` is [in, out], `bias` [out] or a scalar."""

    weight: Floats
    bias: Floats | np.float32

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], name: str) -> Self:
        return cls(state[f"{name}.weight"].T, state[f"{name}.bias"])

    def __call__(self, x: Floats) -> Floats:
        # Two axes for numpy, so that a batch is one BLAS call and not one a user.
        y: Floats = x.reshape(-1, x.shape[-1]) @ self.weight
        y += self.bias
        return y.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation of the last axis, then `scale` and `shift`, each of length H."""

    scale: Floats
    shift: Floats

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], name: str) -> Self:
        return cls(state[f"{name}.weight"], state[f"{name}.bias"])

    def __call__(self, x: Floats) -> Floats:
        dim = x.shape[-1]
        centred: Floats = x - x.sum(axis=-1, keepdims=True) / dim
        variance = np.einsum("...h,...h->...", centred, centred)[..., None] / dim
        centred /= np.sqrt(variance + _NORM_EPSILON)
        centred *= self.scale
        centred += self.shift
        return centred


@dataclass(frozen=True)
class Layer:
    """One layer of a BERT decoder."""

    num_heads: int
    query: Linear
    key: Linear
    value: Linear
    mix: Linear
    mix_norm: LayerNorm
    widen: Linear
    narrow: Linear
    norm: LayerNorm

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], name: str, num_heads: int) -> Self:
        return cls(
            num_heads=num_heads,
            query=Linear.from_state(state, f"{name}.attention.self.query"),
            key=Linear.from_state(state, f"{name}.attention.self.key"),
            value=Linear.from_state(state, f"{name}.attention.self.value"),
            mix=Linear.from_state(state, f"{name}.attention.output.dense"),
            mix_norm=LayerNorm.from_state(state, f"{name}.attention.output.LayerNorm"),
            widen=Linear.from_state(state, f"{name}.intermediate.dense"),
            narrow=Linear.from_state(state, f"{name}.output.dense"),
            norm=LayerNorm.from_state(state, f"{name}.output.LayerNorm"),
        )

    def __call__(self, query_BQH: Floats, context_BSH: Floats, mask: Floats) -> Floats:
        """States of Q positions that look at S positions; `mask` is added to [B, A, Q, S]."""
        attended_BQH = self._attend(query_BQH, context_BSH, mask)
        mixed_BQH = self.mix_norm(self.mix(attended_BQH) + query_BQH)
        return self.norm(self.narrow(_gelu(self.widen(mixed_BQH))) + mixed_BQH)

    def _attend(self, query_BQH: Floats, context_BSH: Floats, mask: Floats) -> Floats:
        query_BAQP = self._heads(self.query(query_BQH))
        key_BASP = self._heads(self.key(context_BSH))
        value_BASP = self._heads(self.value(context_BSH))
        head_size = query_BAQP.shape[-1]
        logits_BAQS = query_BAQP @ key_BASP.swapaxes(2, 3)
        logits_BAQS *= head_size**-0.5
        logits_BAQS += mask
        logits_BAQS -= logits_BAQS.max(axis=-1, keepdims=True)
        weights_BAQS = np.exp(logits_BAQS, out=logits_BAQS)
        weights_BAQS /= weights_BAQS.sum(axis=-1, keepdims=True)
        attended_BAQP: Floats = weights_BAQS @ value_BASP
        return attended_BAQP.swapaxes(1, 2).reshape(query_BQH.shape)

    def _heads(self, x_BSH: Floats) -> Floats:
        return x_BSH.reshape(*x_BSH.shape[:2], self.num_heads, -1).swapaxes(1, 2)


@dataclass(frozen=True)
class UserTower:
    """BOS and a user's latest items in, the state after the last of them out."""

    window: int
    bos_H: Floats
    feedback_FH: Floats
    gaps_GH: Floats
    positions_SH: Floats
    norm: LayerNorm
    layers: tuple[Layer, ...]

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], settings: ModelSettings) -> Self:
        embeddings = "tower.embeddings"
        token_type_1H = state[f"{embeddings}.token_type_embeddings.weight"]
        return cls(
            window=settings.window,
            bos_H=state["bos"],
            feedback_FH=state["feedback"],
            gaps_GH=state["gaps"],
            positions_SH=state[f"{embeddings}.position_embeddings.weight"] + token_type_1H,
            norm=LayerNorm.from_state(state, f"{embeddings}.LayerNorm"),
            layers=tuple(
                Layer.from_state(state, f"tower.encoder.layer.{i}", settings.num_heads)
                for i in range(settings.num_layers)
            ),
        )

    def last_hidden(self, windows: Windows, item_vectors_VH: Floats) -> Floats:
        """State after each row's last used item, or after BOS; [B, H]. Rows fit the window."""
        hidden_BSH = self.norm(self._embed(windows, item_vectors_VH))
        num_rows, num_positions, dim = hidden_BSH.shape
        later_SS = np.triu(np.full((num_positions, num_positions), _MASKED), k=1)
        for layer in self.layers[:-1]:
            hidden_BSH = layer(hidden_BSH, hidden_BSH, later_SS)
        last_B = windows.lengths_B
        last_B1H = hidden_BSH[np.arange(num_rows), last_B][:, None]
        later_B11S = later_SS[last_B][:, None, None]
        return self.layers[-1](last_B1H, hidden_BSH, later_B11S).reshape(num_rows, dim)

    def _embed(self, windows: Windows, item_vectors_VH: Floats) -> Floats:
        num_rows, num_columns = windows.items_BT.shape
        embeds_BSH = np.empty((num_rows, num_columns + 1, len(self.bos_H)), np.float32)
        embeds_BSH[:, 0] = self.bos_H
        # Padding reads the last item's vector, but no used position looks at what lies after it.
        embeds_BSH[:, 1:] = item_vectors_VH[windows.items_BT]
        embeds_BSH[:, 1:] += self.feedback_FH[windows.feedback_BT]
        embeds_BSH[:, 1:] += self.gaps_GH[windows.gaps_BT]
        embeds_BSH += self.positions_SH[: num_columns + 1]
        return embeds_BSH


def _gelu(x: Floats) -> Floats:
    """The tanh form, `gelu_pytorch_tanh` of transformers."""
    inner = x * x
    inner *= 0.044715
    inner += 1.0
    inner *= x
    inner *= (2 / np.pi) ** 0.5
    np.tanh(inner, out=inner)
    inner += 1.0
    inner *= x
    inner *= 0.5
    return inner
