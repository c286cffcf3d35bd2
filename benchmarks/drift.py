"""How soon learning is back after the world has changed, beside a net that is frozen.

Simulated streams with a drift in the middle of the streamed half. Each seed is played three times:
under the guard as it is by default, with the guard's faster pace switched off, and without a drift
(the control: a stream gets easier or harder by itself as users come and items are used up). NDCG@10
of the window just before the drift is the level that each ranking is held against. Prints tables,
writes JSON and a picture.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measured import Curve, Curves, save, text_vectors
from recommender.progressive import EvaluationSettings, evaluate
from recommender.settings import GuardSettings
from recommender.simulator import SimulatorSettings, simulate

RANKINGS = ("frozen", "learning", "blend")
_BACK = 0.95
_CALM = GuardSettings(urgent_rate_factor=1.0, urgent_fresh_share=0.0, urgent_replay_half_life=1e9)
VARIANTS: dict[str, tuple[bool, GuardSettings]] = {
    "drift": (True, GuardSettings()),
    "drift, pace as ever": (True, _CALM),
    "no drift": (False, GuardSettings()),
}
"""By name: whether there is a drift, and the guard."""


@dataclass(frozen=True)
class Spans:
    """Where the windows lie, in events of the stream."""

    num_events: int
    drift_at: int
    window: int

    @property
    def before(self) -> range:
        """The window that ends at the drift."""
        return range(self.drift_at - self.window, self.drift_at)

    @property
    def last(self) -> range:
        """The window at the end of the stream."""
        return range(self.num_events - self.window, self.num_events)


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    curves: dict[str, Curve]
    decisions: list[str]


def main() -> None:
    """Play every variant with every seed."""
    arguments = _arguments()
    torch.set_num_threads(1)
    spans = Spans(arguments.events, arguments.events * 3 // 4, arguments.window)
    console = Console(width=120)
    runs = [
        _run(variant, seed, arguments, spans)
        for seed in map(int, arguments.seeds.split(","))
        for variant in arguments.variants
    ]
    rows = [
        _row(variant, ranking, [run for run in runs if run.variant == variant], spans)
        for variant in arguments.variants
        for ranking in RANKINGS
    ]
    console.print(_table(rows, spans))
    for run in runs:
        console.print(f"{run.variant}, seed {run.seed}: {', '.join(run.decisions) or 'no alarm'}")
    results = {
        "world": _world(arguments, 0, spans.drift_at).model_dump(mode="json"),
        "window": spans.window,
        "rows": rows,
        "decisions": [
            {"variant": r.variant, "seed": r.seed, "decisions": r.decisions} for r in runs
        ],
    }
    path = arguments.out / "drift.json"
    save("benchmarks.drift", results, path, console)
    _draw(runs, rows, spans, path.with_suffix(".png"))
    console.print(f"picture: {path.with_suffix('.png')}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=60_000, help="of the stream; half warms up")
    parser.add_argument("--users", type=int, default=1_500)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--series", type=float, default=0.3, help="how much goes by what came last")
    parser.add_argument("--window", type=int, default=5_000, help="events of a level")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    return parser.parse_args()


def _world(arguments: argparse.Namespace, seed: int, drift_at: int | None) -> SimulatorSettings:
    return SimulatorSettings(
        num_users=arguments.users,
        num_items=arguments.items,
        num_events=arguments.events,
        drift_at=drift_at,
        series_probability=arguments.series,
        seed=seed,
    )


def _run(variant: str, seed: int, arguments: argparse.Namespace, spans: Spans) -> Run:
    has_drift, guard = VARIANTS[variant]
    dataset = simulate(_world(arguments, seed, spans.drift_at if has_drift else None))
    curves = Curves()
    report = evaluate(
        dataset,
        text_vectors(dataset),
        EvaluationSettings(guard=guard),
        rankings=RANKINGS,
        seed=seed,
        on_scored=curves.add,
    )
    decisions = [f"{decision.verdict.value} ({decision.reason})" for decision in report.decisions]
    return Run(variant, seed, curves.by_ranking, decisions)


def _row(variant: str, ranking: str, runs: list[Run], spans: Spans) -> dict[str, Any]:
    """All seeds together, and each ratio by seed."""
    curves = [run.curves[ranking] for run in runs]
    before = _level(curves, spans.before)
    last = _level(curves, spans.last)
    before_error, last_error = (
        _error(curves, span) / level for span, level in ((spans.before, before), (spans.last, last))
    )
    return {
        "variant": variant,
        "ranking": ranking,
        "before": before,
        "lowest": float(np.nanmin(_trailing(curves, spans, spans.window // 5)[1])),
        "last": last,
        "ratio": last / before,
        "ratio_error": float(np.hypot(before_error, last_error)) * last / before,
        "ratio_by_seed": {
            str(run.seed): _level([run.curves[ranking]], spans.last)
            / _level([run.curves[ranking]], spans.before)
            for run in runs
        },
        "back_after": _back_after(curves, spans, before),
        "back_after_by_seed": {
            str(run.seed): _back_after(
                [run.curves[ranking]], spans, _level([run.curves[ranking]], spans.before)
            )
            for run in runs
        },
    }


def _values(curves: list[Curve], span: range) -> NDArray[np.float64]:
    return np.array([ndcg for curve in curves for at, ndcg in curve.items() if at in span])


def _level(curves: list[Curve], span: range) -> float:
    return float(_values(curves, span).mean())


def _error(curves: list[Curve], span: range) -> float:
    values = _values(curves, span)
    return float(values.std()) / float(np.sqrt(len(values)))


def _trailing(
    curves: list[Curve], spans: Spans, length: int, step: int = 100
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Events after the drift, and the mean of the `length` events up to each, all after it."""
    ends = np.arange(spans.drift_at + length, spans.num_events + 1, step)
    return ends - spans.drift_at, np.array(
        [_level(curves, range(int(end) - length, int(end))) for end in ends]
    )


def _back_after(curves: list[Curve], spans: Spans, before: float) -> int | None:
    """Events after which the mean of the last half window is within 5 % of the level before."""
    ends, levels = _trailing(curves, spans, spans.window // 2)
    is_back = levels >= _BACK * before
    return int(ends[is_back.argmax()]) if is_back.any() else None


def _table(rows: list[dict[str, Any]], spans: Spans) -> Table:
    title = (
        f"NDCG@10 over {spans.window:,} events before a drift and at the end, "
        f"{spans.num_events - spans.drift_at:,} events after it"
    )
    table = Table(title=title)
    table.add_column("stream")
    table.add_column("ranking")
    headings = ("before", "lowest", "at the end", "ratio", "by seed", "back within 5 % after")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["variant"],
            row["ranking"],
            f"{row['before']:.4f}",
            f"{row['lowest']:.4f}",
            f"{row['last']:.4f}",
            f"{row['ratio']:.3f} ± {row['ratio_error']:.3f}",
            " ".join(f"{ratio:.2f}" for ratio in row["ratio_by_seed"].values()),
            "-" if row["back_after"] is None else f"{row['back_after']:,}",
        )
    return table


def _draw(runs: list[Run], rows: list[dict[str, Any]], spans: Spans, path: Path) -> None:
    """Rolling NDCG@10 of the first variant that was played, all seeds together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cluster.picture_style import colour_of, style

    figure = Figure(figsize=(11, 5.5), dpi=130)
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    variant = runs[0].variant
    width = spans.window // 5
    ends = np.arange(spans.num_events // 2 + width, spans.num_events + 1, 100)
    levels = {row["ranking"]: row["before"] for row in rows if row["variant"] == variant}
    for ranking in RANKINGS:
        curves = [run.curves[ranking] for run in runs if run.variant == variant]
        means = [_level(curves, range(int(end) - width, int(end))) for end in ends]
        panel.plot(ends, means, color=colour_of(ranking), label=ranking, linewidth=2)
        panel.hlines(
            _BACK * levels[ranking],
            spans.drift_at,
            spans.num_events,
            color=colour_of(ranking),
            linestyle="--",
            linewidth=1,
        )
    panel.axvline(spans.drift_at, color="#333333", linewidth=1)
    panel.annotate(
        " drift",
        (spans.drift_at, 1.0),
        xycoords=("data", "axes fraction"),
        va="top",
        fontsize=11,
    )
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, loc="lower left")
    title = f"NDCG@10 of the last {width:,} events; dashed: 95 % of the level before the drift"
    style(panel, title, "event")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
