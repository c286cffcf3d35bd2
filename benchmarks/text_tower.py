"""What it brings and costs to let BERT learn online, by mode, on one stream.

Each mode replays the same stream with the same seeds (`recommender.progressive`): quality of the
learning net and of the blend over the last three quarters, and CPU time per 1,000 events learned.
The stream is a data set on disk, or `simulated`, whose item texts can be made longer.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measured import environment
from recommender.datasets import Dataset, read_dataset
from recommender.progressive import QualityReport, evaluate
from recommender.settings import TextSettings, TextTuningSettings
from recommender.simulator import SimulatorSettings, simulate
from recommender.text_encoder import TextEncoder, load_bert
from recommender.text_tower import TextTower
from recommender.text_tuning import TextTuner

_RANKINGS = ("frozen", "learning", "blend")


@dataclass(frozen=True)
class Run:
    """One mode with one seed."""

    mode: str
    seed: int
    report: QualityReport
    text: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Numbers for people and for JSON."""
        quality = self.report.quality
        return {
            "mode": self.mode,
            "seed": self.seed,
            "learning_ndcg_at_10": quality["learning"]["ndcg_at_10"],
            "learning_by_quarter": quality["learning"]["ndcg_at_10_by_quarter"],
            "blend_ndcg_at_10": quality["blend"]["ndcg_at_10"],
            "blend_by_quarter": quality["blend"]["ndcg_at_10_by_quarter"],
            "learn_cpu_s_per_1000": self.report.learn_cpu_s_per_1000,
            "num_reported": self.report.events.reported,
            **self.text,
        }


def main() -> None:
    """Run every mode with every seed, print the table, write the numbers."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    dataset = _dataset(arguments)
    text = TextSettings(max_tokens=arguments.max_tokens)
    encoder = TextEncoder(text, threads=arguments.threads)
    vectors = encoder.encode([item.text for item in dataset.items])
    console = Console()
    runs: list[Run] = []
    for mode in arguments.modes.split(","):
        settings = TextTuningSettings.model_validate(
            {"mode": mode, "cpu_share": arguments.cpu_share}
            | ({"learning_rate": arguments.learning_rate} if arguments.learning_rate else {})
        )
        for seed in map(int, arguments.seeds.split(",")):
            run = _run(dataset, vectors, settings, text=text, name=encoder.name, seed=seed)
            runs.append(run)
            console.print_json(json.dumps(run.row()))
    console.print(_table(runs, dataset))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"text-tower-{dataset.name}.json"
    path.write_text(
        json.dumps(
            {"environment": environment("benchmarks.text_tower"), "runs": [r.row() for r in runs]}
        )
    )
    console.print(f"report: {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("RHEOS_DATA_DIR", "../shared/data"))
    parser.add_argument("--data", default=str(root / "ml-100k"), help="a stream, or `simulated`")
    parser.add_argument("--modes", default="frozen,lora,top_layers")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--learning-rate", type=float, help="of BERT; the setting's default")
    parser.add_argument("--cpu-share", type=float, default=1.0, help="1 is no limit: repeatable")
    parser.add_argument("--max-tokens", type=int, default=TextSettings().max_tokens)
    parser.add_argument("--sentences", type=int, default=5, help="of a simulated item")
    parser.add_argument("--events", type=int, default=20_000, help="of a simulated stream")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    return parser.parse_args()


def _dataset(arguments: argparse.Namespace) -> Dataset:
    if arguments.data != "simulated":
        return read_dataset(Path(arguments.data))
    return simulate(
        SimulatorSettings(num_sentences=arguments.sentences, num_events=arguments.events)
    )


def _run(
    dataset: Dataset,
    vectors: NDArray[np.float32],
    settings: TextTuningSettings,
    *,
    text: TextSettings,
    name: str,
    seed: int,
) -> Run:
    tuner = None
    if settings.mode != "frozen":
        tower = TextTower(load_bert(text.encoder), text, settings, seed=seed)
        tuner = TextTuner(tower, settings, name=name, seed=seed)
    report = evaluate(dataset, vectors, rankings=_RANKINGS, seed=seed, tuner=tuner)
    return Run(settings.mode, seed, report, {} if tuner is None else tuner.metrics())


def _table(runs: list[Run], dataset: Dataset) -> Table:
    lengths = [len(item.text.split()) for item in dataset.items]
    table = Table(title=f"{dataset.name}: {len(lengths)} items of {np.mean(lengths):.0f} words")
    headings = ("seed", "net NDCG@10", "blend NDCG@10", "CPU s per 1,000", "BERT s", "started over")
    table.add_column("mode")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in (run.row() for run in runs):
        table.add_row(
            row["mode"],
            str(row["seed"]),
            f"{row['learning_ndcg_at_10']:.4f}",
            f"{row['blend_ndcg_at_10']:.4f}",
            f"{row['learn_cpu_s_per_1000']:.2f}",
            f"{row.get('text_cpu_s', 0.0):.0f}",
            f"{row.get('text_started_over', 0.0):.0f}",
        )
    return table


if __name__ == "__main__":
    main()
