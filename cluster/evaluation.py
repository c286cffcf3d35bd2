"""`rheos evaluate`: progressive validation of a stream in this process, no cluster."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cluster.config import Settings
from cluster.report import draw_report, quality_table, write_report
from recommender.datasets import Dataset, read_dataset
from recommender.metrics import Quality
from recommender.progressive import (
    DEFAULT_RANKINGS,
    EvaluationSettings,
    QualityReport,
    evaluate,
)
from recommender.text_encoder import TextEncoder

_FIGURES = ("ndcg_at_10", "hit_rate_at_10", "mrr")


def run_evaluation(
    data: Path,
    report_path: Path,
    settings: Settings,
    *,
    rankings: list[str] | None,
    seeds: list[int],
    max_events: int | None,
    exclude_seen: bool,
    console: Console,
    command: str,
) -> dict[str, Any]:
    """Evaluate once for each seed, print the table, write the report and its picture.

    Raises:
        DatasetError: If the stream cannot be read.
        ValueError: If a ranking is unknown.
    """
    dataset = read_dataset(data)
    report_path.parent.mkdir(parents=True, exist_ok=True)
    chosen = tuple(rankings or DEFAULT_RANKINGS)
    evaluation = EvaluationSettings(
        model=settings.model, training=settings.training, blend=settings.blend
    )
    with _progress(console) as progress:
        vectors = _encode(dataset, settings, progress)
        runs = []
        for seed in seeds:
            bar = progress.add_task(f"replay, seed {seed}", total=None)

            def show(done: int, total: int, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=total)

            runs.append(
                evaluate(
                    dataset,
                    vectors,
                    evaluation,
                    rankings=chosen,
                    seed=seed,
                    max_events=max_events,
                    exclude_seen=exclude_seen,
                    progress=show,
                )
            )
    report = _report(runs, seeds, command)
    write_report(report, report_path)
    picture_path = report_path.with_suffix(".png")
    draw_report(report, picture_path)
    console.print(quality_table(report))
    console.print(_cost_table(runs))
    if len(runs) > 1:
        console.print(_spread_table(runs))
    console.print(f"report: {report_path}   picture: {picture_path}")
    return report


def _encode(dataset: Dataset, settings: Settings, progress: Progress) -> NDArray[np.float32]:
    bar = progress.add_task("item texts read by BERT", total=len(dataset.items))
    encoder = TextEncoder(settings.text)
    return encoder.encode(
        [item.text for item in dataset.items],
        progress=lambda done, total: progress.update(bar, completed=done, total=total),
    )


def _report(runs: list[QualityReport], seeds: list[int], command: str) -> dict[str, Any]:
    import torch

    first = runs[0]
    return {
        "quality": {name: _mean([run.quality[name] for run in runs]) for name in first.quality},
        "quality_by_seed": {str(seed): run.quality for seed, run in zip(seeds, runs, strict=True)},
        "scored": {
            "warm_up": first.events.warm_up,
            "streamed": first.events.streamed,
            "scored": first.events.scored,
            "reported": first.events.reported,
            "skipped": first.events.skipped,
        },
        "blend": {"served": first.served, "weights": first.blend_weights},
        "cpu_s": {
            "warm_up": first.warm_up_cpu_s,
            "learn_per_1000_events": first.learn_cpu_s_per_1000,
            "score_per_1000_events": first.score_cpu_s_per_1000,
        },
        "settings": first.settings.model_dump(mode="json"),
        "environment": {
            "command": command,
            "dataset": first.dataset,
            "seeds": ",".join(map(str, seeds)),
            "exclude_seen": first.exclude_seen,
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _mean(runs: list[Quality]) -> Quality:
    quarters = np.mean([run["ndcg_at_10_by_quarter"] for run in runs], axis=0)
    return Quality(
        ndcg_at_10=float(np.mean([run["ndcg_at_10"] for run in runs])),
        hit_rate_at_10=float(np.mean([run["hit_rate_at_10"] for run in runs])),
        mrr=float(np.mean([run["mrr"] for run in runs])),
        ndcg_at_10_by_quarter=quarters.tolist(),
    )


def _cost_table(runs: list[QualityReport]) -> Table:
    table = Table(title="CPU seconds (median over seeds)")
    for heading in ("warm-up", "per 1,000 events learned", "per 1,000 events scored"):
        table.add_column(heading, justify="right")
    columns = (
        [run.warm_up_cpu_s for run in runs],
        [run.learn_cpu_s_per_1000 for run in runs],
        [run.score_cpu_s_per_1000 for run in runs],
    )
    table.add_row(*(f"{np.median(column):.2f}" for column in columns))
    return table


def _spread_table(runs: list[QualityReport]) -> Table:
    table = Table(title=f"Lowest and highest of {len(runs)} seeds")
    table.add_column("ranking")
    for figure in _FIGURES:
        table.add_column(figure)
    for name in runs[0].quality:
        values = [[float(run.quality[name][figure]) for run in runs] for figure in _FIGURES]  # type: ignore[literal-required]
        table.add_row(name, *(f"{min(v):.4f} to {max(v):.4f}" for v in values))
    return table


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
