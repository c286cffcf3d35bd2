import asyncio
import io

import numpy as np
import pytest
from rich.console import Console

from cluster import replay_view
from cluster.freshness import FreshnessProbe
from cluster.replay_view import ReplayView
from cluster.stream_replay import ReplayCounts, ScoredStream, StreamReplay
from recommender.metrics import ndcg_at_k


class Replay(StreamReplay):
    """A replay whose progress the test sets."""

    def __init__(self) -> None:
        self.counts = ReplayCounts(ok=9, failed=1, reads_checked=5, reads_violated=2)
        self.scored = ScoredStream()
        self.freshness = FreshnessProbe()
        self.num_done = 0
        self.model_version = 0

    def go_on(self, num_done: int, version: int, **ranks: float) -> None:
        self.num_done, self.model_version = num_done, version
        self.scored.add(num_done, ranks)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_view, "_REFRESH_S", 0.01)
    monkeypatch.setattr(replay_view, "_PLAIN_EVERY_S", 0.0)


def console_of(width: int = 120, *, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def watched(replay: Replay, console: Console) -> ReplayView:
    view = ReplayView(replay, 40, console)
    async with view.live():
        await asyncio.sleep(0.03)
        replay.go_on(10, 1, blend=1.0, rules=11.0)
        await asyncio.sleep(0.03)
        replay.freshness.acknowledged({"0": 0}, 1)
        replay.freshness.answered("r", [0], [0])
        replay.go_on(40, 2, blend=3.0, rules=1.0, net=2.0)
    return view


async def test_the_timeline_has_every_series_at_every_moment() -> None:
    view = await watched(Replay(), console_of(is_terminal=False))
    line = view.timeline
    num_moments = len(line["t_s"])
    assert num_moments >= 3
    series = [line[name] for name in line if name != "ndcg_at_10"] + [*line["ndcg_at_10"].values()]
    assert {len(values) for values in series} == {num_moments}
    assert line["t_s"] == sorted(line["t_s"])


async def test_the_end_of_the_replay_is_its_last_moment() -> None:
    line = (await watched(Replay(), console_of(is_terminal=False))).timeline
    assert (line["num_events"][-1], line["version"][-1]) == (40, 2)
    assert line["ndcg_at_10"]["net"] == [None] * (len(line["t_s"]) - 1) + [1 / np.log2(3)]
    assert line["ndcg_at_10"]["blend"][-1] == pytest.approx((1.0 + 0.5) / 2)
    assert line["ndcg_at_10"]["rules"][-1] == pytest.approx((0.0 + 1.0) / 2)
    assert line["learning_freshness_s"][0] is None
    assert line["learning_freshness_s"][-1] == pytest.approx(0.0, abs=1.0)


async def test_speed_is_of_the_time_since_the_moment_before() -> None:
    line = (await watched(Replay(), console_of(is_terminal=False))).timeline
    assert line["events_per_s"][0] == 0.0
    assert line["events_per_s"][-1] > 0.0


async def test_the_rolling_quality_forgets_what_is_long_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_view, "_ROLLING", 3)
    replay = Replay()
    for rank in (50.0, 50.0, 1.0, 2.0, 3.0):
        replay.go_on(1, 1, blend=rank)
    expected = ndcg_at_k(np.array([1.0, 2.0, 3.0]), 10).mean()
    assert ReplayView(replay, 5, console_of(is_terminal=False))._rolling() == {
        "blend": pytest.approx(expected)
    }


async def test_without_a_terminal_lines_are_printed_and_the_last_is_the_end() -> None:
    console = console_of(width=60, is_terminal=False)
    await watched(Replay(), console)
    lines = written(console).splitlines()
    assert "40 of 40 events  version 2  counters p50 0.0" in lines[-1]
    assert "blend=0.750" in lines[-1]
    assert "\x1b" not in written(console)


async def test_a_terminal_shows_what_matters() -> None:
    console = console_of(is_terminal=True)
    await watched(Replay(), console)
    screen = written(console)
    for text in ("own click missing", "2 of 5", "requests failed", "1 of 10", "40/40", "0.7500"):
        assert text in screen


async def test_a_replay_that_fails_is_recorded_to_its_end() -> None:
    replay = Replay()
    view = ReplayView(replay, 40, console_of(is_terminal=False))

    async def fail() -> None:
        async with view.live():
            replay.go_on(7, 1, blend=1.0)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        await fail()
    assert view.timeline["num_events"][-1] == 7
