import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actors.lessons import TrainingJobSettings
from actors.stream_feed import CatalogGrowth
from actors.text_lane import TextLane
from recommender.model import Recommender
from recommender.settings import TextTuningSettings
from recommender.text_encoder import TextEncoder

LORA = TrainingJobSettings(
    text_tuning=TextTuningSettings(mode="lora", gather_steps=1, cpu_share=1.0, learning_rate=0.01)
)
TEXTS = ("a steel kettle", "a story of the sea", "a garden of roses", "how to bake bread")


@pytest.fixture(scope="module")
def text_VD() -> NDArray[np.float32]:
    return TextEncoder(LORA.text, threads=1).encode(TEXTS)


def all_new(text_VD: NDArray[np.float32]) -> CatalogGrowth:
    nothing = np.zeros(0, np.int64)
    return CatalogGrowth(text_VD, nothing, text_VD[:0], new_texts=TEXTS)


def told_again(text_VD: NDArray[np.float32], texts: tuple[str, ...]) -> CatalogGrowth:
    return CatalogGrowth(text_VD[:0], np.arange(4), text_VD, changed_texts=texts)


def test_a_frozen_lane_loads_no_bert_and_changes_nothing(
    text_VD: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("actors.text_lane.load_bert", None)
    lane = TextLane.of(TrainingJobSettings())
    growth = all_new(text_VD)
    model = Recommender(LORA.model, text_VD)
    model.residual_VH.grad = torch.ones_like(model.residual_VH)
    lane.restart({})
    lane.compare(None, [], np.zeros((4, 4), np.float32))
    assert lane.take(growth) is growth
    assert lane.update(model) is None
    assert lane.state() == lane.metrics() == {}


def test_after_a_restart_only_texts_that_are_other_ones_get_their_pretrained_vector(
    text_VD: NDArray[np.float32],
) -> None:
    lane = TextLane.of(LORA)
    lane.take(all_new(text_VD))
    model = Recommender(LORA.model, text_VD)
    model.residual_VH.grad = torch.ones_like(model.residual_VH)
    update = lane.update(model)
    assert update is not None
    assert sorted(update.rows.tolist()) == [0, 1, 2, 3]
    assert lane.metrics()["text_steps"] == 1

    resumed = TextLane.of(LORA)
    resumed.restart(lane.state())
    growth = resumed.take(told_again(text_VD, (*TEXTS[:3], "how to bake a cake")))
    assert growth.changed_rows.tolist() == [3]
    assert growth.changed_texts == ("how to bake a cake",)
    np.testing.assert_array_equal(growth.changed_VD, text_VD[3:])


def test_without_a_state_every_text_counts_as_another(text_VD: NDArray[np.float32]) -> None:
    lane = TextLane.of(LORA)
    lane.restart({})
    assert lane.take(told_again(text_VD, TEXTS)).changed_rows.tolist() == [0, 1, 2, 3]


def test_a_gradient_of_bert_that_is_not_finite_is_not_taken_for_one_of_the_group(
    text_VD: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = TextLane.of(LORA)
    lane.take(all_new(text_VD))
    model = Recommender(LORA.model, text_VD)
    model.residual_VH.grad = torch.ones_like(model.residual_VH)
    monkeypatch.setattr(
        "recommender.text_tuning.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(float("nan"))
    )
    with pytest.raises(RuntimeError, match="text tower cannot go on"):
        lane.update(model)
