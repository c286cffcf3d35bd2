"""Weights that are not finite, in the teacher: never served, and the reason is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from local_teacher import ITEMS, MODEL, World, job, taste_events

from actors.lessons import Restart
from recommender.model import Recommender
from recommender.training import Learner


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


def spoil(learner: Learner, bad: float) -> None:
    with torch.no_grad():
        learner.average.bias_V[3] = bad


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_first_version_that_is_not_finite_is_not_stored_at_all(world: World, bad: float) -> None:
    teacher = world.start(job())
    teacher.feed.run(world.storage.put(*ITEMS))
    world.append(taste_events(0, 200))
    action = teacher.next_action(True)
    assert isinstance(action, Restart)
    learner = Learner(Recommender(MODEL, action.growth.new_VD), job().training, seed=0)
    spoil(learner, bad)
    with pytest.raises(FloatingPointError, match="item_bias holds a value that is not finite"):
        teacher.publish(learner, "warm-up")
    assert world.store.infos == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_later_one_leaves_the_head_and_is_named_in_the_next_version(
    world: World, bad: float
) -> None:
    teacher, learner = world.warmed_up(job())
    good = learner.state()
    head = world.store.current
    world.append(taste_events(200, 220))
    assert teacher.next_action(False) is not None
    spoil(learner, bad)
    teacher.publish(learner)
    assert world.store.current is head
    restart = teacher.next_action(False)
    assert isinstance(restart, Restart)
    assert restart.state is not None
    np.testing.assert_array_equal(restart.state["average.bias_V"], good["average.bias_V"])
    learner.load_state(restart.state)
    teacher.publish(learner)
    assert world.store.current is not head
    reasons = [info.manifest.reason for info in world.store.infos]
    assert any("item_bias holds a value that is not finite" in reason for reason in reasons)


def test_a_gradient_that_is_not_finite_is_the_reason_that_is_told(world: World) -> None:
    teacher, learner = world.warmed_up(job())
    head = world.store.current
    world.append(taste_events(200, 220))
    assert teacher.next_action(False) is not None
    teacher.publish(learner, fault="gradient norm nan at step 7")
    assert world.store.current is head
    assert "gradient norm nan at step 7" in world.store.infos[-1].manifest.reason
