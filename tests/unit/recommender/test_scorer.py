import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recommender.events import NUM_FEEDBACK, NUM_GAPS
from recommender.model import Recommender
from recommender.scorer import Scorer
from recommender.settings import ModelSettings
from recommender.windows import PAD, Windows

SETTINGS = ModelSettings(
    dim=8, num_layers=3, num_heads=2, intermediate=16, window=5, half_lives=(10.0, 100.0)
)
NUM_ITEMS, TEXT_DIM = 40, 6
POPULARITY_MV = np.random.default_rng(9).random((2, NUM_ITEMS)).astype(np.float32) * 20


def texts(num_items: int = NUM_ITEMS, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num_items, TEXT_DIM)).astype(np.float32)


def random_windows(lengths: list[int], num_columns: int = 6, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    lengths_B = np.array(lengths, np.int32)
    shape = (len(lengths), num_columns)
    used_BT = np.arange(num_columns) < lengths_B[:, None]
    return Windows(
        np.where(used_BT, rng.integers(0, NUM_ITEMS, shape), PAD).astype(np.int32),
        np.where(used_BT, rng.integers(0, NUM_FEEDBACK, shape), 0).astype(np.int8),
        np.where(used_BT, rng.integers(0, NUM_GAPS, shape), 0).astype(np.int8),
        lengths_B,
    )


def noisy_model() -> Recommender:
    """A model in which every weight says something."""
    model = Recommender(SETTINGS, texts(), seed=3).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return model


MODEL = noisy_model()
STATE = MODEL.export_state()
for _array in STATE.values():
    _array.setflags(write=False)  # as shared memory is


@pytest.fixture
def scorer() -> Scorer:
    return Scorer.from_state(STATE, SETTINGS)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 1_000))
def test_the_scorer_agrees_with_the_transformers_model(lengths: list[int], seed: int) -> None:
    windows = random_windows(lengths, seed=seed)
    with torch.inference_mode():
        expected_BV = MODEL.scores(windows, POPULARITY_MV).numpy()
    scores_BV = Scorer.from_state(STATE, SETTINGS).net_scores(windows, POPULARITY_MV)
    np.testing.assert_allclose(scores_BV, expected_BV, atol=2e-4, rtol=1e-4)
    assert scores_BV.dtype == np.float32


def test_it_agrees_at_the_default_size_too() -> None:
    default = ModelSettings()
    model = Recommender(default, texts(), seed=3).eval().requires_grad_(False)
    model.output.weight += torch.eye(default.dim)
    popularity_MV = np.ones((4, NUM_ITEMS), np.float32)
    windows = random_windows([51, 0, 50, 7], num_columns=51)
    scores_BV = Scorer.from_state(model.export_state(), default).net_scores(windows, popularity_MV)
    with torch.inference_mode():
        expected_BV = model.scores(windows, popularity_MV).numpy()
    np.testing.assert_allclose(scores_BV, expected_BV, atol=1e-4)


def test_one_row_equals_the_same_row_in_a_batch(scorer: Scorer) -> None:
    batch_BV = scorer.net_scores(random_windows([0, 3, 6, 2]), POPULARITY_MV)
    windows = random_windows([0, 3, 6, 2])
    for row in range(4):
        one = Windows(*(getattr(windows, f.name)[row : row + 1] for f in fields(windows)))
        np.testing.assert_allclose(
            scorer.net_scores(one, POPULARITY_MV)[0], batch_BV[row], atol=1e-4
        )


def test_windows_wider_than_the_model_reads_give_the_same(scorer: Scorer) -> None:
    narrow = random_windows([3])
    wide = Windows(
        np.pad(narrow.items_BT, ((0, 0), (0, 500)), constant_values=PAD),
        np.pad(narrow.feedback_BT, ((0, 0), (0, 500))),
        np.pad(narrow.gaps_BT, ((0, 0), (0, 500))),
        narrow.lengths_B,
    )
    np.testing.assert_array_equal(
        scorer.net_scores(wide, POPULARITY_MV), scorer.net_scores(narrow, POPULARITY_MV)
    )


def test_items_without_a_count_yet_are_scored(scorer: Scorer) -> None:
    windows = random_windows([3])
    known_MV = POPULARITY_MV[:, :-2]
    as_zero_MV = np.pad(known_MV, ((0, 0), (0, 2)))
    np.testing.assert_array_equal(
        scorer.net_scores(windows, known_MV), scorer.net_scores(windows, as_zero_MV)
    )


def test_large_arrays_are_used_where_they_lie(scorer: Scorer) -> None:
    assert np.shares_memory(scorer.item_vectors, STATE["item_vectors"])
    assert np.shares_memory(scorer.item_bias, STATE["item_bias"])
    assert np.shares_memory(scorer.text_unit, STATE["item_text"])


def test_a_missing_array_is_named() -> None:
    with pytest.raises(KeyError, match="gate_bias"):
        Scorer.from_state({k: v for k, v in STATE.items() if k != "gate_bias"}, SETTINGS)


def test_new_and_changed_items_score_as_in_a_model_that_grew(scorer: Scorer) -> None:
    newer = scorer.with_items(np.array([4, 7, NUM_ITEMS, NUM_ITEMS + 1]), texts(4, seed=8))
    grown = noisy_model()
    grown.replace_text(np.array([4, 7]), texts(4, seed=8)[:2])
    grown.grow(texts(4, seed=8)[2:])
    windows = random_windows([0, 3, 6])
    windows.items_BT[1:, 0] = [NUM_ITEMS + 1, 4]
    with torch.inference_mode():
        expected_BV = grown.scores(windows, POPULARITY_MV).numpy()
    np.testing.assert_allclose(
        newer.net_scores(windows, POPULARITY_MV), expected_BV, atol=2e-4, rtol=1e-4
    )
    np.testing.assert_allclose(newer.text_unit, grown.text_VD.numpy(), atol=1e-6)
    assert newer.num_items == NUM_ITEMS + 2


def test_the_version_itself_is_untouched_by_newer_items(scorer: Scorer) -> None:
    windows = random_windows([0, 3, 6])
    before_BV = scorer.net_scores(windows, POPULARITY_MV)
    scorer.with_items(np.array([4, NUM_ITEMS]), texts(2, seed=8))
    assert scorer.num_items == NUM_ITEMS
    np.testing.assert_array_equal(scorer.net_scores(windows, POPULARITY_MV), before_BV)


def test_a_gap_before_new_rows_is_refused(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="do not follow on 40"):
        scorer.with_items(np.array([NUM_ITEMS + 1]), texts(1))


def test_serving_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, recommender.scorer; print(not {'torch', 'transformers'} & sys.modules.keys())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert answer.stdout.strip() == "True"
