from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from tiny_bert import tiny_bert
from torch import nn

from recommender.model import Recommender
from recommender.promotion import Verdict
from recommender.scorer import Scorer
from recommender.settings import (
    ModelSettings,
    TextSettings,
    TextTuningSettings,
    TrainingSettings,
)
from recommender.text_tower import TextTower
from recommender.text_tuning import TextTuner
from recommender.training import Learner
from recommender.windows import Windows

NUM_ITEMS = 40
TEXTS = [f"item {chr(97 + i % 26)}{chr(97 + i // 26)} of things" for i in range(NUM_ITEMS)]
MODEL = ModelSettings(
    dim=8, num_layers=1, num_heads=2, intermediate=16, window=5, half_lives=(10.0, 100.0)
)
TRAINING = TrainingSettings(batch_windows=8, fresh_windows=2, ema_decay=0.5, learning_rate=0.01)
TUNING = TextTuningSettings(
    mode="lora",
    lora_rank=2,
    learning_rate=0.01,
    gather_steps=2,
    items_per_step=6,
    refresh_steps=3,
    cpu_share=1.0,
)
POPULARITY_MV = np.ones((2, NUM_ITEMS), np.float32)
TOUCHED_V = np.ones(NUM_ITEMS, np.bool_)
TEXT = TextSettings(max_tokens=24)


def new_tower(settings: TextTuningSettings = TUNING) -> TextTower:
    return TextTower(tiny_bert(), TEXT, settings, seed=1)


BASE_VD = new_tower().encode(new_tower().states(TEXTS))


def new_tuner(
    settings: TextTuningSettings = TUNING, clock: Callable[[], float] = lambda: 0.0
) -> TextTuner:
    return TextTuner(new_tower(settings), settings, name="tiny", seed=4, clock=clock)


def tuner_with_items(settings: TextTuningSettings = TUNING) -> TextTuner:
    tuner = new_tuner(settings)
    tuner.add_items(TEXTS, BASE_VD)
    return tuner


def new_learner(on_gradient: Callable[[Learner], None] | None = None) -> Learner:
    learner = Learner(Recommender(MODEL, BASE_VD, seed=2), TRAINING, seed=2)
    # Without a warm-up the output matrix is zero, and no gradient reaches an item.
    nn.init.eye_(learner.model.output.weight)
    learner.on_gradient = on_gradient
    return learner


def windows_of(num_windows: int, rng: np.random.Generator) -> Windows:
    starts_B1 = rng.integers(0, NUM_ITEMS, (num_windows, 1))
    items_BT = ((starts_B1 + np.arange(6)) % NUM_ITEMS).astype(np.int32)
    zeros_BT = np.zeros(items_BT.shape, np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.full(num_windows, 6, np.int32))


def take_steps(learner: Learner, num_steps: int, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        learner.step(windows_of(8, rng), POPULARITY_MV, TOUCHED_V)


def text_of(learner: Learner) -> NDArray[np.float32]:
    text: NDArray[np.float32] = learner.model.text_VD.numpy().copy()
    return text


def moved_rows(learner: Learner) -> set[int]:
    changed_V = (text_of(learner) != text_of(new_learner())).any(axis=1)
    return set(np.flatnonzero(changed_V).tolist())


def scorer_of(learner: Learner) -> Scorer:
    return Scorer.from_state(learner.ema_state(), MODEL)


def test_the_gathered_gradient_is_that_of_the_texts_as_a_leaf() -> None:
    tuner = tuner_with_items(TUNING.model_copy(update={"gather_steps": 100}))
    leaf_gradients: list[torch.Tensor] = []
    gathered: list[torch.Tensor] = []

    def both(learner: Learner) -> None:
        leaf = learner.model.text_VD.grad
        assert leaf is not None
        leaf_gradients.append(leaf.clone())
        leaf.zero_()
        tuner.gather(learner.model)
        assert tuner._run.gradient_VD is not None
        gathered.append(tuner._run.gradient_VD)

    learner = new_learner(both)
    learner.model.text_VD.requires_grad_(True)
    take_steps(learner, 3)
    assert leaf_gradients[0].abs().max() > 0
    torch.testing.assert_close(gathered[-1], sum(leaf_gradients), atol=1e-7, rtol=1e-4)


def test_watching_the_gradient_leaves_the_learner_bit_for_bit_as_it_is() -> None:
    watched = new_learner(lambda learner: tuner_with_items().gather(learner.model))
    plain = new_learner()
    take_steps(watched, 3)
    take_steps(plain, 3)
    for name, array in plain.state().items():
        np.testing.assert_array_equal(watched.state()[name], array, err_msg=name)


def test_after_enough_steps_the_drawn_items_move_and_later_all_do() -> None:
    tuner = tuner_with_items()
    learner = new_learner(tuner.follow)
    take_steps(learner, 1)
    assert not moved_rows(learner)
    take_steps(learner, 1)
    assert len(moved_rows(learner)) == TUNING.items_per_step
    take_steps(learner, 4)
    assert tuner.num_steps == TUNING.refresh_steps
    assert moved_rows(learner) == set(range(NUM_ITEMS))


def test_a_step_of_bert_moves_the_texts_down_the_gradient() -> None:
    every_item = TUNING.model_copy(update={"items_per_step": NUM_ITEMS, "gather_steps": 1})
    tuner = tuner_with_items(every_item)
    learner = new_learner()
    wanted_VD = torch.randn(NUM_ITEMS, MODEL.dim, generator=torch.Generator().manual_seed(0))
    inner: list[float] = []
    for _ in range(20):
        with torch.no_grad():
            projected_VH = learner.model.projection(learner.model.text_VD)
        inner.append(float((projected_VH * wanted_VD).sum()))
        learner.model.residual_VH.grad = wanted_VD  # the loss is this inner product
        tuner.follow(learner)
    assert inner[-1] < inner[0] - 0.01


def test_raw_and_averaged_model_read_the_same_text() -> None:
    learner = new_learner(tuner_with_items().follow)
    take_steps(learner, 4)
    assert torch.equal(learner.average.text_VD, learner.model.text_VD)


def test_the_budget_holds_and_what_is_due_waits() -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 0.5  # the lane is charged for every look at the clock in between
        return now_s

    tuner = new_tuner(TUNING.model_copy(update={"cpu_share": 0.1, "gather_steps": 1}), clock)
    tuner.add_items(TEXTS, BASE_VD)
    learner = new_learner(tuner.follow)
    for seed in range(40):
        take_steps(learner, 1, seed=seed)
        assert tuner.spent_s <= 0.1 * now_s + 0.5
    assert 0 < tuner.num_steps < 20


def resumed(tuner: TextTuner, learner: Learner) -> tuple[TextTuner, Learner, NDArray[np.bool_]]:
    """Both from what a version stores, after the catalogue has told of every item again."""
    stored = load(save(learner.state() | tuner.state()))
    other = new_tuner()
    other.load_state(stored)
    changed = other.change_items(np.arange(NUM_ITEMS), TEXTS, BASE_VD)
    other_learner = new_learner(other.follow)
    other_learner.load_state(stored)
    return other, other_learner, changed


def test_a_resumed_tuner_goes_on_as_the_old_one_would_have() -> None:
    refresh_all = 2 * TUNING.refresh_steps
    tuner = tuner_with_items()
    learner = new_learner(tuner.follow)
    take_steps(learner, refresh_all)
    other, other_learner, changed = resumed(tuner, learner)
    assert not changed.any()
    np.testing.assert_array_equal(text_of(other_learner), text_of(learner))
    take_steps(learner, refresh_all, seed=1)
    take_steps(other_learner, refresh_all, seed=1)
    assert other.num_steps == tuner.num_steps == 2 * TUNING.refresh_steps
    # The first reads all items again at once, which the old one did a step earlier.
    np.testing.assert_allclose(text_of(other_learner), text_of(learner), atol=1e-5)
    for name, array in tuner.state().items():
        np.testing.assert_allclose(other.state()[name], array, atol=1e-5, err_msg=name)


def test_a_resumed_tuner_tells_which_texts_are_new() -> None:
    tuner = tuner_with_items()
    learner = new_learner(tuner.follow)
    take_steps(learner, 6)
    other = new_tuner()
    other.load_state(tuner.state())
    texts = [*TEXTS[:7], "another text", *TEXTS[8:]]
    changed = other.change_items(np.arange(NUM_ITEMS), texts, BASE_VD)
    assert np.flatnonzero(changed).tolist() == [7]


def test_a_text_that_changed_during_an_outage_reaches_the_reference() -> None:
    tuner = tuner_with_items()
    learner = new_learner(tuner.follow)
    tuner.begin(learner)
    take_steps(learner, 2)
    other, other_learner, _ = resumed(tuner, learner)
    other.change_items(np.array([7]), ["another text"], BASE_VD[3:4])
    other.begin(other_learner)
    text_VD = other.state()["text_tuning.reference.raw.text_VD"]
    np.testing.assert_allclose(text_VD[7], text_VD[3], atol=1e-6)


@pytest.mark.parametrize("changes", [{"lora_rank": 3}, {"mode": "top_layers"}])
def test_a_state_of_another_shape_is_left_and_every_text_counts_as_new(
    changes: dict[str, Any],
) -> None:
    tuner = tuner_with_items()
    take_steps(new_learner(tuner.follow), 4)
    other = new_tuner(TUNING.model_copy(update=changes))
    other.load_state(tuner.state())
    assert not other.is_tuned
    assert other.change_items(np.arange(NUM_ITEMS), TEXTS, BASE_VD).all()


def test_a_new_item_is_read_by_the_tuned_tower_at_the_next_step() -> None:
    tuner = tuner_with_items(TUNING.model_copy(update={"refresh_steps": 100}))
    learner = new_learner(tuner.follow)
    take_steps(learner, 2)
    tower = new_tower()
    text = "something new"
    pretrained_VD = tower.encode(tower.states([text]))
    tuner.add_items([text], pretrained_VD)
    learner.grow(pretrained_VD)
    served_first_D = text_of(learner)[-1]
    rng = np.random.default_rng(0)
    learner.step(windows_of(8, rng), np.ones((2, NUM_ITEMS + 1), np.float32), TOUCHED_V[[0] * 41])
    assert np.abs(text_of(learner)[-1] - served_first_D).max() > 1e-4


def test_a_replica_scores_a_newer_item_by_its_pretrained_vector() -> None:
    learner = new_learner(tuner_with_items().follow)
    take_steps(learner, 6)
    scorer = scorer_of(learner)
    np.testing.assert_array_equal(scorer.text_unit, text_of(learner))
    grown = scorer.with_items(np.array([NUM_ITEMS]), BASE_VD[:1])
    np.testing.assert_allclose(grown.text_unit[NUM_ITEMS], text_of(new_learner())[0], atol=1e-6)
    np.testing.assert_array_equal(grown.text_unit[:NUM_ITEMS], text_of(learner))


def compared(tuner: TextTuner, learner: Learner, *, num_windows: int) -> Verdict:
    windows = windows_of(num_windows, np.random.default_rng(9))
    return tuner.compare(scorer_of(learner), windows, POPULARITY_MV).verdict


def spoil(tuner: TextTuner) -> None:
    """A tower that reads other things in the texts than the one the learner knows."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in tuner._tower.trainable():
            parameter.normal_(std=3.0, generator=noise)
    tuner._run.stale.extend(range(NUM_ITEMS))


def trained_pair() -> tuple[TextTuner, Learner]:
    """A learner that knows what follows what, by its text alone, and one step of its tuner."""
    tuner = tuner_with_items(TUNING.model_copy(update={"learning_rate": 1e-6}))
    learner = new_learner()
    learner.model.residual_VH.register_hook(torch.zeros_like)
    take_steps(learner, 150)
    tuner.begin(learner)
    learner.model.residual_VH.grad = torch.ones(NUM_ITEMS, MODEL.dim)
    for _ in range(TUNING.gather_steps):
        tuner.follow(learner)
    return tuner, learner


def test_a_tower_that_loses_is_thrown_away_and_the_learner_goes_on_from_the_reference() -> None:
    tuner, learner = trained_pair()
    before = learner.state() | {"raw.text_VD": text_of(new_learner())}
    spoil(tuner)
    tuner.follow(learner)
    assert moved_rows(learner) == set(range(NUM_ITEMS))
    assert compared(tuner, learner, num_windows=300) is Verdict.REJECT
    state = tuner.lost_to()
    assert state is not None
    learner.load_state(state)
    for name, array in before.items():
        np.testing.assert_array_equal(learner.state()[name], array, err_msg=name)
    assert (tuner.is_tuned, tuner.num_started_over, tuner.lost_to()) == (False, 1, None)


def test_the_reference_learns_bit_for_bit_as_a_learner_whose_texts_are_frozen() -> None:
    tuner, plain = tuner_with_items(), new_learner()
    learner = new_learner(tuner.follow)
    tuner.begin(learner)
    rng = np.random.default_rng(0)
    for _ in range(8):
        windows = windows_of(8, rng)
        for step in (learner.step, tuner.step_reference, plain.step):
            step(windows, POPULARITY_MV, TOUCHED_V, learning_rate=0.02)
    assert tuner.is_tuned
    reference = tuner.state()
    for name, array in plain.state().items():
        stored = reference[f"text_tuning.reference.{name}"]
        np.testing.assert_array_equal(stored, array, err_msg=name)


def test_the_reference_of_a_resumed_tuner_is_the_one_that_was_stored_over_new_items_too() -> None:
    tuner = tuner_with_items()
    learner = new_learner(tuner.follow)
    tuner.begin(learner)
    rng = np.random.default_rng(0)
    for _ in range(4):
        windows = windows_of(8, rng)
        learner.step(windows, POPULARITY_MV, TOUCHED_V)
        tuner.step_reference(windows, POPULARITY_MV, TOUCHED_V)
    other, other_learner, _ = resumed(tuner, learner)
    other.add_items(["something new"], BASE_VD[:1])
    other_learner.grow(BASE_VD[:1])
    other.begin(other_learner)
    before, after = tuner.state(), other.state()
    for name in ("raw.text_VD", "raw.residual_VH", "average.projection.weight", "step.bos_H"):
        stored, kept = (s[f"text_tuning.reference.{name}"] for s in (before, after))
        np.testing.assert_array_equal(kept[: len(stored)] if kept.ndim else kept, stored)
    assert len(after["text_tuning.reference.raw.text_VD"]) == NUM_ITEMS + 1


def test_a_tower_that_does_not_lose_stays() -> None:
    tuner, learner = trained_pair()
    assert compared(tuner, learner, num_windows=300) is Verdict.PROMOTE
    assert tuner.is_tuned


def test_few_events_throw_nothing_away() -> None:
    tuner, learner = trained_pair()
    spoil(tuner)
    tuner.follow(learner)
    assert compared(tuner, learner, num_windows=50) is Verdict.PROMOTE
    assert tuner.is_tuned


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing() -> None:
    tuner = tuner_with_items()
    learner = new_learner()
    before = {name: value.detach().clone() for name, value in tuner._tower.trainable()}
    learner.model.residual_VH.grad = torch.full((NUM_ITEMS, MODEL.dim), float("inf"))
    tuner.follow(learner)
    with pytest.raises((FloatingPointError, ValueError)):
        tuner.follow(learner)
    for name, value in tuner._tower.trainable():
        assert torch.equal(value, before[name])
