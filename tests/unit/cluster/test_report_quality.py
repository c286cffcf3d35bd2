import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from cluster.report_quality import (
    cost_table,
    guard_ratios,
    guard_table,
    lists_table,
    slices_table,
    spread_table,
)


def _quality(ndcg: float) -> dict[str, Any]:
    return {"ndcg_at_10": ndcg, "hit_rate_at_10": 2 * ndcg, "mrr": 0.9 * ndcg}


QUALITY = {"blend": _quality(0.12), "learning": _quality(0.11), "rules": _quality(0.10)}
SLICES = {
    "new users": {
        "num_events": 1_200,
        "ndcg_at_10": {"blend": 0.19, "learning": 0.2, "rules": 0.1},
    },
    "new items": {"num_events": 999, "ndcg_at_10": {"blend": 0.0, "learning": 0.1, "rules": 0.0}},
    "history 0": {"num_events": 0, "ndcg_at_10": {"blend": 0.0, "learning": 0.0, "rules": 0.0}},
}


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_guard_compares_the_blend_with_its_best_component_on_every_large_slice() -> None:
    ratios = guard_ratios(QUALITY, SLICES, num_events=7_500)
    assert list(ratios) == ["blend, all", "blend, new users"]
    assert ratios["blend, all"]["ratio"] == pytest.approx(0.12 / 0.11)
    assert ratios["blend, new users"]["best_component"] == "learning"
    assert ratios["blend, new users"]["ratio"] == pytest.approx(0.95)


def test_a_ranking_that_is_no_component_is_not_compared() -> None:
    quality = {**QUALITY, "frozen": _quality(0.5), "ease": _quality(0.6)}
    assert guard_ratios(quality, {}, 10)["blend, all"]["best_component"] == "learning"
    with_ials = {**quality, "blend_ials": _quality(0.13), "ials": _quality(0.125)}
    ratios = guard_ratios(with_ials, {}, 10)
    assert ratios["blend_ials, all"]["best_component"] == "ials"
    assert ratios["blend, all"]["best_component"] == "learning"


def test_a_blend_without_measured_components_is_not_judged() -> None:
    assert guard_ratios({"blend": _quality(0.1)}, {}, 10) == {}
    assert guard_ratios({"rules": _quality(0.1)}, {}, 10) == {}


def test_the_guard_table_says_what_is_kept_and_what_is_missed() -> None:
    lines = _text(guard_table({"guard": guard_ratios(QUALITY, SLICES, 7_500)})).splitlines()
    assert next(line for line in lines if "blend, all" in line).count("kept") == 1
    assert next(line for line in lines if "blend, new users" in line).count("missed") == 1


def test_slices_show_their_size_and_a_dash_where_nothing_happened() -> None:
    text = _text(slices_table({"quality": QUALITY, "slices": SLICES}))
    assert "1,200" in text
    (blend,) = [line for line in text.splitlines() if "blend" in line]
    assert [cell.strip() for cell in blend.strip("│").split("│")] == [
        *("blend", "0.1900", "0.0000", "-")
    ]


def test_the_spread_is_over_the_seeds_that_measured_a_ranking() -> None:
    by_seed = {
        "0": {"blend": _quality(0.12), "rules": _quality(0.1)},
        "1": {"blend": _quality(0.1)},
    }
    text = _text(spread_table({"quality": QUALITY, "quality_by_seed": by_seed}))
    assert "0.1000 to 0.1200" in text
    assert "rules" not in text


def test_lists_and_costs_are_shown_with_their_units() -> None:
    figures = {"coverage": 0.25, "novelty": 9.5, "diversity": 0.812, "popularity_share": 0.4}
    text = _text(lists_table({"quality": QUALITY, "lists": {"blend": figures}}))
    assert "25.0% │" in text
    assert "9.50 │" in text
    assert "0.812 │" in text
    assert "40.0% │" in text
    cost = {"warm_up": 41.0, "learn_per_1000_events": 1.5, "score_per_1000_events": None}
    assert "41.00 │" in _text(cost_table({"cpu_s": cost}))
