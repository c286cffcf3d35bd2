import math

import numpy as np
import pytest

from recommender.drift import Pace, PageHinkley, Urgency
from recommender.settings import TrainingSettings

TRAINING = TrainingSettings(learning_rate=1e-3, batch_windows=64, fresh_windows=16)


def first_alarm(watch: PageHinkley, values: np.ndarray) -> int | None:
    return next((i for i, value in enumerate(values.tolist()) if watch.observe(value)), None)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_a_fall_is_noticed_soon_on_any_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    values = scale * np.concatenate([rng.normal(1.0, 1.0, 2_000), rng.normal(0.5, 1.0, 2_000)])
    alarm = first_alarm(PageHinkley(threshold=50.0, tolerance=0.1), values)
    assert alarm is not None
    assert 2_000 + 50 < alarm < 2_000 + 400  # about 50 / (0.5 - 0.1) values


def test_where_the_fall_began_is_known() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(1.0, 1.0, 2_000), rng.normal(0.0, 1.0, 2_000)])
    watch = PageHinkley()
    alarm = first_alarm(watch, values)
    assert alarm is not None
    assert alarm - watch.num_since_lowest == pytest.approx(2_000, abs=30)


def test_noise_and_a_rise_are_no_fall() -> None:
    rng = np.random.default_rng(2)
    hits = (rng.random(20_000) < 0.2).astype(float)  # as ragged as NDCG@10
    assert first_alarm(PageHinkley(), hits) is None
    rise = np.concatenate([rng.normal(0.0, 1.0, 2_000), rng.normal(1.0, 1.0, 2_000)])
    assert first_alarm(PageHinkley(), rise) is None


def test_a_fall_within_the_tolerance_is_put_up_with() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(1.0, 1.0, 2_000), rng.normal(0.6, 1.0, 2_000)])
    assert first_alarm(PageHinkley(tolerance=0.5), values) is None
    assert first_alarm(PageHinkley(tolerance=0.1), values) is not None


def test_the_first_values_only_tell_what_is_normal() -> None:
    assert first_alarm(PageHinkley(threshold=1.0, min_values=100), -np.arange(100.0)) is None


def test_after_a_reset_the_low_level_is_the_normal_one() -> None:
    rng = np.random.default_rng(4)
    watch = PageHinkley()
    assert first_alarm(watch, rng.normal(1.0, 1.0, 1_000)) is None
    watch.reset()
    assert first_alarm(watch, rng.normal(0.0, 1.0, 5_000)) is None


def test_a_stream_without_any_spread_never_alarms() -> None:
    assert first_alarm(PageHinkley(), np.zeros(5_000)) is None


def test_without_urgency_the_pace_is_that_of_the_settings() -> None:
    urgency = Urgency(
        half_life=100.0, max_rate_factor=2.0, max_fresh_share=0.5, min_replay_half_life=2_000.0
    )
    assert urgency.pace(TRAINING) == Pace.of(TRAINING) == Pace(1e-3, 16, 20_000.0)


def test_the_pace_rises_to_its_bounds_at_an_alarm_and_comes_back() -> None:
    urgency = Urgency(
        half_life=100.0, max_rate_factor=2.0, max_fresh_share=0.5, min_replay_half_life=2_000.0
    )
    urgency.alarm()
    urgency.alarm()
    assert urgency.pace(TRAINING) == Pace(2e-3, 32, 2_000.0)
    urgency.passed(100)
    halfway = urgency.pace(TRAINING)
    assert halfway.learning_rate == pytest.approx(1.5e-3)
    assert halfway.fresh_windows == 24
    assert halfway.replay_half_life == pytest.approx(20_000 / math.sqrt(10))
    urgency.passed(10_000)
    calm = urgency.pace(TRAINING)
    assert calm.learning_rate == pytest.approx(1e-3)
    assert calm.fresh_windows == 16
    assert calm.replay_half_life == pytest.approx(20_000.0)


def test_urgency_never_slows_learning_down() -> None:
    urgency = Urgency(
        half_life=1.0, max_rate_factor=1.0, max_fresh_share=0.1, min_replay_half_life=1e9, level=1.0
    )
    assert urgency.pace(TRAINING) == Pace.of(TRAINING)
