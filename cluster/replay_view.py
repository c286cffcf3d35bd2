"""The live view of a replay: progress, speed, freshness, and the rankings side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cluster.stream_replay import StreamReplay
from recommender.metrics import ndcg_at_k

_REFRESH_S = 1.0
_PLAIN_EVERY_S = 15.0
_ROLLING = 500


class ReplayView:
    """Looks at a replay once a second; keeps what it saw as the report's timeline."""

    def __init__(self, replay: StreamReplay, num_events: int, console: Console) -> None:
        self._replay = replay
        self._num_events = num_events
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]stream"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("stream", total=num_events)
        self._began_s = 0.0
        self._last: tuple[float, int] = (0.0, 0)
        self._last_plain_s = 0.0
        self.timeline: dict[str, Any] = {
            "t_s": [],
            "num_events": [],
            "events_per_s": [],
            "version": [],
            "learning_freshness_s": [],
            "counters_freshness_s": [],
            "ndcg_at_10": {},
        }

    @asynccontextmanager
    async def live(self) -> AsyncIterator[None]:
        """Show and record while the body runs."""
        self._began_s = self._last_plain_s = time.monotonic()
        self._last = (self._began_s, 0)
        if self._console.is_terminal:
            with Live(self._screen(), console=self._console, refresh_per_second=4) as live:
                async with self._ticking(lambda: live.update(self._screen())):
                    yield
        else:
            async with self._ticking(self._print_line):
                yield

    @asynccontextmanager
    async def _ticking(self, show: Any) -> AsyncIterator[None]:
        async def tick() -> None:
            while True:
                await asyncio.sleep(_REFRESH_S)
                self._record()
                show()

        task = asyncio.create_task(tick())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._record()
            show()

    def _record(self) -> None:
        now_s, line, replay = time.monotonic(), self.timeline, self._replay
        last_s, last_done = self._last
        self._last = (now_s, replay.num_done)
        self._progress.update(self._bar, completed=replay.num_done)
        line["t_s"].append(round(now_s - self._began_s, 2))
        line["num_events"].append(replay.num_done)
        line["events_per_s"].append((replay.num_done - last_done) / max(now_s - last_s, 1e-6))
        line["version"].append(replay.model_version)
        for name in ("learning", "counters"):
            recent = replay.freshness.percentiles(name, last=100)
            line[f"{name}_freshness_s"].append(recent["p50"])
        for name, value in self._rolling().items():
            series = line["ndcg_at_10"].setdefault(name, [None] * (len(line["t_s"]) - 1))
            series.append(value)

    def _rolling(self) -> dict[str, float]:
        return {
            name: float(ndcg_at_k(np.array(ranks[-_ROLLING:]), 10).mean())
            for name, ranks in self._replay.scored.ranks.items()
        }

    def _screen(self) -> Group:
        replay = self._replay
        facts = Table.grid(padding=(0, 3))
        facts.add_row("events/s", f"{(self.timeline['events_per_s'] or [0.0])[-1]:.0f}")
        facts.add_row("version", str(replay.model_version))
        facts.add_row("replicas", str(replay.freshness.num_replicas))
        facts.add_row("counters freshness", _seconds(replay.freshness.percentiles("counters")))
        facts.add_row("learning freshness", _seconds(replay.freshness.percentiles("learning")))
        counts = replay.counts
        facts.add_row("own click missing", f"{counts.reads_violated} of {counts.reads_checked}")
        facts.add_row("requests failed", f"{counts.failed} of {counts.ok + counts.failed}")
        ranking = Table(title=f"NDCG@10, {len(replay.scored.offsets)} events predicted")
        for heading in ("ranking", "so far", f"last {_ROLLING}"):
            ranking.add_column(heading)
        rolling = self._rolling()
        for name, ranks in replay.scored.ranks.items():
            mean = float(ndcg_at_k(np.array(ranks), 10).mean())
            ranking.add_row(name, f"{mean:.4f}", f"{rolling[name]:.4f}")
        return Group(self._progress, facts, ranking)

    def _print_line(self) -> None:
        now_s, replay = time.monotonic(), self._replay
        is_end = replay.num_done >= self._num_events
        if not is_end and now_s - self._last_plain_s < _PLAIN_EVERY_S:
            return
        self._last_plain_s = now_s
        quality = " ".join(f"{name}={value:.3f}" for name, value in self._rolling().items())
        self._console.print(
            f"{now_s - self._began_s:5.0f} s  {replay.num_done:>6} of {self._num_events} events  "
            f"version {replay.model_version}  "
            f"counters {_seconds(replay.freshness.percentiles('counters'))}  "
            f"learning {_seconds(replay.freshness.percentiles('learning'))}  {quality}",
            soft_wrap=True,
            highlight=False,
        )


def _seconds(percentiles: dict[str, float | None]) -> str:
    if percentiles["p50"] is None or percentiles["p99"] is None:
        return "-"
    return f"p50 {percentiles['p50']:.2f} s, p99 {percentiles['p99']:.2f} s"
