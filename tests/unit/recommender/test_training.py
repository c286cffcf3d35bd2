from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from recommender.model import Recommender
from recommender.promotion import find_non_finite
from recommender.scorer import Scorer
from recommender.settings import ModelSettings, TrainingSettings
from recommender.training import Learner
from recommender.windows import PAD, Windows

MODEL = ModelSettings(
    dim=8, num_layers=2, num_heads=2, intermediate=16, window=5, half_lives=(10.0, 100.0)
)
TRAINING = TrainingSettings(batch_windows=8, fresh_windows=2)
NUM_ITEMS, TEXT_DIM = 40, 6
POPULARITY_MV = np.ones((2, NUM_ITEMS), np.float32)
TOUCHED_V = np.ones(NUM_ITEMS, np.bool_)


def texts(num_items: int = NUM_ITEMS, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num_items, TEXT_DIM)).astype(np.float32)


def successor_windows(num_windows: int, rng: np.random.Generator) -> Windows:
    """Users who take items in order, from a random first one."""
    starts_B1 = rng.integers(0, NUM_ITEMS, (num_windows, 1))
    items_BT = ((starts_B1 + np.arange(6)) % NUM_ITEMS).astype(np.int32)
    zeros_BT = np.zeros(items_BT.shape, np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.full(num_windows, 6, np.int32))


def new_learner(
    training: TrainingSettings = TRAINING, *, seed: int = 2, worker: int = 0
) -> Learner:
    return Learner(Recommender(MODEL, texts(), seed=seed), training, seed=seed, worker=worker)


def take_steps(learner: Learner, num_steps: int, *, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return [
        learner.step(successor_windows(8, rng), POPULARITY_MV, TOUCHED_V) for _ in range(num_steps)
    ]


def assert_same_state(
    one: dict[str, NDArray[np.generic]], other: dict[str, NDArray[np.generic]]
) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_what_follows_what_is_learned_and_served() -> None:
    learner = new_learner(TRAINING.model_copy(update={"learning_rate": 0.01, "warmup_epochs": 50}))
    learner.warm_up(successor_windows, 100, POPULARITY_MV, TOUCHED_V)
    scorer = Scorer.from_state(learner.ema_state(), MODEL)
    windows = successor_windows(40, np.random.default_rng(77))
    scores_BV = scorer.net_scores(windows, POPULARITY_MV)
    wanted_B = (windows.items_BT[:, -1] + 1) % NUM_ITEMS
    assert (scores_BV.argmax(axis=1) == wanted_B).mean() > 0.8


def test_a_resumed_run_equals_an_unbroken_one_step_for_step() -> None:
    unbroken = new_learner()
    take_steps(unbroken, 3, seed=0)
    resumed = new_learner(seed=11)
    resumed.load_state(unbroken.state())
    assert_same_state(resumed.state(), unbroken.state())
    torch.manual_seed(123)  # what others do with the global generator does not matter
    assert take_steps(resumed, 3, seed=1) == take_steps(unbroken, 3, seed=1)
    assert_same_state(resumed.state(), unbroken.state())
    assert_same_state(resumed.ema_state(), unbroken.ema_state())


def test_a_learner_that_never_stepped_can_be_resumed() -> None:
    fresh, resumed = new_learner(), new_learner(seed=11)
    resumed.load_state(fresh.state())
    assert take_steps(resumed, 2, seed=1) == take_steps(fresh, 2, seed=1)


def test_resuming_brings_the_catalogue_along() -> None:
    grown = new_learner()
    take_steps(grown, 2, seed=0)
    grown.grow(texts(3, seed=8))
    resumed = new_learner(seed=11)
    resumed.load_state(grown.state())
    assert resumed.model.num_items == NUM_ITEMS + 3
    assert take_steps(resumed, 2, seed=1) == take_steps(grown, 2, seed=1)
    assert_same_state(resumed.state(), grown.state())


def test_growth_keeps_the_moments_of_old_items_and_starts_new_ones_at_zero() -> None:
    learner = new_learner()
    take_steps(learner, 3, seed=0)
    before = learner.state()
    learner.grow(texts(2, seed=8))
    after = learner.state()
    for name in ("raw.residual_VH", "average.residual_VH", "exp_avg.residual_VH"):
        np.testing.assert_array_equal(after[name][:NUM_ITEMS], before[name])
        np.testing.assert_array_equal(after[name][NUM_ITEMS:], 0)
    for name in ("exp_avg_sq.projection.weight", "step.bias_V", "average.bos_H"):
        np.testing.assert_array_equal(after[name], before[name])


def test_new_items_do_not_disturb_what_is_learned_of_the_others() -> None:
    grown, other = new_learner(), new_learner()
    grown.grow(texts(2, seed=8))
    take_steps(grown, 5, seed=0)
    take_steps(other, 5, seed=0)
    np.testing.assert_allclose(
        grown.ema_state()["item_vectors"][:NUM_ITEMS], other.ema_state()["item_vectors"], atol=1e-5
    )


def test_an_item_that_arrived_later_is_learned() -> None:
    learner = new_learner()
    take_steps(learner, 2, seed=0)
    learner.grow(texts(1, seed=8))
    items_BT = np.array([[NUM_ITEMS] * 6], np.int32)
    zeros_BT = np.zeros((1, 6), np.int8)
    windows = Windows(items_BT, zeros_BT, zeros_BT, np.array([6], np.int32))
    learner.step(windows, POPULARITY_MV, TOUCHED_V)
    assert learner.state()["raw.bias_V"][NUM_ITEMS] > 0


def test_a_changed_text_reaches_the_served_weights() -> None:
    learner = new_learner()
    before_VH = learner.ema_state()["item_vectors"]
    learner.replace_text(np.array([4]), texts(1, seed=8))
    changed = np.flatnonzero((learner.ema_state()["item_vectors"] != before_VH).any(axis=1))
    assert changed.tolist() == [4]


def test_one_step_moves_the_average_by_one_hundredth() -> None:
    learner = new_learner()
    before = learner.state()
    take_steps(learner, 1, seed=0)
    after = learner.state()
    for name in ("bias_V", "projection.weight", "gate.bias"):
        expected = 0.99 * before[f"average.{name}"] + 0.01 * after[f"raw.{name}"]
        np.testing.assert_allclose(after[f"average.{name}"], expected, atol=1e-7)
        assert not np.array_equal(after[f"raw.{name}"], before[f"raw.{name}"])
    np.testing.assert_array_equal(learner.ema_state()["item_bias"], after["average.bias_V"])


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    take_steps(new_learner(), 1, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_workers_draw_their_own_positions() -> None:
    one, same, other = (take_steps(new_learner(worker=worker), 1, seed=0) for worker in (0, 0, 1))
    assert one == same
    assert one != other


def test_workers_share_the_batch() -> None:
    settings = TrainingSettings(batch_windows=64)
    shares = [
        Learner(Recommender(MODEL, texts()), settings, num_workers=n).windows_per_step
        for n in (1, 2, 3)
    ]
    assert shares == [64, 32, 22]


@pytest.mark.parametrize(("num_fresh", "steps"), [(0, 1), (1, 1), (63, 2), (500, 8), (750, 12)])
def test_online_steps_follow_the_number_of_fresh_events(num_fresh: int, steps: int) -> None:
    assert new_learner().online_steps(num_fresh) == steps


def test_the_warm_up_rises_holds_and_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = new_learner(TRAINING.model_copy(update={"warmup_epochs": 3, "ramp_steps": 4}))
    rates: list[float] = []

    def record(*_: object, learning_rate: float) -> float:
        rates.append(learning_rate / learner.settings.learning_rate)
        return 0.0

    monkeypatch.setattr(learner, "step", record)
    seen: list[tuple[int, int]] = []
    learner.warm_up(
        successor_windows, 106, POPULARITY_MV, TOUCHED_V, lambda *step: seen.append(step)
    )
    assert learner.warmup_steps(106) == 20  # 3 epochs of 106 targets, 16 of them a step
    assert seen == [(step + 1, 20) for step in range(20)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(rates[4:11], 1.0)
    np.testing.assert_allclose(rates[11:13], [0.92, 0.84])
    assert rates[-1] == pytest.approx(0.28)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights() -> None:
    learner = new_learner()
    take_steps(learner, 1, seed=0)
    with torch.no_grad():
        learner.model.bias_V[3] = torch.nan
    before = learner.state()
    with pytest.raises(FloatingPointError, match="step 1"):
        take_steps(learner, 1, seed=0)
    assert_same_state(learner.state(), before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["text_VD", "residual_VH", "bias_V", "feedback", "gaps", "bos_H"])
def test_a_text_or_a_weight_that_is_not_finite_changes_no_other_weight(
    name: str, bad: float
) -> None:
    learner = new_learner()
    take_steps(learner, 2, seed=0)
    with torch.no_grad():
        getattr(learner.model, name).view(-1)[0] = bad
    before = learner.state()
    with pytest.raises(FloatingPointError, match="gradient norm nan at step 2"):
        take_steps(learner, 1, seed=0)
    assert_same_state(learner.state(), before)
    assert find_non_finite(learner.ema_state()) is None


def test_a_count_that_is_not_a_number_changes_no_weight() -> None:
    learner = new_learner()
    before = learner.state()
    popularity_MV = POPULARITY_MV.copy()
    popularity_MV[0, 3] = np.nan
    windows = successor_windows(8, np.random.default_rng(0))
    with pytest.raises(FloatingPointError, match="gradient norm nan at step 0"):
        learner.step(windows, popularity_MV, TOUCHED_V)
    assert_same_state(learner.state(), before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_gradient_that_is_not_finite_is_enough(bad: float) -> None:
    learner = new_learner()
    take_steps(learner, 1, seed=0)
    before = learner.state()

    def spoil(gradient: Tensor) -> Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[-1] = bad
        return spoilt

    hook = learner.model.gate.bias.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"gradient norm (nan|inf) at step 1"):
        take_steps(learner, 1, seed=0)
    assert_same_state(learner.state(), before)
    hook.remove()
    take_steps(learner, 1, seed=0)
    assert find_non_finite(learner.ema_state()) is None


def test_an_item_the_model_does_not_have_is_refused() -> None:
    windows = successor_windows(2, np.random.default_rng(0))
    windows.items_BT[0, 0] = NUM_ITEMS
    with pytest.raises(ValueError, match="item row 40 in a model of 40 items"):
        new_learner().step(windows, POPULARITY_MV, TOUCHED_V)


def test_counters_may_be_ahead_of_the_model_or_behind_it() -> None:
    rng = np.random.default_rng(0)
    for known in (NUM_ITEMS - 5, NUM_ITEMS + 5):
        popularity_MV = np.ones((2, known), np.float32)
        loss = new_learner().step(
            successor_windows(8, rng), popularity_MV, np.ones(known, np.bool_)
        )
        assert np.isfinite(loss)


def test_a_large_catalogue_learns_from_a_sample() -> None:
    sampled = TRAINING.model_copy(update={"sampled_softmax_above": 16, "num_sampled": 16})
    learner = new_learner(sampled.model_copy(update={"learning_rate": 0.01}))
    losses = take_steps(learner, 150, seed=0)
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])


def test_mixed_precision_learns_the_same_to_its_precision() -> None:
    exact, mixed = new_learner(), new_learner(TRAINING.model_copy(update={"precision": "bfloat16"}))
    np.testing.assert_allclose(
        take_steps(mixed, 3, seed=0), take_steps(exact, 3, seed=0), rtol=0.02
    )
    assert {array.dtype for array in mixed.ema_state().values()} == {np.dtype(np.float32)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_resumed_run_on_a_gpu_equals_an_unbroken_one() -> None:
    one, other = (
        Learner(Recommender(MODEL, texts()), TRAINING, device="cuda", seed=1) for _ in range(2)
    )
    take_steps(one, 3, seed=0)
    other.load_state(one.state())
    np.testing.assert_allclose(take_steps(one, 3, seed=1), take_steps(other, 3, seed=1), rtol=1e-3)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_data_parallel_learner_grows_and_learns_as_a_plain_one() -> None:
    def wrap(module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module)

    plain = new_learner()
    parallel = Learner(Recommender(MODEL, texts(), seed=2), TRAINING, seed=2, wrap=wrap)
    for learner in (plain, parallel):
        take_steps(learner, 2, seed=0)
        learner.grow(texts(2, seed=8))
        take_steps(learner, 2, seed=1)
    for name, array in plain.state().items():
        np.testing.assert_allclose(parallel.state()[name], array, atol=1e-6, err_msg=name)


def test_padding_never_reaches_a_used_position() -> None:
    """The last item stands in for PAD, so its vector must not matter to those who never had it."""
    rng = np.random.default_rng(0)
    items_BT = rng.integers(0, NUM_ITEMS - 1, (8, 6)).astype(np.int32)
    items_BT[:, 3:] = PAD
    zeros_BT = np.zeros((8, 6), np.int8)
    windows = Windows(items_BT, zeros_BT, zeros_BT, np.full(8, 3, np.int32))
    touched_V = TOUCHED_V.copy()
    touched_V[-1] = False
    learner = new_learner(TRAINING.model_copy(update={"weight_decay": 0.0}))
    learner.step(windows, POPULARITY_MV, touched_V)
    learner.step(windows, POPULARITY_MV, touched_V)
    assert not learner.state()["raw.residual_VH"][-1].any()
