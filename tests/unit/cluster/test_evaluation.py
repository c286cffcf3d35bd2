import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from stream_files import write_stream

from cluster.config import Settings
from cluster.evaluation import run_evaluation
from cluster.report import count_errors
from recommender.datasets import DatasetError, read_dataset
from recommender.progressive import EvaluationSettings, evaluate
from recommender.settings import ModelSettings, TrainingSettings
from recommender.simulator import SimulatorSettings, simulate
from recommender.text_encoder import TextEncoder

SETTINGS = Settings(
    model=ModelSettings(dim=8, num_layers=1, intermediate=8, window=20),
    training=TrainingSettings(warmup_epochs=20, steps_per_500_events=4),
)
RANKINGS = ["popularity", "rules", "frozen", "learning", "blend"]


@dataclass(frozen=True)
class Outcome:
    """What one evaluation left behind."""

    data: Path
    report: dict[str, Any]
    report_path: Path
    printed: str


def outcome(data: Path, report_path: Path, **options: Any) -> Outcome:
    """An evaluation as the command line starts it."""
    console = Console(file=io.StringIO(), width=160)
    chosen: dict[str, Any] = {
        "rankings": None,
        "seeds": [0],
        "max_events": None,
        "exclude_seen": True,
        **options,
    }
    report = run_evaluation(
        data, report_path, SETTINGS, console=console, command="rheos evaluate ...", **chosen
    )
    assert isinstance(console.file, io.StringIO)
    return Outcome(data, report, report_path, console.file.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = simulate(SimulatorSettings(num_users=20, num_items=40, num_events=400, seed=5))
    return write_stream(dataset, tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def two_seeds(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("evaluation")
    return outcome(data, folder / "new" / "report.json", seeds=[3, 4])


def test_the_report_is_on_disk_as_it_was_returned_with_a_picture(two_seeds: Outcome) -> None:
    assert json.loads(two_seeds.report_path.read_text()) == json.loads(json.dumps(two_seeds.report))
    assert two_seeds.report_path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert count_errors(two_seeds.report) == []


def test_each_seed_is_what_progressive_validation_gives_on_the_same_stream(
    two_seeds: Outcome,
) -> None:
    dataset = read_dataset(two_seeds.data)
    vectors_VD = TextEncoder(SETTINGS.text).encode([item.text for item in dataset.items])
    settings = EvaluationSettings(model=SETTINGS.model, training=SETTINGS.training)
    alone = evaluate(dataset, vectors_VD, settings, seed=4)
    assert two_seeds.report["quality_by_seed"]["4"] == alone.quality
    assert two_seeds.report["scored"] == {
        "warm_up": 200,
        "streamed": 200,
        "scored": alone.events.scored,
        "reported": alone.events.reported,
        "skipped": 0,
    }


def test_the_overall_figures_are_the_mean_over_the_seeds(two_seeds: Outcome) -> None:
    report = two_seeds.report
    assert list(report["quality"]) == RANKINGS
    for name, quality in report["quality"].items():
        of_seeds = [report["quality_by_seed"][seed][name] for seed in ("3", "4")]
        for figure in ("ndcg_at_10", "hit_rate_at_10", "mrr", "ndcg_at_10_by_quarter"):
            mean = np.mean([of_seed[figure] for of_seed in of_seeds], axis=0)
            assert quality[figure] == pytest.approx(mean.tolist())
    learning = [report["quality_by_seed"][seed]["learning"]["mrr"] for seed in ("3", "4")]
    assert learning[0] != learning[1]


def test_the_report_says_what_ran_and_with_which_settings(two_seeds: Outcome) -> None:
    environment = two_seeds.report["environment"]
    assert environment["command"] == "rheos evaluate ..."
    assert (environment["dataset"], environment["seeds"]) == ("events", "3,4")
    assert environment["exclude_seen"] is True
    assert two_seeds.report["settings"]["model"]["dim"] == 8
    assert set(two_seeds.report["cpu_s"]) == {
        "warm_up",
        "learn_per_1000_events",
        "score_per_1000_events",
    }


def test_every_ranking_is_printed_with_its_spread_over_the_seeds(two_seeds: Outcome) -> None:
    table, spread = two_seeds.printed.split("Lowest and highest of 2 seeds")
    for name, quality in two_seeds.report["quality"].items():
        assert f"{quality['ndcg_at_10']:.4f}" in table
        assert name in spread
    assert str(two_seeds.report_path) in two_seeds.printed.replace("\n", "")


def test_only_what_is_asked_for_is_ranked_and_only_so_many_events_are_used(
    data: Path, tmp_path: Path
) -> None:
    short = outcome(data, tmp_path / "r.json", rankings=["rules", "item_knn"], max_events=100)
    assert list(short.report["quality"]) == ["rules", "item_knn"]
    assert (short.report["scored"]["warm_up"], short.report["scored"]["streamed"]) == (50, 50)
    assert short.report["scored"]["scored"] == 10
    assert "Lowest and highest" not in short.printed


def test_what_cannot_be_evaluated_leaves_no_report(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(DatasetError, match=r"missing\.jsonl"):
        outcome(tmp_path / "missing.jsonl", path)
    with pytest.raises(ValueError, match=r"unknown rankings .*'best'"):
        outcome(data, path, rankings=["best"])
    assert not path.exists()
