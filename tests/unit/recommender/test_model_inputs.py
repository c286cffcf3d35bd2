import numpy as np
import pytest

from recommender.model_inputs import latest_items, popularity_features, text_moments, unit_text
from recommender.windows import PAD, Windows


def test_popularity_is_a_centred_logarithm_with_a_floor() -> None:
    features_MV = popularity_features(np.array([[0.95, 0.0]], np.float32), 2)
    half = np.log(1.0 / 0.05) / 2
    np.testing.assert_allclose(features_MV, [[half, -half]], rtol=1e-6)
    assert features_MV.dtype == np.float32


def test_items_the_counters_do_not_know_yet_count_zero() -> None:
    counts_MV = np.array([[3.0, 1.0]], np.float32)
    with_zero_MV = np.array([[3.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(
        popularity_features(counts_MV, 3), popularity_features(with_zero_MV, 3)
    )


def test_an_empty_catalogue_has_no_popularity() -> None:
    assert popularity_features(np.zeros((2, 0), np.float32), 0).shape == (2, 0)


def test_counts_of_items_the_model_does_not_have_are_left_out() -> None:
    counts_MV = np.array([[3.0, 1.0, 9.0]], np.float32)
    np.testing.assert_array_equal(
        popularity_features(counts_MV, 2), popularity_features(counts_MV[:, :2], 2)
    )


def test_text_vectors_are_standardised_then_of_unit_length() -> None:
    text_VD = np.random.default_rng(0).normal(5.0, 3.0, (64, 7)).astype(np.float32)
    mean_D, std_D = text_moments(text_VD)
    np.testing.assert_allclose(((text_VD - mean_D) / std_D).std(axis=0), 1.0, atol=1e-5)
    unit_VD = unit_text(text_VD, mean_D, std_D)
    np.testing.assert_allclose(np.linalg.norm(unit_VD, axis=1), 1.0, atol=1e-5)
    assert unit_VD.dtype == np.float32


@pytest.mark.parametrize("num_items", [0, 1, 31])
def test_a_small_catalogue_is_only_scaled_to_unit_length(num_items: int) -> None:
    mean_D, std_D = text_moments(np.full((num_items, 3), 7.0, np.float32))
    np.testing.assert_array_equal(mean_D, np.zeros(3))
    np.testing.assert_array_equal(std_D, np.ones(3))


def test_a_text_dimension_that_never_varies_stays_finite() -> None:
    text_VD = np.ones((40, 2), np.float32)
    text_VD[:, 1] = np.arange(40)
    assert np.isfinite(unit_text(text_VD, *text_moments(text_VD))).all()


def test_the_latest_items_are_moved_to_the_left() -> None:
    windows = Windows(
        items_BT=np.array([[5, 6, 7, 8], [9, PAD, PAD, PAD]], np.int32),
        feedback_BT=np.array([[1, 2, 3, 4], [5, 0, 0, 0]], np.int8),
        gaps_BT=np.array([[0, 1, 2, 3], [4, 0, 0, 0]], np.int8),
        lengths_B=np.array([4, 1], np.int32),
    )
    latest = latest_items(windows, 3)
    np.testing.assert_array_equal(latest.items_BT, [[6, 7, 8], [9, PAD, PAD]])
    np.testing.assert_array_equal(latest.feedback_BT, [[2, 3, 4], [5, 0, 0]])
    np.testing.assert_array_equal(latest.gaps_BT, [[1, 2, 3], [4, 0, 0]])
    np.testing.assert_array_equal(latest.lengths_B, [3, 1])
    assert latest.items_BT.dtype == np.dtype(np.int32)
    assert latest.gaps_BT.dtype == np.dtype(np.int8)
