"""What learning forgets, and what each remedy costs: replay strategies and distillation.

One row a variant: the quality of the learning net on the reported quarters, how far NDCG@10 on
held-out probes of every period has moved since the period ended, CPU seconds of learning, and what
the guard decided. Prints the table and writes JSON. Streams are looked for below `RHEOS_DATA_DIR`;
licences forbid shipping them.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measured import environment
from cluster.config import load_settings
from recommender.datasets import Dataset, read_dataset
from recommender.progressive import EvaluationSettings, QualityReport, evaluate
from recommender.text_encoder import TextEncoder

VARIANTS: dict[str, dict[str, Any]] = {
    "recency, half-life 20,000": {},
    "recency, half-life 2,000": {"replay_half_life": 2_000.0},
    "uniform (reservoir)": {"replay_strategy": "uniform"},
    "mix": {"replay_strategy": "mix"},
    "recency, distillation": {"anchor_weight": 1.0},
}
"""What differs from the defaults of `[training]`, by the name in the table."""


def main() -> None:
    """Evaluate every variant with every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("RHEOS_DATA_DIR", "../shared/data"))
    parser.add_argument("--data", type=Path, default=root / "ml-100k")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--max-events", type=int, help="use only the first events")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = load_settings()
    dataset = read_dataset(arguments.data)
    text_VD = TextEncoder(settings.text).encode([item.text for item in dataset.items])
    console = Console(width=130)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    rows = {}
    for name in arguments.variants:
        evaluation = EvaluationSettings(
            model=settings.model,
            training=settings.training.model_copy(update=VARIANTS[name]),
            guard=settings.guard.model_copy(
                # Longer periods and more probes than live: all of them are kept, and noise is less.
                update={"hold_out_every": 20, "period_events": 8_000, "probes_per_period": 400}
            ),
        )
        runs = [
            _run(dataset, text_VD, evaluation, seed=seed, max_events=arguments.max_events)
            for seed in seeds
        ]
        rows[name] = _row(runs)
        console.print(f"{name}: {rows[name]}")
    console.print(_table(rows))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"forgetting-{arguments.data.name}.json"
    document = {"environment": environment("benchmarks.forgetting"), "variants": rows}
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"report: {path}")


def _run(
    dataset: Dataset,
    text_VD: NDArray[np.float32],
    settings: EvaluationSettings,
    *,
    seed: int,
    max_events: int | None,
) -> QualityReport:
    return evaluate(
        dataset, text_VD, settings, rankings=["learning"], seed=seed, max_events=max_events
    )


def _row(runs: list[QualityReport]) -> dict[str, Any]:
    """Means over the seeds; the change of the last period is left out, it has just ended."""
    changes = [list(run.probe_changes.values())[:-1] for run in runs]
    quarters = [run.quality["learning"]["ndcg_at_10_by_quarter"] for run in runs]
    return {
        "ndcg_at_10": float(np.mean([run.quality["learning"]["ndcg_at_10"] for run in runs])),
        "ndcg_at_10_by_quarter": np.mean(quarters, axis=0).tolist(),
        "probe_change": float(np.mean([np.mean(change) for change in changes])),
        "probe_change_by_period": np.mean(changes, axis=0).tolist(),
        "learn_cpu_s_per_1000": float(np.median([run.learn_cpu_s_per_1000 for run in runs])),
        "decisions": [d.verdict.value for run in runs for d in run.decisions],
        "seeds": [run.seed for run in runs],
    }


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Learning net under guard; change of held-out probes since their period")
    table.add_column("replay")
    for heading in ("NDCG@10", "1st quarter", "probes", "worst period", "CPU s / 1,000", "guard"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['ndcg_at_10']:.4f}",
            f"{row['ndcg_at_10_by_quarter'][0]:.4f}",
            f"{row['probe_change']:+.1%}",
            f"{min(row['probe_change_by_period']):+.1%}",
            f"{row['learn_cpu_s_per_1000']:.2f}",
            ", ".join(row["decisions"]) or "-",
        )
    return table


if __name__ == "__main__":
    main()
