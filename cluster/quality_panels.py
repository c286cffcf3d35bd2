"""Panels that show how good the rankings are: means, quarters, slices, lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.picture_style import colour_of, lighter, series, spread, style

_IN_GROUPS = ("popularity", "rules", "frozen", "learning", "blend")


def draw_means(panel: Any, quality: Mapping[str, Any]) -> None:
    """A bar a ranking, the best on top."""
    names = sorted(quality, key=lambda name: quality[name].get("ndcg_at_10") or 0.0)
    values = [quality[name].get("ndcg_at_10") or 0.0 for name in names]
    bars = panel.barh(names, values, color=[colour_of(name) for name in names], height=0.7)
    panel.bar_label(bars, fmt="%.4f", padding=5, fontsize=12)
    panel.tick_params(axis="y", labelsize=13, length=0)
    panel.margins(x=0.08)
    style(panel, "NDCG@10 over the stream", "", grid_axis="x")


def draw_quarters(panel: Any, quality: Mapping[str, Any]) -> None:
    """A group of bars a ranking, the quarters from left to right and from light to dark."""
    names = [name for name in quality if quality[name].get("ndcg_at_10_by_quarter")]
    names.sort(key=lambda name: quality[name].get("ndcg_at_10") or 0.0)
    for position, name in enumerate(names):
        values = series(quality[name]["ndcg_at_10_by_quarter"])
        count = len(values)
        for quarter, value in enumerate(values):
            x = position + (quarter - (count - 1) / 2) * 0.8 / count
            colour = lighter(colour_of(name), 0.65 * (1 - (quarter + 1) / count))
            panel.bar(x, value, width=0.74 / count, color=colour)
            if quarter == count - 1:
                panel.text(x, value, f"{value:.3f}", ha="center", va="bottom", fontsize=11)
    panel.set_xticks(range(len(names)), names)
    panel.tick_params(axis="x", labelsize=13, length=0)
    style(panel, "NDCG@10 by quarter of the stream, first (light) to last (dark)", "")


def draw_slices(panel: Any, slices: Mapping[str, Any], names: Sequence[str]) -> None:
    """A group of bars a slice, the rankings from worst to best."""
    shown = {name: part for name, part in slices.items() if part["num_events"]}
    width = 0.84 / max(1, len(names))
    for position, part in enumerate(shown.values()):
        for index, name in enumerate(names):
            x = position + (index - (len(names) - 1) / 2) * width
            panel.bar(x, part["ndcg_at_10"].get(name, 0.0), width=width, color=colour_of(name))
    labels = [f"{name}\n{part['num_events']:,}" for name, part in shown.items()]
    panel.set_xticks(range(len(labels)), labels)
    panel.tick_params(axis="x", labelsize=10, length=0)
    for index, name in enumerate(names):
        panel.text(
            *(0.99, 0.96 - 0.07 * (len(names) - 1 - index), name),
            transform=panel.transAxes,
            ha="right",
            va="top",
            fontsize=12,
            fontweight="bold",
            color=colour_of(name),
        )
    style(panel, "NDCG@10 by slice, and events in it", "")


def draw_lists(panel: Any, lists: Mapping[str, Any], quality: Mapping[str, Any]) -> None:
    """Each ranking as a point: right is more of the catalogue, up is better."""
    heights = [quality[name].get("ndcg_at_10") or 0.0 for name in lists]
    labels = spread(heights, gap=0.05 * max(heights, default=1.0))
    for (name, figures), y, label_y in zip(lists.items(), heights, labels, strict=True):
        panel.plot(figures["coverage"], y, "o", markersize=9, color=colour_of(name))
        panel.annotate(
            name,
            (figures["coverage"], label_y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
        )
    panel.set_ylim(bottom=0.0)
    panel.margins(x=0.2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    style(panel, "NDCG@10 and coverage", "share of the catalogue in any top ten")


def in_groups(quality: Mapping[str, Any]) -> dict[str, Any]:
    """The rankings that fit beside each other, worst first."""
    names = [name for name in _IN_GROUPS if name in quality] or list(quality)[:6]
    names.sort(key=lambda name: quality[name].get("ndcg_at_10") or 0.0)
    return {name: quality[name] for name in names}
