import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.model import Recommender
from recommender.promotion import Verdict, find_non_finite, judge, memory_ndcg
from recommender.scorer import Scorer
from recommender.settings import ModelSettings
from recommender.windows import PAD, Windows, select

SETTINGS = ModelSettings(dim=8, num_layers=1, intermediate=8, window=4, half_lives=(10.0,))
NUM_ITEMS = 12
NO_POPULARITY = np.zeros((1, NUM_ITEMS), np.float32)


def scorer(**changes: NDArray[np.float32]) -> Scorer:
    texts_VD = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    state = Recommender(SETTINGS, texts_VD, seed=0).export_state()
    return Scorer.from_state(state | changes, SETTINGS)


def by_bias(*best_first: int) -> Scorer:
    """A scorer whose ranking is the same for everyone: these items, then all others level."""
    bias_V = np.zeros(NUM_ITEMS, np.float32)
    bias_V[list(best_first)] = np.arange(len(best_first), 0, -1) * 1_000.0
    return scorer(item_bias=bias_V, item_vectors=np.zeros((NUM_ITEMS, 8), np.float32))


def windows(*rows: list[int]) -> Windows:
    items_BT = np.full((len(rows), 5), PAD, np.int32)
    for row, items in zip(items_BT, rows, strict=True):
        row[: len(items)] = items
    zeros_BT = np.zeros(items_BT.shape, np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.array([len(r) for r in rows], np.int32))


def test_a_candidate_that_loses_more_than_the_margin_and_than_noise_is_rejected() -> None:
    head_N = np.full(100, 0.5)
    decision = judge(head_N - 0.1, head_N)
    assert decision.verdict is Verdict.REJECT
    assert "0.5000 to 0.4000" in decision.reason
    assert decision.metrics == pytest.approx(
        {"memory_ndcg_at_10": 0.4, "memory_ndcg_at_10_head": 0.5}
    )


def test_a_loss_within_the_margin_is_promoted_however_certain_it_is() -> None:
    head_N = np.full(100, 0.5)
    assert judge(head_N - 0.045, head_N).verdict is Verdict.PROMOTE
    assert judge(head_N - 0.045, head_N, margin=0.05).verdict is Verdict.REJECT


def test_a_loss_that_noise_explains_is_promoted_however_large_it_is() -> None:
    # The mean of the paired difference is -0.25, its standard error 0.125: two of them.
    head_N = np.array([1.0, 1.0, 0.0, 0.0] * 5)
    candidate_N = np.array([0.5, 0.0, 0.0, 0.5] * 5)
    assert judge(candidate_N, head_N).verdict is Verdict.PROMOTE
    assert judge(candidate_N, head_N, num_errors=1.9).verdict is Verdict.REJECT


def test_a_better_candidate_and_one_without_memory_are_promoted() -> None:
    assert judge(np.full(9, 0.6), np.full(9, 0.5)).verdict is Verdict.PROMOTE
    assert judge(np.zeros(5), np.zeros(5)).verdict is Verdict.PROMOTE
    nothing = judge(np.empty(0), np.empty(0))
    assert (nothing.verdict, dict(nothing.metrics)) == (Verdict.PROMOTE, {})


def test_results_of_different_windows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 candidate results and 2"):
        judge(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_by_name(bad: float) -> None:
    arrays = {"good": np.ones(3, np.float32), "bad": np.array([[1.0, bad]])}
    assert find_non_finite(arrays) == "bad"
    assert find_non_finite({"good": arrays["good"], "int": np.array([1])}) is None
    assert find_non_finite({"integers, which have no NaN": np.array([2**62])}) is None


def test_memory_ndcg_is_that_of_the_last_item_among_items_not_had_before() -> None:
    # 3 is second; after 7 was had, nothing stands before it.
    first, second = memory_ndcg(by_bias(7, 3), windows([1, 3], [7, 3]), NO_POPULARITY)
    assert first == pytest.approx(1 / np.log2(3))
    assert second == pytest.approx(1.0)


def test_an_item_that_comes_again_is_still_a_target() -> None:
    [repeated] = memory_ndcg(by_bias(7, 3), windows([3, 5, 3]), NO_POPULARITY)
    assert repeated == pytest.approx(1 / np.log2(3))


def test_ties_share_their_mean_rank() -> None:
    # 12 items, one had before: 11 are level, the mean rank is 6.
    [level] = memory_ndcg(by_bias(), windows([0, 4]), NO_POPULARITY)
    assert level == pytest.approx(1 / np.log2(7))


def test_a_window_of_one_item_is_a_new_users_first_event() -> None:
    [first] = memory_ndcg(by_bias(2, 9), windows([9]), NO_POPULARITY)
    assert first == pytest.approx(1 / np.log2(3))


def test_each_window_is_judged_on_its_own() -> None:
    batch = windows([1, 3], [7, 3, 2, 5], [4], [0, 11, 6])
    together = memory_ndcg(scorer(), batch, NO_POPULARITY)
    alone = [memory_ndcg(scorer(), select(batch, [i]), NO_POPULARITY)[0] for i in range(4)]  # type: ignore[arg-type]
    assert together == pytest.approx(alone)
