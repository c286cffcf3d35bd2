import numpy as np
import pytest

from recommender.metrics import hit_rate_at_k, ndcg_at_k, quality_of, reciprocal_rank

RANKS = np.array([1.0, 3.0, 10.0, 10.5, 11.0])


def test_ndcg_is_the_discount_of_the_rank_within_the_cut() -> None:
    expected = [1.0, 0.5, 1 / np.log2(11), 0.0, 0.0]
    assert ndcg_at_k(RANKS, 10).tolist() == pytest.approx(expected)


def test_ndcg_of_a_tie_discounts_the_mean_rank() -> None:
    assert ndcg_at_k(np.array([1.5]), 10)[0] == pytest.approx(1 / np.log2(2.5))


def test_a_hit_is_a_rank_within_the_cut() -> None:
    assert hit_rate_at_k(RANKS, 10).tolist() == [1, 1, 1, 0, 0]
    assert hit_rate_at_k(RANKS, 1).tolist() == [1, 0, 0, 0, 0]


def test_the_reciprocal_rank_has_no_cut() -> None:
    assert reciprocal_rank(np.array([1.0, 4.0, 100.0])).tolist() == [1.0, 0.25, 0.01]


def test_overall_quality_covers_only_the_reported_quarters() -> None:
    ranks = np.array([1.0, 2.0, 3.0, 20.0])
    quality = quality_of(ranks, np.array([0, 1, 2, 3]), reported=(1, 2, 3))
    assert quality["hit_rate_at_10"] == pytest.approx(2 / 3)
    assert quality["ndcg_at_10"] == pytest.approx((1 / np.log2(3) + 0.5) / 3)
    assert quality["mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 20) / 3)
    assert quality["ndcg_at_10_by_quarter"] == pytest.approx([1.0, 1 / np.log2(3), 0.5, 0.0])


def test_quality_over_no_events_is_zero() -> None:
    quality = quality_of(np.zeros(0), np.zeros(0, np.int64), reported=(1, 2, 3))
    assert quality["ndcg_at_10"] == 0.0
    assert quality["ndcg_at_10_by_quarter"] == [0.0, 0.0, 0.0, 0.0]
