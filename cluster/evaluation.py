"""`rheos evaluate`: progressive validation of a stream in this process, no cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.config import Settings
from cluster.machine import machine
from cluster.report import draw_report, write_report
from cluster.report_quality import (
    cost_table,
    guard_ratios,
    guard_table,
    lists_table,
    quality_table,
    slices_table,
    spread_table,
)
from recommender.datasets import Dataset, read_dataset
from recommender.evaluation_settings import (
    COSTLY_SEEDLESS_RANKINGS,
    DEFAULT_RANKINGS,
    EvaluationSettings,
)
from recommender.progressive import evaluate
from recommender.quality_report import QualityReport
from recommender.slices import Protocol
from recommender.text_encoder import TextEncoder


def run_evaluation(
    data: Path,
    report_path: Path,
    settings: Settings,
    *,
    rankings: list[str] | None,
    seeds: list[int],
    max_events: int | None,
    protocol: Protocol = "events",
    exclude_seen: bool,
    console: Console,
    command: str,
) -> dict[str, Any]:
    """Evaluate once for each seed, print the tables, write the report and its picture.

    Costly rankings that no seed changes are measured with the first one only.

    Raises:
        DatasetError: If the stream cannot be read.
        ValueError: If a ranking is unknown.
    """
    dataset = read_dataset(data)
    report_path.parent.mkdir(parents=True, exist_ok=True)
    chosen = tuple(rankings or DEFAULT_RANKINGS)
    seeded = tuple(name for name in chosen if name not in COSTLY_SEEDLESS_RANKINGS)
    evaluation = EvaluationSettings(
        model=settings.model,
        training=settings.training,
        blend=settings.blend,
        factors=settings.ials,
    )
    with _progress(console) as progress:
        vectors = _encode(dataset, settings, progress)
        runs: list[QualityReport] = []
        for seed in seeds if seeded else seeds[:1]:
            bar = progress.add_task(f"replay, seed {seed}", total=None)

            def show(done: int, total: int, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=total)

            runs.append(
                evaluate(
                    dataset,
                    vectors,
                    evaluation,
                    rankings=seeded if runs else chosen,
                    seed=seed,
                    max_events=max_events,
                    protocol=protocol,
                    exclude_seen=exclude_seen,
                    progress=show,
                )
            )
    report = report_of(runs, command)
    write_report(report, report_path)
    picture_path = report_path.with_suffix(".png")
    draw_report(report, picture_path)
    console.print(quality_table(report))
    if len(runs) > 1:
        console.print(spread_table(report))
    for make in (slices_table, lists_table, guard_table, cost_table):
        console.print(make(report))
    console.print(f"report: {report_path}   picture: {picture_path}")
    return report


def _encode(dataset: Dataset, settings: Settings, progress: Progress) -> NDArray[np.float32]:
    bar = progress.add_task("item texts read by BERT", total=len(dataset.items))
    encoder = TextEncoder(settings.text)
    return encoder.encode(
        [item.text for item in dataset.items],
        progress=lambda done, total: progress.update(bar, completed=done, total=total),
    )


def report_of(runs: list[QualityReport], command: str) -> dict[str, Any]:
    """One report from runs that differ in their seeds: means over those that have the figure.

    What is beyond accuracy, and what the blend did, is of the first run.
    """
    first = runs[0]
    quality = {name: _mean([_quality(run, name) for run in runs]) for name in first.quality}
    slices = _mean([_slices(run, first) for run in runs])
    return {
        "quality": quality,
        "quality_by_seed": {str(run.seed): run.quality for run in runs},
        "slices": slices,
        "lists": {name: asdict(figures) for name, figures in first.lists.items()},
        "guard": guard_ratios(quality, slices, first.events.reported),
        "scored": asdict(first.events),
        "blend": {"served": first.served, "weights": first.blend_weights},
        "cpu_s": {
            "warm_up": float(np.median([run.warm_up_cpu_s for run in runs])),
            "learn_per_1000_events": float(np.median([run.learn_cpu_s_per_1000 for run in runs])),
            "score_per_1000_events": float(np.median([run.score_cpu_s_per_1000 for run in runs])),
        },
        "settings": first.settings.model_dump(mode="json"),
        "environment": {
            "command": command,
            "dataset": first.dataset,
            "protocol": first.protocol,
            "seeds": ",".join(str(run.seed) for run in runs),
            "exclude_seen": first.exclude_seen,
            **machine(),
        },
    }


def _quality(run: QualityReport, name: str) -> Mapping[str, Any] | None:
    return cast("Mapping[str, Any] | None", run.quality.get(name))


def _slices(run: QualityReport, first: QualityReport) -> dict[str, Any]:
    """A run's slices; what it did not measure, because no seed changes it, is the first run's."""
    slices = {name: asdict(of_first) for name, of_first in first.slices.items()}
    for name, of_run in run.slices.items():
        slices[name]["ndcg_at_10"] |= of_run.ndcg_at_10
        slices[name]["hit_rate_at_10"] |= of_run.hit_rate_at_10
    return slices


def _mean(values: Sequence[Any]) -> Any:
    """Mean of numbers, or of mappings and lists of them entry by entry; None is left out."""
    known = [value for value in values if value is not None]
    if isinstance(known[0], Mapping):
        return {key: _mean([value[key] for value in known]) for key in known[0]}
    if isinstance(known[0], list):
        return [_mean(entries) for entries in zip(*known, strict=True)]
    mean = float(np.mean(known))
    return int(mean) if isinstance(known[0], int) else mean


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
