from typing import Any

import pytest

from cluster.evaluation import report_of
from recommender.beyond_accuracy import ListQuality
from recommender.evaluation_settings import EvaluationSettings
from recommender.metrics import Quality
from recommender.quality_report import EventCounts, QualityReport, SliceQuality


def run_of(seed: int, ndcg: dict[str, float], warm_up_cpu_s: float = 1.0) -> QualityReport:
    hits = {name: 2 * value for name, value in ndcg.items()}
    return QualityReport(
        dataset="ring",
        quality={
            name: Quality(
                ndcg_at_10=value,
                hit_rate_at_10=2 * value,
                mrr=value,
                ndcg_at_10_by_quarter=[value, value, value, 2 * value],
            )
            for name, value in ndcg.items()
        },
        slices={"new users": SliceQuality(1_000, ndcg, hits)},
        lists={name: ListQuality(0.5, 9.0, 0.8, 0.1 * seed) for name in ndcg},
        events=EventCounts(warm_up=50, streamed=50, scored=10, reported=7, skipped=0),
        served={"blend": 10},
        blend_weights={"net": [1.0]},
        warm_up_cpu_s=warm_up_cpu_s,
        learn_cpu_s_per_1000=1.0,
        score_cpu_s_per_1000=1.0,
        settings=EvaluationSettings(),
        seed=seed,
        protocol="events",
        exclude_seen=True,
    )


def report(*runs: QualityReport) -> dict[str, Any]:
    return report_of(list(runs), "rheos evaluate")


def test_figures_are_means_over_the_seeds() -> None:
    found = report(run_of(1, {"blend": 0.1}), run_of(2, {"blend": 0.2}))
    assert found["quality"]["blend"]["ndcg_at_10"] == pytest.approx(0.15)
    quarters = found["quality"]["blend"]["ndcg_at_10_by_quarter"]
    assert quarters == pytest.approx([0.15, 0.15, 0.15, 0.3])
    assert found["slices"]["new users"]["ndcg_at_10"]["blend"] == pytest.approx(0.15)
    assert found["slices"]["new users"]["hit_rate_at_10"]["blend"] == pytest.approx(0.3)
    assert found["slices"]["new users"]["num_events"] == 1_000
    assert found["quality_by_seed"]["2"]["blend"]["ndcg_at_10"] == 0.2
    assert found["environment"]["seeds"] == "1,2"


def test_what_only_the_first_seed_measured_counts_as_it_is() -> None:
    found = report(run_of(0, {"blend": 0.1, "rules": 0.3}), run_of(1, {"blend": 0.2}))
    assert found["quality"]["rules"]["ndcg_at_10"] == pytest.approx(0.3)
    assert found["slices"]["new users"]["ndcg_at_10"]["rules"] == pytest.approx(0.3)
    assert found["lists"]["rules"]["popularity_share"] == 0.0


def test_cpu_seconds_are_medians_which_one_busy_moment_does_not_move() -> None:
    runs = (run_of(seed, {"blend": 0.1}, cost) for seed, cost in enumerate((1.0, 2.0, 90.0)))
    assert report(*runs)["cpu_s"]["warm_up"] == 2.0


def test_the_guard_is_judged_on_the_means() -> None:
    found = report(
        run_of(0, {"blend": 0.1, "learning": 0.12}), run_of(1, {"blend": 0.14, "learning": 0.12})
    )
    assert found["guard"]["blend, new users"]["ratio"] == pytest.approx(1.0)
