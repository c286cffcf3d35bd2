"""A BERT of two small layers with random weights, and a tokenizer that counts letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BertConfig, BertModel

from recommender.text_encoder import PretrainedBert

DIM = 16


class LetterTokenizer:
    """One token a letter, as far as `TextTower` needs a tokenizer."""

    def __call__(
        self, texts: Sequence[str], *, truncation: bool, max_length: int
    ) -> dict[str, list[list[int]]]:
        assert truncation
        return {"input_ids": [[1 + ord(c) % 30 for c in text][:max_length] for text in texts]}


def tiny_bert(**changes: Any) -> PretrainedBert:
    """The same weights at each call."""
    config = BertConfig(
        vocab_size=32,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        attn_implementation="sdpa",
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False).eval()
    return PretrainedBert(LetterTokenizer(), model, "0" * 64)
