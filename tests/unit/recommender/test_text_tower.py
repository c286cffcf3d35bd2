import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_bert import DIM, tiny_bert

from recommender.settings import TextSettings, TextTuningSettings
from recommender.text_encoder import TextEncoder, TextEncoderError, load_bert
from recommender.text_tower import TextTower

TEXTS = ("a kettle", "an anvil of steel", "x", "the long way round to the sea and back")
TUNED_MODES = ("lora", "top_layers", "full")


def tuning(mode: str, **changes: object) -> TextTuningSettings:
    return TextTuningSettings.model_validate({"mode": mode, "lora_rank": 2, **changes})


def tiny_tower(mode: str, **changes: object) -> TextTower:
    settings = tuning(mode, **changes)
    return TextTower(tiny_bert(), TextSettings(batch_size=2, max_tokens=24), settings, seed=3)


def take_step(tower: TextTower) -> None:
    optimizer = torch.optim.AdamW([p for _, p in tower.trainable()], lr=0.01)
    for _ in range(2):  # a LoRA's first step moves only its second matrix
        optimizer.zero_grad()
        tower.vectors(tower.states(TEXTS)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("mode", TUNED_MODES)
def test_the_layers_over_cached_states_give_the_encoders_vectors(mode: str) -> None:
    """The real MiniLM: the frozen part from the cache, the rest anew, against one whole pass."""
    text = TextSettings(batch_size=2)
    whole_VD = TextEncoder(text, threads=1).encode(TEXTS)
    tower = TextTower(load_bert("minilm"), text, tuning(mode, num_layers=2))
    np.testing.assert_allclose(tower.encode(tower.states(TEXTS)), whole_VD, atol=1e-6)


@pytest.mark.parametrize("mode", TUNED_MODES)
def test_after_steps_the_cached_states_still_give_what_a_whole_pass_gives(mode: str) -> None:
    tower = tiny_tower(mode)
    cached = tower.states(TEXTS)
    before_VD = tower.encode(cached)
    take_step(tower)
    tuned_VD = tower.encode(cached)
    assert np.abs(tuned_VD - before_VD).max() > 1e-3
    np.testing.assert_allclose(tower.encode(tower.states(TEXTS)), tuned_VD, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "is_changed"),
    [
        ("lora", lambda name: "lora_" in name),
        ("top_layers", lambda name: name.startswith("top.")),
        ("full", lambda name: True),
    ],
)
def test_a_step_changes_what_the_mode_names_and_nothing_else(
    mode: str, is_changed: Callable[[str], bool]
) -> None:
    tower = tiny_tower(mode)
    before = {name: value.clone() for name, value in tower.named_parameters()}
    take_step(tower)
    for name, value in tower.named_parameters():
        assert torch.equal(value, before[name]) != is_changed(name), name


@pytest.mark.parametrize("mode", TUNED_MODES)
def test_a_reset_tower_is_the_pretrained_one(mode: str) -> None:
    tower = tiny_tower(mode)
    states = tower.states(TEXTS)
    before_VD = tower.encode(states)
    take_step(tower)
    tower.reset()
    np.testing.assert_array_equal(tower.encode(states), before_VD)


def test_one_text_has_the_vector_it_has_in_a_batch() -> None:
    tower = tiny_tower("lora")
    batch_VD = tower.encode(tower.states(TEXTS))
    for text, vector_D in zip(TEXTS, batch_VD, strict=True):
        np.testing.assert_allclose(tower.encode(tower.states([text]))[0], vector_D, atol=1e-6)
    assert batch_VD.shape == (len(TEXTS), DIM)


def test_making_a_tower_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny_tower("lora")
    assert torch.rand(1) == expected


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(TextEncoderError, match="with 3 layers needs a BERT"):
        tiny_tower("top_layers", num_layers=3)


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TextEncoderError, match=r"pip install 'rheos\[text\]'"):
        tiny_tower("lora")
