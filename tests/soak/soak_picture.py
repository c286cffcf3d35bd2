"""The picture of a soak: memory, handles and disk over time, a line for each process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vital_signs import MIB, RAYS_OWN, DiskSample, Sample

from cluster.picture_style import style


def draw_soak(
    samples: Sequence[Sample], disk: Sequence[DiskSample], kills_s: Sequence[float], path: Path
) -> None:
    """Draw a PNG of 1600 x 1000 pixels; dotted lines are kills."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.0, 10.0), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _draw_processes(panels[0, 0], samples, "rss_bytes", MIB)
    _draw_processes(panels[0, 1], samples, "num_handles")
    _draw_processes(panels[1, 0], samples, "num_threads")
    minutes = [d.at_s / 60 for d in disk]
    for label, name in (("store", "store_bytes"), ("log", "log_bytes"), ("Ray", "ray_log_bytes")):
        panels[1, 1].plot(minutes, [getattr(d, name) / MIB for d in disk], label=label)
    panels[1, 1].legend(frameon=False)
    titles = ("Resident memory, MiB", "Open handles", "Threads", "On disk, MiB")
    for panel, title in zip(panels.flat, titles, strict=True):
        for at_s in kills_s:
            panel.axvline(at_s / 60, color="#dddddd", linewidth=0.8, linestyle=":")
        style(panel, title, "minutes")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=8, frameon=False)
    figure.subplots_adjust(left=0.05, right=0.98, top=0.95, bottom=0.13, hspace=0.3, wspace=0.12)
    figure.savefig(path, format="png")


def _draw_processes(panel: Any, samples: Sequence[Sample], name: str, unit: float = 1.0) -> None:
    by_process: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.part, sample.pid].append(sample)
    parts = sorted({part for part, _ in by_process})
    named: set[str] = set()
    for (part, _), found in sorted(by_process.items()):
        panel.plot(
            [sample.at_s / 60 for sample in found],
            [getattr(sample, name) / unit for sample in found],
            color=f"C{parts.index(part) % 10}",
            linestyle="--" if part in RAYS_OWN else "-",
            label=None if part in named else part,
        )
        named.add(part)
    panel.set_ylim(bottom=0.0)
