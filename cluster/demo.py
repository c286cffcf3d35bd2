"""`rheos demo`: the main job, from an empty machine to a report.

Warms the model on the first part of a stream, replays the rest over HTTP while it trains and
serves, and compares four rankings on the very same events.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from cluster.config import Settings
from cluster.http_client import ServiceClient, batches, event_body, item_body
from cluster.launch import launch, shut_down
from cluster.local_cluster import ClusterRecord
from cluster.machine import machine
from cluster.replay_view import ReplayView
from cluster.report import count_errors, draw_report, quality_table, summary_table, write_report
from cluster.stream_replay import FrozenModel, StreamReplay
from recommender.datasets import Dataset
from recommender.metrics import quality_of
from recommender.named_arrays import under
from recommender.scorer import Scorer

if TYPE_CHECKING:
    from actors.messages import VersionInfo

_CATCH_UP_S = 60.0
_WARMUP_TIMEOUT_S = 600.0
_NUM_QUARTERS = 4


@dataclass(frozen=True)
class DemoOptions:
    """What the command line chooses."""

    events_per_s: float = 250.0
    warm_share: float = 0.5
    max_events: int | None = None
    out_dir: Path = Path("demo-out")
    keep: bool = False
    drift_at: int | None = None
    command: str = "rheos demo"
    seed: int = 0


@dataclass
class Stopwatch:
    """How long each phase took, for the report."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def run_demo(dataset: Dataset, settings: Settings, options: DemoOptions, console: Console) -> int:
    """Run it all; returns the exit code: 1 if a count does not add up.

    Whatever happens, also Ctrl-C, the cluster is stopped again unless `options.keep`.
    """
    is_done = False
    watch = Stopwatch()
    try:
        with watch.phase("start_cluster"), console.status("starting ...") as status:
            record = launch(settings, train=False, say=status.update)
        console.print(f"serving at [bold]{record.http_url}[/], Ray at {record.dashboard_url}")
        report = asyncio.run(_Demo(dataset, settings, options, console, record, watch).run())
        is_done = True
    finally:
        if not (is_done and options.keep):
            shut_down(settings)
    return _conclude(report, options, console, record)


class _Demo:
    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        options: DemoOptions,
        console: Console,
        record: ClusterRecord,
        watch: Stopwatch,
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._options = options
        self._console = console
        self._record = record
        self._watch = watch
        self._num_events = min(len(dataset), options.max_events or len(dataset))
        self._num_warm = int(self._num_events * options.warm_share)

    async def run(self) -> dict[str, Any]:
        async with ServiceClient(self._record.http_url) as client:
            with self._watch.phase("ingest"):
                await self._ingest(client)
            with self._watch.phase("warm_up"):
                await self._warm_up(client)
            scorer = await self._frozen_scorer()
            model, buffer = self._settings.model, self._settings.buffer
            frozen = FrozenModel(
                scorer,
                self._dataset,
                self._num_warm,
                window=model.window,
                half_lives=model.half_lives,
                history_length=buffer.history_length,
            )
            replay = StreamReplay(
                client,
                self._dataset,
                frozen,
                start=self._num_warm,
                events_per_s=self._options.events_per_s,
            )
            view = ReplayView(replay, self._num_events - self._num_warm, self._console)
            with self._watch.phase("stream"):
                async with view.live():
                    await replay.run(self._num_events)
            with self._watch.phase("catch_up"):
                await self._catch_up(client, replay)
            return await self._report(replay, view)

    async def _ingest(self, client: ServiceClient) -> None:
        """Put all items and post the first part of the stream."""
        items = self._dataset.items
        with _progress(self._console) as progress:
            bar = progress.add_task("items", total=len(items))
            for batch in batches(items, 250):
                body = {"items": [item_body(item) for item in batch]}
                await client.request("PUT", "/v1/items", body)
                progress.advance(bar, len(batch))
            encoding = progress.add_task("item texts read by BERT", total=len(items))
            while (known := await _num_retrievable(client)) < len(items):
                progress.update(encoding, completed=known)
                await asyncio.sleep(0.2)
            progress.update(encoding, completed=len(items))
            bar = progress.add_task("first events", total=self._num_warm)
            for events in batches(self._dataset.events(0, self._num_warm), 1_000):
                body = {"events": [event_body(event) for event in events]}
                await client.request("POST", "/v1/events", body)
                progress.advance(bar, len(events))

    async def _warm_up(self, client: ServiceClient) -> None:
        """Start the training job and wait until its first version is served."""
        from cluster.system import start_training

        await asyncio.to_thread(start_training, self._record)
        deadline = time.monotonic() + _WARMUP_TIMEOUT_S
        with self._console.status("training job submitted; learning the first events ..."):
            while (await client.model())["model_version"] < 1:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no version after {_WARMUP_TIMEOUT_S:.0f} s")
                await asyncio.sleep(0.2)

    async def _frozen_scorer(self) -> Scorer:
        from actors.parameter_store_client import ParameterStoreClient
        from actors.payload import MODEL

        store = ParameterStoreClient.connect(timeout_s=30.0)
        payload = await store.read(1)
        state = {name: np.array(value) for name, value in under(MODEL, payload).items()}
        return Scorer.from_state(state, self._settings.model)

    async def _catch_up(self, client: ServiceClient, replay: StreamReplay) -> None:
        """Ask until every replica has learned from the last event."""
        deadline = time.monotonic() + _CATCH_UP_S
        while replay.freshness.num_open("learning") and time.monotonic() < deadline:
            answer = await client.model()
            replay.freshness.answered(
                answer["replica"], answer["trained_through"], answer["counters_through"]
            )
            await asyncio.sleep(0.1)

    async def _report(self, replay: StreamReplay, view: ReplayView) -> dict[str, Any]:
        from actors.event_buffer_client import EventBufferClient
        from actors.parameter_store_client import ParameterStoreClient

        buffer = EventBufferClient.connect(self._settings.buffer.num_shards, timeout_s=30.0)
        store = ParameterStoreClient.connect(timeout_s=30.0)
        logged = sum(status.next_offset for status in await buffer.statuses())
        counts = replay.counts
        latencies = np.array(counts.latencies_ms or [0.0])
        stream_events = self._num_events - self._num_warm
        quarters = np.array(replay.scored.offsets) * _NUM_QUARTERS // stream_events
        return {
            "events": {
                "sent": counts.sent,
                "acknowledged": counts.acknowledged,
                "duplicates": counts.duplicates,
                "logged": logged - self._num_warm,
            },
            "read_your_writes": {
                "checked": counts.reads_checked,
                "violations": counts.reads_violated,
                "degraded": counts.reads_degraded,
                "examples": counts.violations[:10],
            },
            "serving_skew": {"checked": counts.skew_checked, "violations": counts.skew_violated},
            "freshness_s": {
                name: replay.freshness.percentiles(name) for name in ("counters", "learning")
            },
            "unfinished": {
                name: replay.freshness.num_open(name) for name in ("counters", "learning")
            },
            "quality": {
                name: quality_of(np.array(ranks), quarters, tuple(range(1, _NUM_QUARTERS)))
                for name, ranks in replay.scored.ranks.items()
            },
            "scored": {"events": len(replay.scored.offsets), "skipped": counts.skipped},
            "versions": version_counts(await store.list_versions()),
            "requests": {
                "ok": counts.ok,
                "failed": counts.failed,
                "p50_ms": float(np.percentile(latencies, 50)),
                "p99_ms": float(np.percentile(latencies, 99)),
                "errors": counts.errors[:10],
            },
            "environment": self._environment(replay),
            "timeline": view.timeline,
            "drift_at": self._drift_in_stream(),
        }

    def _drift_in_stream(self) -> int | None:
        drift_at = self._options.drift_at
        return None if drift_at is None else drift_at - self._num_warm

    def _environment(self, replay: StreamReplay) -> dict[str, Any]:
        import ray

        return {
            "command": self._options.command,
            "dataset": self._dataset.name,
            "warm_events": self._num_warm,
            "stream_events": self._num_events - self._num_warm,
            "events_per_s": self._options.events_per_s,
            "replicas": replay.freshness.num_replicas,
            "seed": self._options.seed,
            **machine(),
            "ray": ray.__version__,
            **{f"{name}_s": value for name, value in self._watch.seconds.items()},
        }


def version_counts(newest_first: Sequence[VersionInfo]) -> dict[str, int]:
    """What became of the versions, and how many events the guard keeps from being learned."""
    if not newest_first:
        return {"published": 0, "rejected": 0, "rolled_back": 0, "adapted": 0, "quarantined": 0}
    newest = newest_first[0].manifest
    decided = {
        name: int(newest.metrics.get(f"num_{name}", 0))
        for name in ("rejected", "rolled_back", "adapted")
    }
    return {
        "published": newest.version - decided["rejected"],
        **decided,
        "quarantined": sum(last - first + 1 for _, first, last in newest.quarantined),
    }


async def _num_retrievable(client: ServiceClient) -> int:
    answer = await client.request("GET", "/v1/items?limit=1")
    return int(answer["num_items"])


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _conclude(
    report: dict[str, Any], options: DemoOptions, console: Console, record: ClusterRecord
) -> int:
    options.out_dir.mkdir(parents=True, exist_ok=True)
    report_path, picture_path = options.out_dir / "report.json", options.out_dir / "report.png"
    write_report(report, report_path)
    draw_report(report, picture_path)
    console.print(summary_table(report))
    console.print(quality_table(report))
    console.print(f"report: {report_path}   picture: {picture_path}")
    errors = count_errors(report)
    for error in errors:
        console.print(f"[red]does not add up:[/] {error}")
    _say_how_to_go_on(options, console, record)
    return 1 if errors else 0


def _say_how_to_go_on(options: DemoOptions, console: Console, record: ClusterRecord) -> None:
    if options.keep:
        console.print(
            f"still running at {record.http_url}. Try:\n"
            f"  rheos status\n"
            f"  curl -s {record.http_url}/v1/recommend -H 'content-type: application/json' "
            """-d '{"user_id": "1", "k": 5}'\n"""
            f"  rheos down"
        )
    else:
        console.print(
            "everything is stopped; `rheos demo --keep` leaves it running, and `rheos up`"
        )
        console.print("starts an empty system of your own.")


def temporary_storage() -> Path:
    """A new folder for a demo's storage; removed by `remove_storage`."""
    return Path(tempfile.mkdtemp(prefix="rheos-demo-"))


def remove_storage(data_dir: Path) -> None:
    """Remove a demo's storage."""
    shutil.rmtree(data_dir, ignore_errors=True)
