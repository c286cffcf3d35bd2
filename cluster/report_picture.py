"""One picture of a report: quality over time, freshness, load and versions, quality by quarter.

`timeline` of a report has lists of one length, None where nothing was measured: `t_s`, seconds
since the start; `ndcg_at_10`, by ranking, rolling; `events_per_s`; `learning_freshness_s`;
`counters_freshness_s`; `version`; `num_events`, how far the stream is. All but the first two may
be missing. Without a timeline the picture shows quality only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Report = Mapping[str, Any]
Series = NDArray[np.float64]

# Okabe and Ito 2008: told apart by colour-blind readers, and in print by lightness.
_COLOURS = {
    "blend": "#0072B2",
    "learning": "#D55E00",
    "net": "#D55E00",
    "rules": "#009E73",
    "popularity": "#777777",
    "frozen": "#E69F00",
    "content": "#56B4E9",
    "item_knn": "#CC79A7",
    "ease": "#56B4E9",
    "blend_ials": "#0072B2",
    "ials": "#F0E442",
    "trending": "#999999",
}
_IN_GROUPS = ("popularity", "rules", "frozen", "learning", "blend")
_OTHER_COLOUR = "#000000"
_GREY = "#666666"
_SIZE_INCHES = (16.0, 10.0)
_DOTS_PER_INCH = 100


def draw_report(report: Report, path: Path) -> None:
    """Draw a report as a PNG of 1600 x 1000 pixels; a reader sees the old file or the new one."""
    # Slow to import, and the object interface leaves the caller's pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    quality: Mapping[str, Any] = report.get("quality", {})
    if timeline := report.get("timeline"):
        panels = figure.subplots(2, 2)
        drift_s = _drift_s(timeline, report.get("drift_at"))
        _draw_quality(panels[0, 0], timeline, drift_s)
        _draw_freshness(panels[0, 1], timeline, report.get("freshness_s", {}))
        _draw_load(panels[1, 0], timeline, drift_s)
        _draw_quarters(panels[1, 1], quality)
    elif slices := report.get("slices"):
        panels = figure.subplots(2, 2)
        _draw_means(panels[0, 0], quality)
        _draw_quarters(panels[0, 1], _some(quality))
        _draw_slices(panels[1, 0], slices, list(_some(quality)))
        _draw_lists(panels[1, 1], report.get("lists", {}), quality)
    else:
        panels = figure.subplots(2, 1)
        _draw_means(panels[0], quality)
        _draw_quarters(panels[1], quality)
    figure.suptitle(_headline(report), x=0.06, ha="left", fontsize=19, fontweight="bold")
    figure.text(0.06, 0.012, _footer(report), fontsize=10, color=_GREY, wrap=True)
    left, right = (0.06, 0.91) if timeline else (0.085, 0.97)  # room for labels beside the panels
    figure.subplots_adjust(left=left, right=right, top=0.88, bottom=0.09, wspace=0.4, hspace=0.36)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    figure.savefig(part, format="png")
    part.replace(path)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near the values, in their order, no two nearer than `gap`."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    positions = list(values)
    for lower, upper in pairwise(order):
        positions[upper] = max(positions[upper], positions[lower] + gap)
    if order:  # all were pushed up: back by half of the largest push
        shift = max(positions[index] - values[index] for index in order) / 2
        positions = [position - shift for position in positions]
    return positions


def _drift_s(timeline: Mapping[str, Any], drift_at: int | None) -> float | None:
    """When the stream reached the drift: by `num_events`, else by the rate of sending."""
    if drift_at is None:
        return None
    t_s, num_events = _series(timeline["t_s"]), _series(timeline.get("num_events", ()))
    if not len(num_events):
        rate = _series(timeline.get("events_per_s", ()))
        num_events = np.cumsum(np.nan_to_num(rate) * np.diff(t_s[: len(rate)], prepend=0.0))
    reached = int(np.searchsorted(num_events, drift_at))
    return float(t_s[reached]) if reached < len(num_events) else None


def _draw_quality(panel: Any, timeline: Mapping[str, Any], drift_s: float | None) -> None:
    t_s = _series(timeline["t_s"])
    curves = {name: _series(values) for name, values in timeline["ndcg_at_10"].items()}
    for name, values in curves.items():
        width = 3.0 if name == "blend" else 1.8
        panel.plot(t_s, values, color=_colour(name), linewidth=width)
    panel.set_ylim(bottom=0.0)
    panel.margins(x=0.0)
    _style(panel, "Recommendation quality: rolling NDCG@10", "seconds")
    _mark_drift(panel, drift_s, label=True)
    ends = {name: _last(values) for name, values in curves.items()}
    _label_ends(panel, {name: y for name, y in ends.items() if y is not None})


def _draw_freshness(
    panel: Any, timeline: Mapping[str, Any], freshness: Mapping[str, Mapping[str, float]]
) -> None:
    t_s = _series(timeline["t_s"])
    for name, colour in (("learning", _COLOURS["learning"]), ("counters", _COLOURS["blend"])):
        values = _series(timeline.get(f"{name}_freshness_s", ()))
        end = _last(values)
        if end is not None:
            panel.plot(t_s, values, color=colour, linewidth=2.0)
            times = (f"{key} {value:.2g} s" for key, value in freshness.get(name, {}).items())
            _label_beside(panel, "\n".join([name, *times]), end, colour)
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0.05), max(high, 3.0))
    panel.margins(x=0.0)
    panel.axhline(1.0, color=_GREY, linewidth=1.0, linestyle=":")
    panel.annotate(
        "1 s: promise for counters",
        (0.01, 1.0),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=11,
        color=_GREY,
    )
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    _style(panel, "Freshness: age of an event when all replicas use it", "seconds")


def _draw_load(panel: Any, timeline: Mapping[str, Any], drift_s: float | None) -> None:
    t_s = _series(timeline["t_s"])
    rate = _series(timeline.get("events_per_s", ()))
    if _last(rate) is not None:
        panel.fill_between(t_s, rate, color=_COLOURS["content"], alpha=0.25, linewidth=0)
        panel.plot(t_s, rate, color=_COLOURS["blend"], linewidth=1.8)
        panel.set_ylim(0.0, float(np.nanmax(rate)) * 1.25 or 1.0)
    versions = _series(timeline.get("version", ()))
    last_version = _last(versions)
    if last_version is not None:
        new_t_s = t_s[np.diff(versions, prepend=np.nan) > 0]
        panel.plot(
            new_t_s,
            np.full(len(new_t_s), 0.93),
            transform=panel.get_xaxis_transform(),
            marker="|",
            markersize=13,
            markeredgewidth=1.6,
            linestyle="none",
            color=_COLOURS["learning"],
        )
        label = f"version\n{last_version:.0f}"
        _label_beside(panel, label, 0.93, _COLOURS["learning"], y_coords="axes fraction")
    panel.margins(x=0.0)
    _style(panel, "Events per second, and new versions served ( | )", "seconds")
    _mark_drift(panel, drift_s, label=False)


def _draw_means(panel: Any, quality: Mapping[str, Any]) -> None:
    names = sorted(quality, key=lambda name: quality[name].get("ndcg_at_10") or 0.0)
    values = [quality[name].get("ndcg_at_10") or 0.0 for name in names]
    bars = panel.barh(names, values, color=[_colour(name) for name in names], height=0.7)
    panel.bar_label(bars, fmt="%.4f", padding=5, fontsize=12)
    panel.tick_params(axis="y", labelsize=13, length=0)
    panel.margins(x=0.08)
    _style(panel, "NDCG@10 over the stream", "", grid_axis="x")


def _draw_quarters(panel: Any, quality: Mapping[str, Any]) -> None:
    """A group of bars a ranking, the quarters from left to right and from light to dark."""
    names = [name for name in quality if quality[name].get("ndcg_at_10_by_quarter")]
    names.sort(key=lambda name: quality[name].get("ndcg_at_10") or 0.0)
    for position, name in enumerate(names):
        values = _series(quality[name]["ndcg_at_10_by_quarter"])
        count = len(values)
        for quarter, value in enumerate(values):
            x = position + (quarter - (count - 1) / 2) * 0.8 / count
            colour = _lighter(_colour(name), 0.65 * (1 - (quarter + 1) / count))
            panel.bar(x, value, width=0.74 / count, color=colour)
            if quarter == count - 1:
                panel.text(x, value, f"{value:.3f}", ha="center", va="bottom", fontsize=11)
    panel.set_xticks(range(len(names)), names)
    panel.tick_params(axis="x", labelsize=13, length=0)
    _style(panel, "NDCG@10 by quarter of the stream, first (light) to last (dark)", "")


def _draw_slices(panel: Any, slices: Mapping[str, Any], names: Sequence[str]) -> None:
    """A group of bars a slice, the rankings from worst to best."""
    shown = {name: part for name, part in slices.items() if part["num_events"]}
    width = 0.84 / max(1, len(names))
    for position, part in enumerate(shown.values()):
        for index, name in enumerate(names):
            x = position + (index - (len(names) - 1) / 2) * width
            panel.bar(x, part["ndcg_at_10"].get(name, 0.0), width=width, color=_colour(name))
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
            color=_colour(name),
        )
    _style(panel, "NDCG@10 by slice, and events in it", "")


def _draw_lists(panel: Any, lists: Mapping[str, Any], quality: Mapping[str, Any]) -> None:
    """Each ranking as a point: right is more of the catalogue, up is better."""
    for name, figures in lists.items():
        x, y = figures["coverage"], quality[name].get("ndcg_at_10") or 0.0
        panel.plot(x, y, "o", markersize=9, color=_colour(name))
        panel.annotate(
            name, (x, y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=11
        )
    panel.set_ylim(bottom=0.0)
    panel.margins(x=0.2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _style(panel, "NDCG@10 and coverage", "share of the catalogue in any top ten")


def _some(quality: Mapping[str, Any]) -> dict[str, Any]:
    """The rankings that fit beside each other, worst first."""
    names = [name for name in _IN_GROUPS if name in quality] or list(quality)[:6]
    names.sort(key=lambda name: quality[name].get("ndcg_at_10") or 0.0)
    return {name: quality[name] for name in names}


def _label_ends(panel: Any, ends: Mapping[str, float]) -> None:
    low, high = panel.get_ylim()
    positions = spread(list(ends.values()), gap=(high - low) * 0.062)
    for (name, value), position in zip(ends.items(), positions, strict=True):
        _label_beside(panel, f"{name} {value:.3f}", position, _colour(name))


def _label_beside(panel: Any, text: str, y: float, colour: str, y_coords: str = "data") -> None:
    """Write right of the panel; a curve labelled at its end needs no legend."""
    panel.annotate(
        text,
        (1.0, y),
        xycoords=("axes fraction", y_coords),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=12,
        fontweight="bold",
        color=colour,
        annotation_clip=False,
    )


def _mark_drift(panel: Any, drift_s: float | None, label: bool) -> None:
    if drift_s is None:
        return
    panel.axvline(drift_s, color="black", linewidth=1.4, linestyle="--")
    if label:
        panel.annotate(
            "tastes change",
            (drift_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(5, -14),
            textcoords="offset points",
            fontsize=12,
        )


def _style(panel: Any, title: str, x_label: str, grid_axis: str = "y") -> None:
    panel.set_title(title, loc="left", fontsize=14, pad=10)
    panel.set_xlabel(x_label, fontsize=11, color=_GREY)
    panel.grid(axis=grid_axis, color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _headline(report: Report) -> str:
    parts = ["rheos"]
    if events := report.get("events"):
        parts.append(
            f"{events['sent']:,} events, {events['acknowledged'] - events['logged']:,} lost"
        )
    if versions := report.get("versions"):
        parts.append(f"{versions['published']:,} versions")
    if requests := report.get("requests"):
        parts.append(f"{requests['ok']:,} answers, p99 {requests['p99_ms']:.0f} ms")
    if len(parts) == 1:
        parts.append("progressive validation")
    return "   ·   ".join(parts)


def _footer(report: Report) -> str:
    return "   ".join(f"{key}: {value}" for key, value in report.get("environment", {}).items())


def _series(values: Sequence[float | None]) -> Series:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _last(values: Series) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _colour(name: str) -> str:
    return _COLOURS.get(name, _OTHER_COLOUR)


def _lighter(colour: str, share: float) -> tuple[float, ...]:
    """The colour mixed with a share of white; opaque, unlike alpha, over grid lines."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(channel + (1.0 - channel) * share for channel in channels)
