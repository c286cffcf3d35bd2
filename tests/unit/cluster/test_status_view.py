"""The lines of `rheos status`, for parts that are well, that lag, and that do not answer."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.status_view import PartLine, part_lines
from cluster.system import SystemStatus

NOW_MS = 1_000_000
MODEL = {"model_version": 3, "staleness_ms": 2_500}


def shard(next_offset: int, **changes: Any) -> dict[str, Any]:
    """What a shard says."""
    said = {
        "state": "ready",
        "reason": "",
        "next_offset": next_offset,
        "num_users": 12,
        "pending_events": 0,
        "memory_bytes": 80_000_000,
        "cut_bytes": 0,
        "warning": "",
        "counted_bytes": 30_000_000,
    }
    return said | changes


def actors(**changes: Any) -> dict[str, Any]:
    """What all actors of a system say that is well, and has learned all events but 30."""
    said: dict[str, Any] = {
        "event_buffer_0": shard(1_500),
        "event_buffer_1": shard(20),
        "item_catalog": {
            "state": "ready",
            "reason": "",
            "num_items": 40,
            "num_pending": 0,
            "memory_bytes": 740_000_000,
        },
        "item_statistics": {
            "num_counted": 1_520,
            "num_unknown": 0,
            "counters_through": [1_499, 19],
            "last_error": "",
            "memory_bytes": 90_000_000,
        },
        "parameter_store": {
            "state": "ready",
            "reason": "",
            "warning": "",
            "head": {"manifest": {"version": 3, "trained_through": [1_479, 9]}},
            "num_versions": 2,
            "memory_bytes": 130_000_000,
        },
        "keeper": {
            "watches": ["a", "b"],
            "training_job": "RUNNING",
            "training_job_id": "rheos-training-7",
            "deeds": [],
        },
    }
    return said | changes


def lines(model: dict[str, Any] | None = MODEL, **changes: Any) -> dict[str, PartLine]:
    """The lines by part."""
    status = SystemStatus(actors(**changes), {"RUNNING": 2}, "RUNNING")
    return {line.part: line for line in part_lines(status, model, NOW_MS)}


def test_every_part_has_one_line_with_its_figures() -> None:
    assert [(line.part, line.state, line.figures) for line in lines().values()] == [
        ("serving", "RUNNING", "replicas: 2 running; version 3, staleness 2.5 s"),
        (
            "event_buffer_0",
            "ready",
            "1,500 events of 12 users, 0 on the way to the disk, 80 MB, 30 MB of them bounded",
        ),
        (
            "event_buffer_1",
            "ready",
            "20 events of 12 users, 0 on the way to the disk, 80 MB, 30 MB of them bounded",
        ),
        ("item_catalog", "ready", "40 items, all texts read, 740 MB"),
        ("item_statistics", "ready", "1,520 events counted, lag 0 events, 90 MB"),
        ("parameter_store", "ready", "head is version 3, 2 kept, 130 MB"),
        ("keeper", "ready", "watches 2 actors, 0 deeds"),
        ("training", "RUNNING", "rheos-training-7, weights lag 30 events"),
    ]


@pytest.mark.parametrize("name", list(actors()))
def test_a_part_that_does_not_answer_says_so_and_spoils_no_other(name: str) -> None:
    silent: dict[str, Any] = {name: "ShardUnavailable: no answer within 3 s"}
    found = lines(**silent)
    assert found[name] == PartLine(name, "silent", "ShardUnavailable: no answer within 3 s")
    assert [part for part, line in found.items() if line.state == "silent"] == [name]


def test_a_service_that_does_not_answer_is_seen() -> None:
    assert lines(model=None)["serving"].figures == "replicas: 2 running; HTTP does not answer"


def test_before_the_first_version_nothing_lags() -> None:
    store = actors()["parameter_store"] | {"head": None, "num_versions": 0}
    found = lines(parameter_store=store)
    assert found["parameter_store"].figures == "no version yet, 0 kept, 130 MB"
    assert found["training"].figures == "rheos-training-7"


def test_a_failed_shard_gives_its_reason_first() -> None:
    line = lines(event_buffer_1=shard(0, state="failed", reason="log damaged"))["event_buffer_1"]
    assert (line.state, line.figures.partition(";")[0]) == ("failed", "log damaged")


def test_a_shard_that_cannot_compact_says_so_first() -> None:
    line = lines(event_buffer_1=shard(20, warning="compaction failed: no space"))["event_buffer_1"]
    assert line.state == "ready"
    assert line.figures.startswith("compaction failed: no space; 20 events")


def test_the_keepers_newest_deeds_come_first_and_are_few() -> None:
    deeds = [f"{NOW_MS - age_s * 1_000} deed {age_s}" for age_s in (300, 50, 40, 1)]
    keeper = actors()["keeper"] | {"deeds": deeds}
    assert lines(keeper=keeper)["keeper"].figures == (
        "watches 2 actors, 4 deeds; 1.0 s ago: deed 1; 40.0 s ago: deed 40; 50.0 s ago: deed 50"
    )
