"""The poison test: fake users push one item; what do honest users get, with and without defences?

Prints a table and writes JSON. On the simulator by default; `--data` takes a stream.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measured import environment
from recommender.datasets import Dataset, read_dataset
from recommender.poisoning import KINDS, Defence, Outcome, PushAttack, honest_outcome, inject
from recommender.progressive import EvaluationSettings
from recommender.settings import MEASURED_FILTERS, TextSettings, TrainingSettings
from recommender.simulator import SimulatorSettings, simulate
from recommender.text_encoder import TextEncoder

_MAX_EXPOSURE = 2.0
_MIN_NDCG = 0.98


@dataclass(frozen=True)
class Row:
    """One attack under one defence, against the same honest events without an attack."""

    target: int
    attack: str
    defence: str
    exposure: float
    exposure_ratio: float
    ndcg_at_10: float
    ndcg_ratio: float
    left_out: dict[str, int]
    num_honest_left_out: int
    cpu_s: float


def main() -> None:
    """Run every attack on every target under every defence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a stream; the simulator if left out")
    parser.add_argument("--events", type=int, default=20_000, help="of a simulated stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.05, help="fake users per honest one")
    parser.add_argument("--targets", default="0.05,0.2", help="quantiles of popularity, 0 is top")
    parser.add_argument(
        "--adversarial", type=float, default=0.0, help="adds a defence, of this size"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out/poison.json"))
    arguments = parser.parse_args()
    if arguments.data:
        dataset = read_dataset(arguments.data)
    else:
        settings = SimulatorSettings(num_events=arguments.events, seed=arguments.seed)
        dataset = simulate(settings)
    quantiles = [float(part) for part in arguments.targets.split(",")]
    rows = _run(dataset, quantiles, arguments.share, arguments.seed, arguments.adversarial)
    Console(width=120).print(_table(rows, dataset))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment("benchmarks.poison"),
        "dataset": dataset.name,
        "rows": [asdict(r) for r in rows],
    }
    arguments.out.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _run(
    dataset: Dataset, quantiles: list[float], share: float, seed: int, adversarial: float
) -> list[Row]:
    text_VD = TextEncoder(TextSettings()).encode([item.text for item in dataset.items])
    start, stop = int(0.6 * len(dataset)), int(0.8 * len(dataset))
    plain = EvaluationSettings()
    hardened = EvaluationSettings(training=TrainingSettings(adversarial_size=adversarial))
    defences = {
        "none": (Defence(), plain),
        "learning only": (Defence(MEASURED_FILTERS), plain),
        "learning and counters": (Defence(MEASURED_FILTERS, screens_counters=True), plain),
    }
    if adversarial:
        defences["the same, adversarial"] = (
            Defence(MEASURED_FILTERS, screens_counters=True),
            hardened,
        )
    counts_V = np.bincount(dataset.rows_N[start - len(dataset) // 5 : start])
    by_popularity = np.argsort(-counts_V, kind="stable")
    num_wanted = int((counts_V > 0).sum())
    rows = []
    for quantile in quantiles:
        target = int(by_popularity[int(quantile * num_wanted)])

        def play(
            attack: PushAttack | None,
            defence: Defence,
            settings: EvaluationSettings,
            target: int = target,
        ) -> Outcome:
            return honest_outcome(
                inject(dataset, attack),
                text_VD,
                settings,
                target=target,
                defence=defence,
                scored_from=(start + stop) // 2,
                seed=seed,
            )

        clean = play(None, Defence(), plain)
        for kind in KINDS:
            attack = PushAttack(kind, target, start, stop, share=share, seed=seed)
            for name, (defence, settings) in defences.items():
                started_s = time.process_time()
                outcome = play(attack, defence, settings)
                rows.append(
                    _row(target, kind, name, outcome, clean, time.process_time() - started_s)
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _row(
    target: int, kind: str, defence: str, outcome: Outcome, clean: Outcome, cpu_s: float
) -> Row:
    exposure, before = (float(np.nanmean(o.exposed_K)) for o in (outcome, clean))
    ndcg, ndcg_before = (float(np.mean(o.ndcg_K)) for o in (outcome, clean))
    return Row(
        target=target,
        attack=kind,
        defence=defence,
        exposure=exposure,
        exposure_ratio=exposure / before if before else float("inf"),
        ndcg_at_10=ndcg,
        ndcg_ratio=ndcg / ndcg_before,
        left_out={reason: number for reason, number in outcome.left_out.items() if number},
        num_honest_left_out=outcome.num_honest_left_out,
        cpu_s=cpu_s,
    )


def _table(rows: list[Row], dataset: Dataset) -> Table:
    table = Table(
        title=f"{dataset.name}: goals are exposure at most {_MAX_EXPOSURE:g} x and "
        f"NDCG@10 at least {_MIN_NDCG:g} x of the same honest events without the attack"
    )
    for heading in ("target", "attack", "defence"):
        table.add_column(heading)
    for heading in ("exposure", "x", "NDCG@10", "x", "left out (honest)", "holds"):
        table.add_column(heading, justify="right")
    for row in rows:
        holds = row.exposure_ratio <= _MAX_EXPOSURE and row.ndcg_ratio >= _MIN_NDCG
        table.add_row(
            str(row.target),
            row.attack,
            row.defence,
            f"{row.exposure:.4f}",
            f"{row.exposure_ratio:.2f}",
            f"{row.ndcg_at_10:.4f}",
            f"{row.ndcg_ratio:.3f}",
            f"{sum(row.left_out.values())} ({row.num_honest_left_out})",
            "yes" if holds else "no",
        )
    return table


if __name__ == "__main__":
    main()
