import copy
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from cluster.picture_style import spread
from cluster.report import (
    count_errors,
    draw_report,
    quality_table,
    summary_table,
    write_report,
)


def _quality(ndcg: float) -> dict[str, Any]:
    return {
        "ndcg_at_10": ndcg,
        "hit_rate_at_10": 2 * ndcg,
        "mrr": 0.9 * ndcg,
        "ndcg_at_10_by_quarter": [ndcg - 0.01, ndcg, ndcg, ndcg + 0.01],
    }


REPORT: dict[str, Any] = {
    "events": {"sent": 1_100, "acknowledged": 1_000, "duplicates": 100, "logged": 1_000},
    "read_your_writes": {"checked": 50, "violations": 0},
    "freshness_s": {"counters": {"p50": 0.2, "p99": 0.4}, "learning": {"p50": 2.0, "p99": 5.0}},
    "quality": {"popularity": _quality(0.0436), "blend": _quality(0.1209)},
    "versions": {"published": 7, "rejected": 1, "rolled_back": 0, "quarantined": 40},
    "requests": {"ok": 300, "failed": 0, "p50_ms": 8.0, "p99_ms": 31.0},
    "environment": {"cpus": 2},
    "drift_at": 60,
    "timeline": {
        "t_s": [1.0, 2.0, 3.0],
        "ndcg_at_10": {"popularity": [None, 0.04, 0.05], "blend": [0.1, 0.12, 0.13]},
        "events_per_s": [40.0, 41.0, 39.0],
        "learning_freshness_s": [None, 2.0, 2.5],
        "counters_freshness_s": [0.2, 0.3, 0.2],
        "version": [1, 1, 2],
    },
}


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def test_the_best_ranking_comes_first_in_the_quality_table() -> None:
    text = _text(quality_table(REPORT))

    assert text.index("blend") < text.index("popularity")
    assert "0.1209 │ 0.2418 │ 0.1088 │ 0.1109 │ 0.1209 │ 0.1209 │ 0.1309" in text


def test_quality_that_was_not_measured_is_a_dash() -> None:
    text = _text(
        quality_table({"quality": {"blend": {"ndcg_at_10": None}, "rules": _quality(0.1)}})
    )

    assert [line.count("- │") for line in text.splitlines() if "blend" in line] == [7]


def test_the_summary_names_every_measurement_beside_its_promise() -> None:
    text = _text(summary_table(REPORT))

    for part in (
        "sent 1,100, acknowledged 1,000, duplicates 100, logged 1,000",
        "0 violations in 50 checks",
        "p50 0.20 s, p99 0.40 s",
        "p99 at most 1 s: kept",
        "p99 at most 15 s: kept",
        "published 7, rejected 1, quarantined 40",
        "300 ok, 0 failed, p50 8.0 ms, p99 31.0 ms",
        "at event 60",
    ):
        assert part in text


def test_a_freshness_above_its_bound_is_a_missed_promise() -> None:
    text = _text(summary_table({"freshness_s": {"counters": {"p50": 0.2, "p99": 1.01}}}))

    assert "p99 at most 1 s: missed" in text


def test_a_report_that_adds_up_has_no_errors() -> None:
    assert count_errors(REPORT) == []
    assert count_errors({"quality": REPORT["quality"]}) == []


@pytest.mark.parametrize(
    ("section", "changes", "error"),
    [
        ("events", {"sent": 1_101}, "events: sent 1101, but acknowledged 1000 + duplicates 100"),
        ("events", {"logged": 999}, "events: acknowledged 1000, but the log holds 999"),
        ("events", {"refused": 1}, "+ refused 1 = 1101"),
        ("read_your_writes", {"violations": 2}, "read your writes: violated in 2 of 50 reads"),
        ("read_your_writes", {"checked": 0}, "read your writes: never checked"),
        ("requests", {"failed": 3}, "requests: 3 of 303 failed"),
        ("versions", {"published": 0}, "versions: none was published"),
        ("quality", {"net": {"ndcg_at_10": 1.5}}, "NDCG@10 of net is 1.5, must be in [0, 1]"),
        ("quality", {"net": {"ndcg_at_10": None}}, "NDCG@10 of net is None"),
    ],
)
def test_what_does_not_add_up_is_named(section: str, changes: dict[str, Any], error: str) -> None:
    report = copy.deepcopy(REPORT)
    report[section].update(changes)

    (found,) = count_errors(report)
    assert error in found


def test_a_written_report_is_read_back_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_report({**REPORT, "extra": [np.float32(0.5), np.arange(2), float("nan")]}, path)

    assert json.loads(path.read_text()) == {**REPORT, "extra": [0.5, [0, 1], None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    with pytest.raises(TypeError):
        write_report({"extra": object()}, path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        {"quality": REPORT["quality"]},
        {
            "quality": REPORT["quality"],
            "slices": {
                "new users": {"num_events": 9, "ndcg_at_10": {"blend": 0.2}},
                "new items": {"num_events": 0, "ndcg_at_10": {"blend": 0.0}},
            },
            "lists": {"blend": {"coverage": 0.4}},
        },
        {"timeline": {"t_s": [1.0], "ndcg_at_10": {"blend": [None]}, "version": [None]}},
        {},
    ],
    ids=["demo", "evaluate", "evaluate with slices", "nothing measured", "empty"],
)
def test_every_report_becomes_a_picture(report: dict[str, Any], tmp_path: Path) -> None:
    draw_report(report, tmp_path / "report.png")

    assert _png_size(tmp_path / "report.png") == (1_600, 1_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    positions = spread([0.5, 0.1, 0.52, 0.51], gap=0.1)

    assert np.argsort(positions).tolist() == [1, 0, 3, 2]
    assert np.diff(sorted(positions)).min() >= 0.1 - 1e-9


def test_labels_far_enough_apart_stay_where_they_are() -> None:
    assert spread([0.3, 0.1], gap=0.1) == [0.3, 0.1]
