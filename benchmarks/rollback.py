"""The rollback test: what a burst of fake users does to honest ones, with and without the guard.

Each burst is put into a stream once under every defence, and NDCG@10 of honest events is compared
with the same events under the same defence and seed without the burst, in windows of honest events
from the burst's start to the end of the stream. `net` is the learning net as it is served, `blend`
what users get. Prints a table and writes JSON. On the simulator by default; `--data` takes a
stream. The row `no burst` is the noise: two clean runs that differ in the model's seed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measured import Curve, Curves, save, text_vectors
from recommender.bursts import BURST_KINDS, Burst, BurstKind, burst
from recommender.datasets import Dataset, read_dataset
from recommender.evaluation_settings import EvaluationSettings
from recommender.progressive import evaluate
from recommender.settings import MEASURED_FILTERS, GuardSettings
from recommender.simulator import SimulatorSettings, simulate

MIN_RATIO = 0.97
DEFENCES = {
    "nothing": EvaluationSettings(),
    "filters": EvaluationSettings(filters=MEASURED_FILTERS),
    "guard": EvaluationSettings(guard=GuardSettings()),
    "guard, filters": EvaluationSettings(guard=GuardSettings(), filters=MEASURED_FILTERS),
    "guard with hold-outs": EvaluationSettings(guard=GuardSettings(hold_out_every=20)),
    "guard with hold-outs, filters": EvaluationSettings(
        guard=GuardSettings(hold_out_every=20), filters=MEASURED_FILTERS
    ),
}
"""By name, what learns and what it is defended by."""
RANKINGS = {"net": "learning", "blend": "blend"}
_SCORE_EVERY = 5
_OTHER_SEED = 1_000


@dataclass(frozen=True)
class Play:
    """One run: NDCG@10 by ranking and honest event, and what the guard decided."""

    curves: dict[str, Curve]
    verdicts: Counter[str]


@dataclass(frozen=True)
class Ratio:
    """NDCG@10 of one window of honest events, as a share of that without the burst."""

    start: int
    num_scored: int
    ratio: float
    error: float


@dataclass(frozen=True)
class Row:
    """One burst under one defence, all seeds together."""

    burst: str
    defence: str
    clean: dict[str, float]
    windows: dict[str, list[Ratio]]
    verdicts: dict[str, int]

    def worst(self, ranking: str) -> Ratio:
        """The window that suffered most."""
        return min(self.windows[ranking], key=lambda window: window.ratio)


def main() -> None:
    """Play every burst under every defence with every seed."""
    arguments = _arguments()
    torch.set_num_threads(1)
    console = Console(width=130)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    rows: list[Row] = []
    for name in arguments.defences:
        clean = [_play(arguments, name, None, seed) for seed in seeds]
        if not rows and arguments.noise:
            other = [_play(arguments, name, None, seed, _OTHER_SEED) for seed in seeds]
            rows.append(_row(arguments, "no burst", name, other, clean))
        for kind in arguments.kinds:
            attacked = [_play(arguments, name, kind, seed) for seed in seeds]
            rows.append(_row(arguments, kind, name, attacked, clean))
            print(rows[-1], file=sys.stderr, flush=True)
    console.print(_table(rows, arguments))
    results = {"rows": [asdict(row) for row in rows]}
    save("benchmarks.rollback", results, arguments.out, console)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a stream; the simulator if left out")
    parser.add_argument("--events", type=int, default=24_000, help="of a simulated stream")
    parser.add_argument("--users", type=int, default=1_000, help="of a simulated stream")
    parser.add_argument("--length", type=int, default=3_000, help="honest events of the burst")
    parser.add_argument("--rate", type=float, default=1.0, help="fake events for an honest one")
    parser.add_argument("--window", type=int, default=3_000, help="honest events; 1 in 5 is scored")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--kinds", nargs="*", choices=BURST_KINDS, default=list(BURST_KINDS))
    parser.add_argument("--defences", nargs="*", choices=list(DEFENCES), default=list(DEFENCES))
    parser.add_argument("--noise", action="store_true", help="play the row `no burst` too")
    parser.add_argument("--out", type=Path, default=Path("demo-out/rollback.json"))
    return parser.parse_args()


def _dataset(arguments: argparse.Namespace, seed: int) -> Dataset:
    if arguments.data:
        return read_dataset(arguments.data)
    return simulate(
        SimulatorSettings(num_events=arguments.events, num_users=arguments.users, seed=seed)
    )


def _burst_start(num_honest: int) -> int:
    """An eighth of the stream after the warm-up's end."""
    return num_honest * 5 // 8


def _play(
    arguments: argparse.Namespace,
    defence: str,
    kind: BurstKind | None,
    seed: int,
    more_seed: int = 0,
) -> Play:
    dataset = _dataset(arguments, seed)
    start = _burst_start(len(dataset))
    attack = None
    if kind is not None:
        attack = Burst(kind, start, start + arguments.length, rate=arguments.rate, seed=seed)
    stream = burst(dataset, attack)
    honest_N = np.cumsum(~stream.is_fake_N) - 1
    curves = Curves()
    report = evaluate(
        stream.dataset,
        text_vectors(dataset),
        DEFENCES[defence],
        rankings=list(RANKINGS.values()),
        seed=seed + more_seed,
        num_warm_up=len(dataset) // 2,
        scored_N=_scored(stream.is_fake_N),
        on_scored=curves.add,
    )
    honest_curves = {
        name: {
            int(honest_N[at]): ndcg
            for at, ndcg in curves.by_ranking[ranking].items()
            if not stream.is_fake_N[at]
        }
        for name, ranking in RANKINGS.items()
    }
    verdicts = Counter(decision.verdict.value for decision in report.decisions)
    return Play(honest_curves, verdicts)


def _scored(is_fake_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Every fifth honest event, and of the fake ones every fifth too: the guard cannot tell."""
    scored_N = np.zeros(len(is_fake_N), np.bool_)
    for is_kind_N in (is_fake_N, ~is_fake_N):
        scored_N[np.flatnonzero(is_kind_N)[2::_SCORE_EVERY]] = True
    return scored_N


def _row(
    arguments: argparse.Namespace, kind: str, defence: str, plays: list[Play], clean: list[Play]
) -> Row:
    windows = {
        name: _ratios(
            [play.curves[name] for play in plays],
            [play.curves[name] for play in clean],
            arguments,
        )
        for name in RANKINGS
    }
    return Row(
        burst=kind,
        defence=defence,
        clean={
            name: float(np.mean([np.mean(list(play.curves[name].values())) for play in clean]))
            for name in RANKINGS
        },
        windows=windows,
        verdicts=dict(sum((play.verdicts for play in plays), Counter[str]())),
    )


def _ratios(
    attacked: list[Curve], clean: list[Curve], arguments: argparse.Namespace
) -> list[Ratio]:
    last = max(max(curve) for curve in clean) + 1
    start = _burst_start(last)
    return [
        _ratio(attacked, clean, range(first, first + arguments.window))
        for first in range(start, last - arguments.window + 1, arguments.window)
    ]


def _ratio(attacked: list[Curve], clean: list[Curve], span: range) -> Ratio:
    """Events that were scored in both; the filters may have left one out in one of the two."""
    pairs = np.array(
        [
            (curve[at], before[at])
            for curve, before in zip(attacked, clean, strict=True)
            for at in span
            if at in curve and at in before
        ]
    )
    ndcg, before = pairs.mean(axis=0)
    error = (pairs[:, 0] - pairs[:, 1]).std() / np.sqrt(len(pairs))
    return Ratio(span.start, len(pairs), float(ndcg / before), float(error / before))


def _table(rows: list[Row], arguments: argparse.Namespace) -> Table:
    table = Table(
        title=f"NDCG@10 of honest events with a burst, as a share of that without; windows of "
        f"{arguments.window:,} honest events, goal at least {MIN_RATIO:g}"
    )
    for heading in ("burst", "defence"):
        table.add_column(heading)
    for heading in ("net, by window", "worst", "blend, by window", "worst", "guard"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = []
        for name in RANKINGS:
            worst = row.worst(name)
            cells += [
                " ".join(f"{window.ratio:.3f}" for window in row.windows[name]),
                f"{worst.ratio:.3f} ± {worst.error:.3f}",
            ]
        told = ", ".join(f"{verdict} {number}" for verdict, number in row.verdicts.items())
        table.add_row(row.burst, row.defence, *cells, told or "-")
    return table


if __name__ == "__main__":
    main()
