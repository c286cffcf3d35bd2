"""The poison test in small: without the net, whose part `benchmarks/poison.py` measures."""

import numpy as np
import pytest

from recommender.datasets import Dataset
from recommender.poisoning import (
    Defence,
    Kind,
    Outcome,
    PushAttack,
    honest_outcome,
    inject,
)
from recommender.progressive import EvaluationSettings
from recommender.settings import MEASURED_FILTERS
from recommender.simulator import SimulatorSettings, simulate

START, STOP = 4_800, 6_400
SCREENED_KINDS: tuple[Kind, ...] = ("burst", "clones")
"""A bandwagon looks like honest newcomers; what it gains is measured by the benchmark."""
OPEN = Defence()
DEFENDED = Defence(MEASURED_FILTERS, screens_counters=True)
Runs = dict[tuple[Kind | None, bool], Outcome]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return simulate(SimulatorSettings(num_events=8_000, num_users=240, num_items=300))


@pytest.fixture(scope="module")
def target(dataset: Dataset) -> int:
    """One of the more popular items."""
    counts_V = np.bincount(dataset.rows_N[3_200:START], minlength=len(dataset.items))
    return int(np.argsort(-counts_V, kind="stable")[20])


@pytest.fixture(scope="module")
def runs(dataset: Dataset, target: int) -> Runs:
    """Outcomes by attack and whether it was defended against."""
    wanted: list[tuple[Kind | None, bool]] = [(None, False), (None, True), ("clones", False)]
    wanted += [(kind, True) for kind in SCREENED_KINDS]
    return {
        (kind, is_defended): honest_outcome(
            inject(dataset, kind and PushAttack(kind, target, START, STOP)),
            np.zeros((len(dataset.items), 2), np.float32),
            EvaluationSettings(),
            target=target,
            defence=DEFENDED if is_defended else OPEN,
            scored_from=(START + STOP) // 2,
            with_net=False,
        )
        for kind, is_defended in wanted
    }


def exposure(outcome: Outcome) -> float:
    return float(np.nanmean(outcome.exposed_K))


def test_an_attack_changes_no_honest_event(dataset: Dataset, target: int) -> None:
    stream = inject(dataset, PushAttack("bandwagon", target, START, STOP))
    honest = ~stream.is_fake_N
    np.testing.assert_array_equal(stream.dataset.rows_N[honest], dataset.rows_N)
    np.testing.assert_array_equal(stream.dataset.users_N[honest], dataset.users_N)
    assert (np.diff(stream.dataset.timestamps_ms_N) >= 0).all()
    num_fakes = len(stream.dataset.user_ids) - len(dataset.user_ids)
    assert num_fakes == round(0.05 * len(dataset.user_ids))
    fake_rows = stream.dataset.rows_N[stream.is_fake_N]
    assert (fake_rows == target).sum() == num_fakes
    assert np.flatnonzero(stream.is_fake_N).min() >= START


def test_an_army_of_clones_succeeds_where_nothing_is_screened(runs: Runs) -> None:
    assert exposure(runs[None, False]) > 0
    assert exposure(runs["clones", False]) > 2.0 * exposure(runs[None, False])


@pytest.mark.parametrize("kind", SCREENED_KINDS)
def test_no_attack_doubles_the_exposure_or_costs_honest_users(runs: Runs, kind: Kind) -> None:
    clean, attacked = runs[None, False], runs[kind, True]
    assert exposure(attacked) <= 2.0 * exposure(clean)
    assert np.mean(attacked.ndcg_K) >= 0.98 * np.mean(clean.ndcg_K)
    assert len(attacked.ndcg_K) == len(clean.ndcg_K), "the same honest events are scored"


def test_without_an_attack_hardly_anything_is_left_out(runs: Runs) -> None:
    assert runs[None, True].num_honest_left_out <= 5
    assert np.mean(runs[None, True].ndcg_K) == pytest.approx(
        np.mean(runs[None, False].ndcg_K), rel=0.005
    )
