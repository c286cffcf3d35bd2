"""One picture of a report: quality over time, freshness, load and versions, quality by quarter.

`timeline` of a report has lists of one length, None where nothing was measured: `t_s`, seconds
since the start; `ndcg_at_10`, by ranking, rolling; `events_per_s`; `learning_freshness_s`;
`counters_freshness_s`; `version`; `num_events`, how far the stream is. All but the first two may
be missing. Without a timeline the picture shows quality only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.picture_style import COLOURS, GREY, Series, colour_of, series, spread, style
from cluster.quality_panels import (
    draw_lists,
    draw_means,
    draw_quarters,
    draw_slices,
    in_groups,
)

Report = Mapping[str, Any]

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
        draw_quarters(panels[1, 1], quality)
    elif slices := report.get("slices"):
        panels = figure.subplots(2, 2)
        draw_means(panels[0, 0], quality)
        draw_quarters(panels[0, 1], in_groups(quality))
        draw_slices(panels[1, 0], slices, list(in_groups(quality)))
        draw_lists(panels[1, 1], report.get("lists", {}), quality)
    else:
        panels = figure.subplots(2, 1)
        draw_means(panels[0], quality)
        draw_quarters(panels[1], quality)
    figure.suptitle(_headline(report), x=0.06, ha="left", fontsize=19, fontweight="bold")
    figure.text(0.06, 0.012, _footer(report), fontsize=10, color=GREY, wrap=True)
    left, right = (0.06, 0.91) if timeline else (0.085, 0.97)  # room for labels beside the panels
    figure.subplots_adjust(left=left, right=right, top=0.88, bottom=0.09, wspace=0.4, hspace=0.36)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    figure.savefig(part, format="png")
    part.replace(path)


def _drift_s(timeline: Mapping[str, Any], drift_at: int | None) -> float | None:
    """When the stream reached the drift: by `num_events`, else by the rate of sending."""
    if drift_at is None:
        return None
    t_s, num_events = series(timeline["t_s"]), series(timeline.get("num_events", ()))
    if not len(num_events):
        rate = series(timeline.get("events_per_s", ()))
        num_events = np.cumsum(np.nan_to_num(rate) * np.diff(t_s[: len(rate)], prepend=0.0))
    reached = int(np.searchsorted(num_events, drift_at))
    return float(t_s[reached]) if reached < len(num_events) else None


def _draw_quality(panel: Any, timeline: Mapping[str, Any], drift_s: float | None) -> None:
    t_s = series(timeline["t_s"])
    curves = {name: series(values) for name, values in timeline["ndcg_at_10"].items()}
    for name, values in curves.items():
        width = 3.0 if name == "blend" else 1.8
        panel.plot(t_s, values, color=colour_of(name), linewidth=width)
    panel.set_ylim(bottom=0.0)
    panel.margins(x=0.0)
    style(panel, "Recommendation quality: rolling NDCG@10", "seconds")
    _mark_drift(panel, drift_s, label=True)
    ends = {name: _last(values) for name, values in curves.items()}
    _label_ends(panel, {name: y for name, y in ends.items() if y is not None})


def _draw_freshness(
    panel: Any, timeline: Mapping[str, Any], freshness: Mapping[str, Mapping[str, float]]
) -> None:
    t_s = series(timeline["t_s"])
    for name, colour in (("learning", COLOURS["learning"]), ("counters", COLOURS["blend"])):
        values = series(timeline.get(f"{name}_freshness_s", ()))
        end = _last(values)
        if end is not None:
            panel.plot(t_s, values, color=colour, linewidth=2.0)
            times = (f"{key} {value:.2g} s" for key, value in freshness.get(name, {}).items())
            _label_beside(panel, "\n".join([name, *times]), end, colour)
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0.05), max(high, 3.0))
    panel.margins(x=0.0)
    panel.axhline(1.0, color=GREY, linewidth=1.0, linestyle=":")
    panel.annotate(
        "1 s: promise for counters",
        (0.01, 1.0),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=11,
        color=GREY,
    )
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    style(panel, "Freshness: age of an event when all replicas use it", "seconds")


def _draw_load(panel: Any, timeline: Mapping[str, Any], drift_s: float | None) -> None:
    t_s = series(timeline["t_s"])
    rate = series(timeline.get("events_per_s", ()))
    if _last(rate) is not None:
        panel.fill_between(t_s, rate, color=COLOURS["content"], alpha=0.25, linewidth=0)
        panel.plot(t_s, rate, color=COLOURS["blend"], linewidth=1.8)
        panel.set_ylim(0.0, float(np.nanmax(rate)) * 1.25 or 1.0)
    versions = series(timeline.get("version", ()))
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
            color=COLOURS["learning"],
        )
        label = f"version\n{last_version:.0f}"
        _label_beside(panel, label, 0.93, COLOURS["learning"], y_coords="axes fraction")
    panel.margins(x=0.0)
    style(panel, "Events per second, and new versions served ( | )", "seconds")
    _mark_drift(panel, drift_s, label=False)


def _label_ends(panel: Any, ends: Mapping[str, float]) -> None:
    low, high = panel.get_ylim()
    positions = spread(list(ends.values()), gap=(high - low) * 0.062)
    for (name, value), position in zip(ends.items(), positions, strict=True):
        _label_beside(panel, f"{name} {value:.3f}", position, colour_of(name))


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


def _last(values: Series) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None
