"""What the benchmarks of the guard share: what they ran on, and NDCG@10 by event."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cluster.machine import machine
from recommender.datasets import Dataset
from recommender.metrics import ndcg_at_k
from recommender.settings import TextSettings
from recommender.text_encoder import TextEncoder

Curve = dict[int, float]
"""NDCG@10 by the event it was measured at."""


class Curves:
    """Collects NDCG@10 of every scored event, by ranking; its `add` is an `OnScored`."""

    def __init__(self) -> None:
        self.by_ranking: dict[str, Curve] = {}

    def add(self, offsets_K: NDArray[np.int64], ranks: Mapping[str, NDArray[np.float64]]) -> None:
        """Take in a round."""
        for name, ranks_K in ranks.items():
            ndcg = zip(offsets_K.tolist(), ndcg_at_k(ranks_K, 10).tolist(), strict=True)
            self.by_ranking.setdefault(name, {}).update(ndcg)


def text_vectors(dataset: Dataset) -> NDArray[np.float32]:
    """What the default BERT reads in the texts of a catalogue; the same one is read once."""
    return _encoded(tuple(item.text for item in dataset.items))


def environment(module: str) -> dict[str, Any]:
    """Command, machine and versions."""
    return {"command": shlex.join(["python", "-m", module, *sys.argv[1:]]), **machine()}


def save(module: str, results: Mapping[str, Any], path: Path, console: Console) -> None:
    """Write a benchmark's report, and print what it ran on and where it is."""
    document = {"environment": environment(module), **results}
    console.print_json(json.dumps(document["environment"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"report: {path}")


@cache
def _encoded(texts: tuple[str, ...]) -> NDArray[np.float32]:
    return TextEncoder(TextSettings()).encode(texts)
