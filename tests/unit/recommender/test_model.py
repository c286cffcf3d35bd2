import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recommender.model import Recommender
from recommender.settings import ModelSettings
from recommender.windows import PAD, Windows

SETTINGS = ModelSettings(
    dim=8, num_layers=2, num_heads=2, intermediate=16, window=5, half_lives=(10.0, 100.0)
)
NUM_ITEMS, TEXT_DIM = 40, 6
POPULARITY_MV = np.random.default_rng(9).random((2, NUM_ITEMS)).astype(np.float32) * 20


def texts(num_items: int = NUM_ITEMS, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num_items, TEXT_DIM)).astype(np.float32)


def windows_of(*histories: list[int], num_columns: int = 6) -> Windows:
    shape = (len(histories), num_columns)
    items_BT = np.full(shape, PAD, np.int32)
    feedback_BT, gaps_BT = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
    for row, history in enumerate(histories):
        items_BT[row, : len(history)] = history
        feedback_BT[row, : len(history)] = [1 + item % 5 for item in history]
        gaps_BT[row, : len(history)] = [item % 13 for item in history]
    lengths_B = np.array([len(history) for history in histories], np.int32)
    return Windows(items_BT, feedback_BT, gaps_BT, lengths_B)


@pytest.fixture
def model() -> Recommender:
    """A model in which every weight says something."""
    model = Recommender(SETTINGS, texts(), seed=3).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return model


def scores(model: Recommender, windows: Windows) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(model.scores(windows, POPULARITY_MV[:, : model.num_items]))


def test_before_any_training_every_user_gets_the_popularity_list() -> None:
    untrained = Recommender(SETTINGS, texts()).eval()
    scores_BV = scores(untrained, windows_of([], [3, 1], [7, 7, 2, 9, 4]))
    logs_MV = np.log(POPULARITY_MV + 0.05)
    expected_V = 0.25 * (logs_MV - logs_MV.mean(axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(scores_BV, np.tile(expected_V, (3, 1)), atol=1e-5)


def test_the_history_matters_once_the_weights_do(model: Recommender) -> None:
    first, second = scores(model, windows_of([3, 1], [1, 3]))
    assert np.abs(first - second).max() > 0.01


def test_one_row_equals_the_same_row_in_a_batch(model: Recommender) -> None:
    histories: list[list[int]] = [[], [3], [3, 1, 8], [7, 6, 2, 9, 4, 5]]
    batch_BV = scores(model, windows_of(*histories))
    for history, row_V in zip(histories, batch_BV, strict=True):
        np.testing.assert_allclose(scores(model, windows_of(history))[0], row_V, atol=1e-5)


def test_only_the_latest_items_that_fit_the_window_count(model: Recommender) -> None:
    long_BV = scores(model, windows_of([30, 1, 2, 3, 4, 5]))
    other_BV = scores(model, windows_of([20, 1, 2, 3, 4, 5]))
    short_BV = scores(model, windows_of([1, 2, 3, 4, 5]))
    np.testing.assert_array_equal(long_BV, other_BV)
    np.testing.assert_array_equal(long_BV, short_BV)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (Recommender(SETTINGS, texts(), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(one.projection.weight, other.projection.weight)


def test_scoring_changes_nothing(model: Recommender) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores(model, windows_of([3, 1]))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_growing_changes_no_score_of_an_item_that_was_there(model: Recommender) -> None:
    before_V = scores(model, windows_of([3, 1]))[0]
    model.grow(texts(2, seed=8))
    after_V = scores(model, windows_of([3, 1]))[0]
    assert after_V.shape == (NUM_ITEMS + 2,)
    # The popularity features are centred over more items, which moves all scores alike.
    moved_V = after_V[:NUM_ITEMS] - before_V
    np.testing.assert_allclose(moved_V, moved_V[0], atol=1e-5)


def test_a_new_item_is_where_its_text_says() -> None:
    untrained = Recommender(SETTINGS, texts())
    untrained.grow(texts()[7:8])
    items_VH = untrained.item_matrix()
    assert torch.allclose(items_VH[NUM_ITEMS], items_VH[7], atol=1e-6)


def test_a_changed_text_moves_only_its_item_and_keeps_what_was_learned(model: Recommender) -> None:
    before_VH = model.item_matrix()
    rows, text_VD = np.array([4]), texts(1, seed=8)
    model.replace_text(rows, text_VD)
    change_VH = model.item_matrix() - before_VH
    assert change_VH[4].abs().max() > 0.01
    change_VH[4] = 0
    assert not change_VH.any()
    model.replace_text(rows, texts()[4:5])
    assert torch.allclose(model.item_matrix(), before_VH, atol=1e-5)


def test_what_is_exported_is_a_float32_copy(model: Recommender) -> None:
    state = model.export_state()
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert state["item_vectors"].shape == (NUM_ITEMS, SETTINGS.dim)
    exported = state["item_bias"].copy()
    model.bias_V.add_(1)
    np.testing.assert_array_equal(state["item_bias"], exported)
