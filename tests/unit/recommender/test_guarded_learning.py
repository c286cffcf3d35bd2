"""Learning under guard on simulated streams: drift is followed, harm is taken back."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.datasets import Dataset
from recommender.guarded_learning import GuardedLearning
from recommender.model import Recommender
from recommender.progressive import EvaluationSettings, evaluate
from recommender.promotion import Verdict, find_fault
from recommender.replay import ReplayMemory
from recommender.settings import GuardSettings, ModelSettings, TrainingSettings
from recommender.simulator import SimulatorSettings, simulate
from recommender.training import Learner

MODEL = ModelSettings(
    dim=32, num_layers=1, num_heads=1, intermediate=32, window=20, half_lives=(500.0, 2_000.0)
)
TRAINING = TrainingSettings(
    batch_windows=32,
    fresh_windows=8,
    learning_rate=3e-3,
    steps_per_500_events=24,
    replay_half_life=1_000.0,
)
GUARD = GuardSettings(
    hold_out_every=10,
    period_events=1_000,
    trust_events=100,
    fall_threshold=15.0,
    fall_tolerance=0.2,
    urgent_half_life=2_000.0,
    urgent_fresh_share=0.75,
)
NUM_ITEMS = 40


def stream(num_events: int) -> Dataset:
    """Users who mostly take the next part of a series."""
    return simulate(
        SimulatorSettings(
            num_users=num_events // 5,
            num_items=NUM_ITEMS,
            num_events=num_events,
            num_topics=6,
            initial_share=1.0,
            series_probability=0.8,
            taste_concentration=0.3,
            popularity_exponent=0.5,
        )
    )


def texts(dataset: Dataset) -> NDArray[np.float32]:
    names = sorted({item.categories[0] for item in dataset.items})
    topics_V = [names.index(item.categories[0]) for item in dataset.items]
    noise_VD = np.random.default_rng(0).standard_normal((len(topics_V), len(names)))
    return (np.eye(len(names))[topics_V] + 0.1 * noise_VD).astype(np.float32)


def drifting(dataset: Dataset, at: int) -> Dataset:
    """From an event on, every item plays the part of another: what follows what is new."""
    parts_V = np.random.default_rng(5).permutation(NUM_ITEMS).astype(np.int32)
    rows_N = dataset.rows_N.copy()
    rows_N[at:] = parts_V[rows_N[at:]]
    return replace(dataset, rows_N=rows_N)


def test_after_a_drift_the_learning_net_is_back_and_the_frozen_one_is_not() -> None:
    # Half warms up. The drift comes at the end of the first quarter of the other half, and the
    # last quarter is measured.
    dataset = drifting(stream(12_000), at=7_500)
    settings = EvaluationSettings(model=MODEL, training=TRAINING, guard=GUARD, round_events=100)
    report = evaluate(dataset, texts(dataset), settings, rankings=["frozen", "learning"])
    before, *_, after = report.quality["learning"]["ndcg_at_10_by_quarter"]
    assert before > 0.4
    assert after > 0.95 * before
    assert report.quality["frozen"]["ndcg_at_10_by_quarter"][-1] < 0.5 * before
    first = report.decisions[0]
    assert first.verdict is Verdict.ADAPT
    assert "the world has changed" in first.reason
    assert min(report.probe_changes) == 6_000
    assert report.probe_changes[6_000] < -0.2, "the old world is forgotten, as it should be"


class Rounds:
    """A guarded learner on a stream, driven round by round."""

    def __init__(self, num_events: int = 3_000, guard: GuardSettings = GUARD) -> None:
        self.dataset = stream(num_events)
        model = Recommender(MODEL, texts(self.dataset))
        training = TRAINING.model_copy(update={"warmup_epochs": 8, "ema_decay": 0.9})
        self.learner = Learner(model, training)
        self.memory = ReplayMemory(window=MODEL.window)
        self.guarded = GuardedLearning(self.learner, guard, MODEL, self.memory)
        self.popularity_MV = np.ones((2, NUM_ITEMS), np.float32)
        self.touched_V = np.ones(NUM_ITEMS, np.bool_)
        self.arrive(2_000)
        self.learner.warm_up(self._sample, 2_000, self.popularity_MV, self.touched_V)
        self.first = self.guarded.publish(self.popularity_MV)

    def arrive(self, num_events: int) -> None:
        start = self.memory.next_offset
        for index in range(start, start + num_events):
            data = self.dataset
            self.memory.append(int(data.users_N[index]), int(data.rows_N[index]), 5, index)
        self.guarded.remember(self.memory.fresh(start - 1, num_events))

    def learn(self, num_steps: int, *, poisoned: bool = False) -> None:
        for step in range(num_steps):
            windows = self._sample(32, np.random.default_rng(step))
            if poisoned:
                items_BT = windows.items_BT
                random_BT = np.random.default_rng(step).integers(NUM_ITEMS, size=items_BT.shape)
                windows = windows.with_items(
                    np.where(items_BT >= 0, random_BT, items_BT).astype(np.int32)
                )
            self.learner.step(windows, self.popularity_MV, self.touched_V)

    def _sample(self, n: int, rng: np.random.Generator) -> Any:
        return self.memory.sample(n, "uniform", 1.0, rng, self.guarded.leave_out())


def state_equals(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("hold_out_every", "reason"), [(10, "newest held-out events fell"), (0, "memory NDCG@10 fell")]
)
def test_poisoned_lessons_are_gated_unlearned_and_their_events_put_in_quarantine(
    hold_out_every: int, reason: str
) -> None:
    rounds = Rounds(guard=GUARD.model_copy(update={"hold_out_every": hold_out_every}))
    assert rounds.first.verdict is Verdict.PROMOTE
    good = rounds.learner.state()
    served = rounds.guarded.scorer
    rounds.arrive(100)
    rounds.learn(60, poisoned=True)
    assert not state_equals(rounds.learner.state(), good)
    decision = rounds.guarded.publish(rounds.popularity_MV)
    assert decision.verdict is Verdict.REJECT
    assert reason in decision.reason
    assert rounds.guarded.scorer is served
    assert state_equals(rounds.learner.state(), good)
    assert rounds.guarded.leave_out().spans == ((2_000, 2_099),)
    rounds.arrive(100)
    rounds.learn(5)
    assert rounds.guarded.publish(rounds.popularity_MV).verdict is Verdict.PROMOTE
    assert rounds.guarded.leave_out().spans == ((2_000, 2_099),), "it stays where it is"


def test_weights_that_are_not_finite_are_never_served() -> None:
    rounds = Rounds(2_200)
    served = rounds.guarded.scorer
    state = rounds.learner.state()
    spoilt = {**state, "average.bias_V": np.full(NUM_ITEMS, np.nan, np.float32)}
    rounds.learner.load_state(spoilt)
    decision = rounds.guarded.publish(rounds.popularity_MV)
    assert decision.verdict is Verdict.REJECT
    assert "item_bias holds a value that is not finite" in decision.reason
    assert rounds.guarded.scorer is served
    assert state_equals(rounds.learner.state(), state)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", sorted(Recommender(MODEL, np.eye(NUM_ITEMS, dtype=np.float32)).export_state())
)
def test_no_array_of_a_version_may_hold_a_number_that_is_not_finite(name: str, bad: float) -> None:
    state = Recommender(MODEL, np.eye(NUM_ITEMS, dtype=np.float32)).export_state()
    spoilt_array = np.array(state[name])
    spoilt_array.reshape(-1)[-1] = bad
    assert find_fault(state, state) is None
    for head in (None, state):
        fault = find_fault({**state, name: spoilt_array}, head)
        assert fault == f"{name} holds a value that is not finite"


def test_moments_that_are_not_finite_spoil_weights_that_are_taken_back() -> None:
    rounds = Rounds(2_200)
    served = rounds.guarded.scorer
    good = rounds.learner.state()
    rounds.learner.load_state({**good, "exp_avg.bias_V": np.full(NUM_ITEMS, np.nan, np.float32)})
    rounds.arrive(100)
    rounds.learn(1)  # the gradient is fine, the step is not
    decision = rounds.guarded.publish(rounds.popularity_MV)
    assert decision.verdict is Verdict.REJECT
    assert "item_bias holds a value that is not finite" in decision.reason
    assert rounds.guarded.scorer is served
    assert state_equals(rounds.learner.state(), good)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_anchor_survives_a_restart_and_holds_what_was_known(weight: float) -> None:
    rounds = Rounds(2_200)
    settings = TRAINING.model_copy(update={"anchor_weight": weight, "anchor_steps": 1_000})
    anchored = Learner(Recommender(MODEL, texts(rounds.dataset)), settings)
    anchored.load_state(rounds.learner.state())
    again = Learner(Recommender(MODEL, texts(rounds.dataset)), settings)
    rounds.learner = anchored
    rounds.learn(3)
    again.load_state(anchored.state())
    rounds.learn(2)
    rounds.learner = again
    rounds.learn(2)
    assert state_equals(again.state(), anchored.state())
