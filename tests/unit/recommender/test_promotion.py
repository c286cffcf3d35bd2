import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.promotion import NEWEST, Decision, Verdict, find_fault, find_non_finite, judge

HALF_N = np.full(100, 0.5)


def on_memory(
    candidate_N: NDArray[np.float64], head_N: NDArray[np.float64], **options: float
) -> Decision:
    return judge({"1000": (candidate_N, head_N)}, **options)


def test_a_candidate_that_loses_more_than_the_margin_and_than_noise_is_rejected() -> None:
    head_N = np.full(100, 0.5)
    decision = on_memory(head_N - 0.1, head_N)
    assert decision.verdict is Verdict.REJECT
    assert "0.5000 to 0.4000" in decision.reason
    assert decision.metrics == pytest.approx(
        {"memory_ndcg_at_10": 0.4, "memory_ndcg_at_10_head": 0.5}
    )


def test_a_loss_within_the_margin_is_promoted_however_certain_it_is() -> None:
    head_N = np.full(100, 0.5)
    assert on_memory(head_N - 0.045, head_N).verdict is Verdict.PROMOTE
    assert on_memory(head_N - 0.045, head_N, margin=0.05).verdict is Verdict.REJECT


def test_a_loss_that_noise_explains_is_promoted_however_large_it_is() -> None:
    # The mean of the paired difference is -0.25, its standard error 0.125: two of them.
    head_N = np.array([1.0, 1.0, 0.0, 0.0] * 5)
    candidate_N = np.array([0.5, 0.0, 0.0, 0.5] * 5)
    assert on_memory(candidate_N, head_N).verdict is Verdict.PROMOTE
    assert on_memory(candidate_N, head_N, num_errors=1.9).verdict is Verdict.REJECT


def test_a_better_candidate_and_one_without_memory_are_promoted() -> None:
    assert on_memory(np.full(9, 0.6), np.full(9, 0.5)).verdict is Verdict.PROMOTE
    assert on_memory(np.zeros(5), np.zeros(5)).verdict is Verdict.PROMOTE
    nothing = on_memory(np.empty(0), np.empty(0))
    assert (nothing.verdict, dict(nothing.metrics)) == (Verdict.PROMOTE, {})


def test_results_of_different_windows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 candidate results and 2"):
        on_memory(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_by_name(bad: float) -> None:
    arrays = {"good": np.ones(3, np.float32), "bad": np.array([[1.0, bad]])}
    assert find_non_finite(arrays) == "bad"
    assert find_non_finite({"good": arrays["good"], "int": np.array([1])}) is None
    assert find_non_finite({"integers, which have no NaN": np.array([2**62])}) is None


def test_a_candidate_that_is_worse_on_the_newest_events_is_rejected() -> None:
    slices = {NEWEST: (HALF_N - 0.2, HALF_N), "1000": (HALF_N + 0.2, HALF_N)}
    decision = judge(slices)
    assert decision.verdict is Verdict.REJECT
    assert "newest" in decision.reason
    assert decision.metrics["newest_ndcg_at_10_head"] == pytest.approx(0.5)


def test_the_past_may_be_forgotten_for_a_gain_on_the_newest_events_only() -> None:
    forgotten = (HALF_N - 0.2, HALF_N)
    gained = judge({NEWEST: (HALF_N + 0.1, HALF_N), "1000": forgotten})
    assert gained.verdict is Verdict.PROMOTE
    assert "but on the newest rose from 0.5000 to 0.6000" in gained.reason
    level = judge({NEWEST: (HALF_N, HALF_N), "1000": forgotten})
    assert level.verdict is Verdict.REJECT


def test_one_period_that_is_lost_is_seen_behind_the_others() -> None:
    slices = {str(p): (HALF_N + 0.02, HALF_N) for p in range(7)}
    assert judge(slices).verdict is Verdict.PROMOTE
    decision = judge({**slices, "lost": (HALF_N - 0.12, HALF_N)})
    assert decision.verdict is Verdict.REJECT
    assert "period up to event lost" in decision.reason


def test_a_period_of_few_probes_is_not_judged_alone() -> None:
    slices = {"0": (HALF_N, HALF_N), "1": (np.zeros(5), np.full(5, 0.5))}
    assert judge(slices).verdict is Verdict.PROMOTE


def test_arrays_that_do_not_fit_the_heads_are_a_fault() -> None:
    head = {"items": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    grown = {**head, "items": np.zeros((5, 2), np.float32)}
    assert find_fault(grown, head) is None
    assert find_fault(head, None) is None
    assert "items" in str(find_fault(head, grown))
    assert "bias" in str(find_fault({"items": head["items"]}, head))
    assert "bias" in str(find_fault({**head, "bias": np.zeros(2)}, head))
    assert "bias" in str(find_fault({**head, "bias": np.zeros((2, 1), np.float32)}, head))
    spoilt = {**head, "bias": np.array([0, np.nan], np.float32)}
    assert "bias holds a value that is not finite" in str(find_fault(spoilt, head))
