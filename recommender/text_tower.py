"""A pretrained BERT cut in two: layers that stay as they are, and the layers above them that train.

Axes: B texts, T tokens, D size of a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recommender.activation_cache import TokenStates
from recommender.settings import TextSettings, TextTuningSettings
from recommender.text_encoder import PretrainedBert, TextEncoderError, mean_pool

_LORA_TARGETS = ("query", "value", "dense")
_LORA_SCALE = 2.0  # alpha over rank


class TextTower(nn.Module):
    """Reads texts like `TextEncoder`, with the upper part trainable.

    Before any step it gives the encoder's own vectors. It is always in evaluation mode: a text has
    one vector, also while the tower learns. What `named_parameters` says needs a gradient is all
    that ever changes.

    Args:
        bert: Taken over and changed; load another one for anything else.
        text: How texts are read.
        settings: What trains: `lora` low-rank additions to the top layers, `top_layers` these
            layers themselves, `full` all layers and the embeddings.
        seed: Of the first low-rank matrices; the global generator is left as it was.
        device: A torch device.

    Raises:
        TextEncoderError: If the model is no BERT, has too few layers, or `peft` is missing.
    """

    def __init__(
        self,
        bert: PretrainedBert,
        text: TextSettings,
        settings: TextTuningSettings,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        config = bert.model.config
        if config.model_type != "bert" or config.num_hidden_layers < settings.num_layers:
            raise TextEncoderError(
                f"text_tuning.mode {settings.mode!r} with {settings.num_layers} layers needs a "
                f"BERT; {text.encoder!r} is a {config.model_type!r} of {config.num_hidden_layers}"
            )
        self.device = torch.device(device)
        self.dim = int(config.hidden_size)
        self._config = config
        self._tokenizer = bert.tokenizer
        self._text = text
        self._is_full = settings.mode == "full"
        num_top = config.num_hidden_layers if self._is_full else settings.num_layers
        layers = list(bert.model.encoder.layer)
        self.embeddings = bert.model.embeddings.requires_grad_(self._is_full)
        self.below = nn.ModuleList(layers[: len(layers) - num_top]).requires_grad_(False)
        self.top = nn.ModuleList(layers[len(layers) - num_top :])
        if settings.mode == "lora":
            _add_lora(self.top, settings.lora_rank, seed)
        self.to(self.device).eval()
        self._untrained = {name: value.detach().clone() for name, value in self.trainable()}

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes."""
        return ((n, p) for n, p in self.named_parameters() if p.requires_grad)

    def reset(self) -> None:
        """Be the pretrained tower again."""
        self.load(self._untrained)

    def load(self, values: dict[str, Tensor]) -> None:
        """Take over values of the trainable parameters.

        Raises:
            KeyError: If one is missing.
        """
        with torch.no_grad():
            for name, parameter in self.trainable():
                parameter.copy_(values[name])

    def states(self, texts: Sequence[str]) -> list[TokenStates]:
        """What the frozen part makes of each text: float32 [T, D]; int64 ids [T] if all trains."""
        tokens_B = self._tokenizer(list(texts), truncation=True, max_length=self._text.max_tokens)[
            "input_ids"
        ]
        ids_B = [np.array(tokens, np.int64) for tokens in tokens_B]
        if self._is_full:
            return ids_B
        states: list[TokenStates] = [np.zeros(0)] * len(ids_B)
        for batch_B in _batches(ids_B, self._text.batch_size):
            ids_BT, attention_BT = self._padded([ids_B[i] for i in batch_B])
            with torch.no_grad():
                hidden_BTD = self._run(self.below, self.embeddings(ids_BT), attention_BT)
            for i, hidden_TD in zip(batch_B, hidden_BTD.cpu().numpy(), strict=True):
                states[i] = hidden_TD[: len(ids_B[i])].copy()
        return states

    def vectors(self, states: Sequence[TokenStates]) -> Tensor:
        """Mean-pooled, unstandardised vectors of texts, with gradient; [B, D]."""
        padded, attention_BT = self._padded(states)
        hidden_BTD = self.embeddings(padded) if self._is_full else padded
        return mean_pool(self._run(self.top, hidden_BTD, attention_BT), attention_BT)

    def encode(self, states: Sequence[TokenStates]) -> NDArray[np.float32]:
        """The same without gradient, in batches."""
        vectors_BD = np.zeros((len(states), self.dim), np.float32)
        with torch.no_grad():
            for batch_B in _batches(states, self._text.batch_size):
                vectors_BD[batch_B] = self.vectors([states[i] for i in batch_B]).cpu().numpy()
        return vectors_BD

    def _run(self, layers: nn.ModuleList, hidden_BTD: Tensor, attention_BT: Tensor) -> Tensor:
        from transformers.masking_utils import create_bidirectional_mask

        mask = create_bidirectional_mask(
            config=self._config, inputs_embeds=hidden_BTD, attention_mask=attention_BT
        )
        for layer in layers:
            hidden_BTD = layer(hidden_BTD, mask)
        return hidden_BTD

    def _padded(self, rows: Sequence[TokenStates]) -> tuple[Tensor, Tensor]:
        """Right-padded states or ids of some texts, and 1 where there is a token."""
        lengths_B = np.array([len(row) for row in rows])
        padded = np.zeros((len(rows), lengths_B.max(), *rows[0].shape[1:]), rows[0].dtype)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        attention_BT = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(attention_BT).to(
            self.device
        )


def _add_lora(top: nn.ModuleList, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise TextEncoderError(
            "text_tuning.mode 'lora' needs peft: pip install 'rheos[text]'"
        ) from error
    config = LoraConfig(
        r=rank, lora_alpha=round(_LORA_SCALE * rank), target_modules=list(_LORA_TARGETS)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, top)
    for name, parameter in top.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _batches(rows: Sequence[TokenStates], size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, so that little is padded."""
    order: list[Any] = np.argsort([len(row) for row in rows], kind="stable").tolist()
    for start in range(0, len(order), size):
        yield order[start : start + size]
