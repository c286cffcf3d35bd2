"""Tables of how good the rankings are: overall, by seed, by slice, beyond accuracy, and the guard.

Sections of a report beside `quality`, each of which may be missing:

    quality_by_seed    as `quality`, by seed
    slices             by slice: num_events, and by ranking ndcg_at_10 and hit_rate_at_10
    lists              by ranking: coverage, novelty, diversity, popularity_share of the top ten
    guard              by slice: num_events, blend, best, best_component, ratio
    cpu_s              warm_up, learn_per_1000_events, score_per_1000_events
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Report = Mapping[str, Any]

GUARD_RATIO = 0.97
"""The blend is promised never to be below this share of its best component."""
GUARD_MIN_EVENTS = 1_000
"""Slices with fewer events say more about chance."""

_FIGURES = ("ndcg_at_10", "hit_rate_at_10", "mrr")
_COMPONENTS = {
    "blend": ("learning", "rules", "trending", "content"),
    "blend_ials": ("learning", "rules", "trending", "content", "ials"),
}


def quality_table(report: Report) -> Table:
    """Every ranking, best NDCG@10 first: means, then NDCG@10 of each quarter of the stream."""
    quality: Mapping[str, Mapping[str, Any]] = report.get("quality", {})
    num_quarters = max((len(_quarters(row)) for row in quality.values()), default=0)
    table = Table(title="Quality: each event is predicted before it is learned")
    table.add_column("ranking")
    for heading in ("NDCG@10", "HR@10", "MRR", *(f"Q{i + 1}" for i in range(num_quarters))):
        table.add_column(heading, justify="right")
    best_first = _best_first(quality)
    for name in best_first:
        row = quality[name]
        quarters = [*_quarters(row), *[None] * num_quarters][:num_quarters]
        means = (row.get("ndcg_at_10"), row.get("hit_rate_at_10"), row.get("mrr"))
        table.add_row(
            name,
            *(number(value, 4) for value in (*means, *quarters)),
            style="bold" if name == best_first[0] else None,
        )
    return table


def spread_table(report: Report) -> Table:
    """Lowest and highest figure of each ranking over the seeds."""
    by_seed: Mapping[str, Mapping[str, Mapping[str, float]]] = report["quality_by_seed"]
    table = Table(title=f"Lowest and highest of {len(by_seed)} seeds")
    for heading in ("ranking", "NDCG@10", "HR@10", "MRR"):
        table.add_column(heading)
    for name in _best_first(report.get("quality", {})):
        runs = [quality[name] for quality in by_seed.values() if name in quality]
        if len(runs) > 1:
            values = ([run[figure] for run in runs] for figure in _FIGURES)
            table.add_row(name, *(f"{min(v):.4f} to {max(v):.4f}" for v in values))
    return table


def slices_table(report: Report) -> Table:
    """NDCG@10 of every ranking on every slice of the reported events."""
    slices: Mapping[str, Mapping[str, Any]] = report.get("slices", {})
    table = Table(title="NDCG@10 by slice")
    table.add_column("ranking")
    for name, part in slices.items():
        table.add_column(f"{name}\n{part['num_events']:,}", justify="right")
    for ranking in _best_first(report.get("quality", {})):
        values = (
            number(part["ndcg_at_10"].get(ranking) if part["num_events"] else None, 4)
            for part in slices.values()
        )
        table.add_row(ranking, *values)
    return table


def lists_table(report: Report) -> Table:
    """What is in the top ten beside what was taken."""
    table = Table(title="Beyond accuracy: the top ten")
    table.add_column("ranking")
    for heading in ("coverage", "novelty, bits", "diversity", "from the popular tenth"):
        table.add_column(heading, justify="right")
    lists: Mapping[str, Mapping[str, float]] = report.get("lists", {})
    for ranking in _best_first(report.get("quality", {})):
        if figures := lists.get(ranking):
            table.add_row(
                ranking,
                f"{figures['coverage']:.1%}",
                number(figures["novelty"], 2),
                number(figures["diversity"], 3),
                f"{figures['popularity_share']:.1%}",
            )
    return table


def guard_ratios(
    quality: Mapping[str, Mapping[str, Any]],
    slices: Mapping[str, Mapping[str, Any]],
    num_events: int,
) -> dict[str, dict[str, Any]]:
    """Each blend against its best component, by NDCG@10: overall, and on slices large enough.

    Args:
        quality: By ranking; components that were not measured are not compared.
        slices: As in a report.
        num_events: Events that `quality` covers.
    """
    overall = {name: row["ndcg_at_10"] for name, row in quality.items()}
    parts = {"all": (num_events, overall)} | {
        name: (part["num_events"], part["ndcg_at_10"]) for name, part in slices.items()
    }
    ratios = {}
    for blend, components in _COMPONENTS.items():
        for name, (count, ndcg) in parts.items():
            known = [component for component in components if component in ndcg]
            if blend not in ndcg or not known or (count < GUARD_MIN_EVENTS and name != "all"):
                continue
            best = max(known, key=ndcg.__getitem__)
            ratios[f"{blend}, {name}"] = {
                "num_events": count,
                "blend": ndcg[blend],
                "best": ndcg[best],
                "best_component": best,
                "ratio": ndcg[blend] / ndcg[best] if ndcg[best] else None,
            }
    return ratios


def guard_table(report: Report) -> Table:
    """Each blend against the best of its components."""
    table = Table(title=f"Guard: the blend is at least {GUARD_RATIO} of its best component")
    for heading in ("blend, slice", "events", "blend", "best component", "ratio", ""):
        table.add_column(heading)
    for name, row in report.get("guard", {}).items():
        is_kept = row["ratio"] is None or row["ratio"] >= GUARD_RATIO
        table.add_row(
            name,
            f"{row['num_events']:,}",
            number(row["blend"], 4),
            f"{row['best_component']} {row['best']:.4f}",
            number(row["ratio"], 3),
            "kept" if is_kept else "missed",
        )
    return table


def cost_table(report: Report) -> Table:
    """CPU seconds of learning and scoring."""
    table = Table(title="CPU seconds (median over seeds)")
    for heading in ("warm-up", "per 1,000 events learned", "per 1,000 events scored"):
        table.add_column(heading, justify="right")
    cpu_s = report["cpu_s"]
    keys = ("warm_up", "learn_per_1000_events", "score_per_1000_events")
    table.add_row(*(number(cpu_s[key], 2) for key in keys))
    return table


def number(value: float | None, digits: int) -> str:
    """A number for people, a dash for what was not measured."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _best_first(quality: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted(quality, key=lambda name: -(quality[name].get("ndcg_at_10") or 0.0))


def _quarters(row: Mapping[str, Any]) -> Sequence[float | None]:
    return list(row.get("ndcg_at_10_by_quarter") or [])
