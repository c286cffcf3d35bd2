"""The two towers: what an item is, what a user wants next, and how well the two meet.

Axes: B users, S positions a user (BOS and up to `window` items), N positions that are trained,
V items, C candidates, D text dimensions, H model dimensions, M popularity half-lives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from recommender.adversarial import Adversary
from recommender.events import NUM_FEEDBACK, NUM_GAPS
from recommender.model_inputs import latest_items, popularity_features, text_moments, unit_text
from recommender.ranking_loss import Targets, masked_softmax_loss
from recommender.settings import ModelSettings
from recommender.windows import Windows

_EMBEDDING_STD = 0.02
_PROJECTION_STD = 0.05
_GATE_START = 0.25


@dataclass(frozen=True)
class TrainingBatch:
    """One step's windows and targets, on the model's device.

    Attributes:
        items_BS: int64 item rows before the last column, PAD where unused.
        feedback_BS: int64, like `Windows.feedback_BT`.
        gaps_BS: int64, like `Windows.gaps_BT`.
        popularity_MV: float32, see `popularity_features`.
        targets: What to predict, and where.
        adversary: Perturbs the item vectors; None trains on them as they are.
    """

    items_BS: Tensor
    feedback_BS: Tensor
    gaps_BS: Tensor
    popularity_MV: Tensor
    targets: Targets
    adversary: Adversary | None = None


class Recommender(nn.Module):
    """Scores every item of the catalogue for a user, from texts, history and popularity.

    Untrained, it ranks by popularity: the output matrix, residuals, biases and gate weights are
    zero and every popularity gate stands at 1/4. So it can be served, and a new item be found, from
    the first event on. How texts are standardised is fixed by the catalogue it is built on.

    Args:
        settings: Shape of the towers.
        text_VD: Float32 text vectors as the encoder gives them, one row an item.
        seed: Of the first weights; the global generator is left as it was.
    """

    text_mean_D: Tensor
    text_std_D: Tensor
    text_VD: Tensor

    def __init__(
        self, settings: ModelSettings, text_VD: NDArray[np.float32], *, seed: int = 0
    ) -> None:
        super().__init__()
        self.settings = settings
        mean_D, std_D = text_moments(text_VD)
        self.register_buffer("text_mean_D", torch.from_numpy(mean_D))
        self.register_buffer("text_std_D", torch.from_numpy(std_D))
        self.register_buffer("text_VD", torch.from_numpy(unit_text(text_VD, mean_D, std_D)))
        num_items, text_dim = text_VD.shape
        dim, num_gates = settings.dim, len(settings.half_lives)

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.projection = nn.Linear(text_dim, dim, bias=False)
            nn.init.normal_(self.projection.weight, std=_PROJECTION_STD)
            self.residual_VH = nn.Parameter(torch.zeros(num_items, dim))
            self.bias_V = nn.Parameter(torch.zeros(num_items))

            self.bos_H = nn.Parameter(torch.randn(dim) * _EMBEDDING_STD)
            self.feedback = nn.Parameter(torch.randn(NUM_FEEDBACK, dim) * _EMBEDDING_STD)
            self.gaps = nn.Parameter(torch.randn(NUM_GAPS, dim) * _EMBEDDING_STD)
            self.tower = _user_tower(settings)

            self.output = nn.Linear(dim, dim, bias=False)
            nn.init.zeros_(self.output.weight)
            self.gate = nn.Linear(dim, num_gates)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, math.log(math.expm1(_GATE_START)))

    @property
    def num_items(self) -> int:
        return self.text_VD.shape[0]

    def item_matrix(self) -> Tensor:
        """Vectors of all items, [V, H]: projected text plus what was learned of each item."""
        projected_VH: Tensor = self.projection(self.text_VD)
        return projected_VH + self.residual_VH

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Loss of a batch. It is `forward` so that DistributedDataParallel can wrap it."""
        items_VH = self.item_matrix()
        if batch.adversary is None:
            return self._loss(items_VH, batch)
        return batch.adversary.loss(lambda shifted_VH: self._loss(shifted_VH, batch), items_VH)

    def queries_and_keys(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """What is asked at each trained position, [N, K], and what every item answers, [V, K]."""
        return self._queries_and_keys(self.item_matrix(), batch)

    def _loss(self, items_VH: Tensor, batch: TrainingBatch) -> Tensor:
        return masked_softmax_loss(*self._queries_and_keys(items_VH, batch), batch.targets)

    def _queries_and_keys(self, items_VH: Tensor, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        hidden_BSH = self._hidden(items_VH, batch.items_BS, batch.feedback_BS, batch.gaps_BS)
        targets = batch.targets
        queries_NK = self._queries(hidden_BSH[targets.rows_N, targets.positions_N])
        return queries_NK, self._keys(items_VH, batch.popularity_MV)

    def user_vectors(self, windows: Windows) -> Tensor:
        """Hidden state after the last used item of each window, or after BOS; [B, H]."""
        device = self.bias_V.device
        inputs = latest_items(windows, self.settings.window)
        items_BS, feedback_BS, gaps_BS = (
            torch.from_numpy(array.astype(np.int64)).to(device)
            for array in (inputs.items_BT, inputs.feedback_BT, inputs.gaps_BT)
        )
        hidden_BSH = self._hidden(self.item_matrix(), items_BS, feedback_BS, gaps_BS)
        last_B = torch.from_numpy(inputs.lengths_B.astype(np.int64)).to(device)
        return hidden_BSH[torch.arange(len(windows), device=device), last_B]

    def scores(self, windows: Windows, popularity_MV: NDArray[np.float32]) -> Tensor:
        """Scores of all items, [B, V]: the plain form of what `Scorer` answers with."""
        features_MV = torch.from_numpy(popularity_features(popularity_MV, self.num_items))
        keys_VK = self._keys(self.item_matrix(), features_MV.to(self.bias_V.device))
        return self._queries(self.user_vectors(windows)) @ keys_VK.T

    def grow(self, text_VD: NDArray[np.float32]) -> None:
        """Append items with nothing learned yet. Replaces parameters: see `Learner.grow`."""
        first = self.num_items
        self.resize(first + len(text_VD))
        self.text_VD[first:] = self._unit_text(text_VD)

    def resize(self, num_items: int) -> None:
        """Keep the first `num_items` rows, or append rows of zeros until there are that many."""
        new = num_items - self.num_items
        self.text_VD = F.pad(self.text_VD, (0, 0, 0, new))
        self.residual_VH = nn.Parameter(F.pad(self.residual_VH.detach(), (0, 0, 0, new)))
        self.bias_V = nn.Parameter(F.pad(self.bias_V.detach(), (0, new)))

    def replace_text(self, rows: NDArray[np.int64], text_VD: NDArray[np.float32]) -> None:
        """Give items whose text changed their new text vectors; what was learned of them stays."""
        text = self.text_VD.clone()
        text[torch.from_numpy(rows).to(text.device)] = self._unit_text(text_VD)
        self.text_VD = text

    def export_state(self) -> dict[str, NDArray[Any]]:
        """The serving form: float32 arrays that `Scorer.from_state` takes."""
        with torch.inference_mode():
            tensors = {
                "item_vectors": self.item_matrix(),
                "item_bias": self.bias_V,
                "item_text": self.text_VD,
                "text_mean": self.text_mean_D,
                "text_std": self.text_std_D,
                "text_projection": self.projection.weight,
                "bos": self.bos_H,
                "feedback": self.feedback,
                "gaps": self.gaps,
                "output": self.output.weight,
                "gate_weight": self.gate.weight,
                "gate_bias": self.gate.bias,
                **{f"tower.{name}": value for name, value in self.tower.state_dict().items()},
            }
            return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}

    def _unit_text(self, text_VD: NDArray[np.float32]) -> Tensor:
        mean_D, std_D = self.text_mean_D.cpu().numpy(), self.text_std_D.cpu().numpy()
        return torch.from_numpy(unit_text(text_VD, mean_D, std_D)).to(self.text_VD.device)

    def _hidden(
        self, items_VH: Tensor, items_BS: Tensor, feedback_BS: Tensor, gaps_BS: Tensor
    ) -> Tensor:
        # Padding reads the last item row, but causal attention keeps it from any used position.
        inputs_BSH = items_VH[items_BS] + self.feedback[feedback_BS] + self.gaps[gaps_BS]
        bos_B1H = self.bos_H.expand(len(items_BS), 1, -1)
        embeds_BSH = torch.cat([bos_B1H, inputs_BSH], dim=1)
        hidden: Tensor = self.tower(inputs_embeds=embeds_BSH, use_cache=False).last_hidden_state
        return hidden

    def _queries(self, hidden_NH: Tensor) -> Tensor:
        """[N, K = H + 1 + M], so that one product with `_keys` gives the whole score."""
        gates_NM = F.softplus(self.gate(hidden_NH))
        ones_N1 = gates_NM.new_ones(len(hidden_NH), 1)
        return torch.cat([self.output(hidden_NH), ones_N1, gates_NM], dim=1)

    def _keys(self, items_VH: Tensor, popularity_MV: Tensor) -> Tensor:
        return torch.cat([items_VH, self.bias_V[:, None], popularity_MV.T], dim=1)


def _user_tower(settings: ModelSettings) -> BertModel:
    config = BertConfig(
        vocab_size=1,
        type_vocab_size=1,
        hidden_size=settings.dim,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        intermediate_size=settings.intermediate,
        # The tanh form needs no erf, which numpy lacks: the scorer then needs no torch.
        hidden_act="gelu_pytorch_tanh",
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=settings.window + 1,
        is_decoder=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    tower = BertModel(config, add_pooling_layer=False)
    # Inputs come as embeddings; a parameter without gradient would stop DistributedDataParallel.
    tower.embeddings.word_embeddings = None
    return tower
