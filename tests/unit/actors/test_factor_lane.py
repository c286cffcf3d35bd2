"""iALS in the training loop: what it counts, what it publishes, and what a restart gives back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_actors import Storage
from local_teacher import MODEL, World, job, taste_events
from numpy.typing import NDArray

from actors.examiner import Examiner
from actors.factor_lane import FactorLane
from actors.lessons import Restart
from actors.lineage import Lineage
from actors.stream_feed import StreamFeed
from actors.teacher import Teacher
from recommender.counters import Counters
from recommender.implicit_factors import ItemFactors, SolverMissing
from recommender.settings import (
    BlendSettings,
    FactorSettings,
    GuardSettings,
)
from recommender.training import Learner

ON = FactorSettings(enabled=True, factors=4, regularisation=1.0, refit_events=60)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    pytest.importorskip("implicit")
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


def factors_of(payload: Mapping[str, NDArray[Any]]) -> ItemFactors:
    return ItemFactors.from_state(
        {name.removeprefix("ials."): v for name, v in payload.items() if name.startswith("ials.")}
    )


def next_version(world: World, teacher: Teacher, learner: Learner) -> ItemFactors:
    assert teacher.next_action(False) is not None
    teacher.publish(learner)
    return factors_of(world.store.payloads[-1])


def test_without_it_no_version_has_an_array_of_it(world: World) -> None:
    teacher, learner = world.warmed_up(job())
    world.append(taste_events(200, 300))
    assert teacher.next_action(False) is not None
    teacher.publish(learner)
    assert len(world.store.payloads) == 2
    for arrays in (*world.store.payloads, *world.store.trainers):
        assert not [name for name in arrays if name.startswith("ials")]
    assert "progressive_ials_ndcg_at_10" not in world.store.infos[-1].manifest.metrics


def test_the_first_version_has_factors_of_all_events_and_later_ones_are_refitted(
    world: World,
) -> None:
    teacher, learner = world.warmed_up(job(ials=ON))
    first = factors_of(world.store.payloads[0])
    scores_V = first.scores(np.array([0, 1], np.int32))
    assert scores_V[2:5].min() > scores_V[5:].max() + 0.1
    world.append(taste_events(200, 250))
    assert next_version(world, teacher, learner).items_VF.tolist() == first.items_VF.tolist()
    world.append(taste_events(250, 270))
    assert next_version(world, teacher, learner).items_VF.tolist() != first.items_VF.tolist()
    assert world.store.infos[-1].manifest.metrics["progressive_ials_ndcg_at_10"] > 0.1
    assert world.store.infos[-1].manifest.settings["ials"]["enabled"]


def test_a_job_that_starts_again_scores_with_the_factors_of_the_head_and_fits_from_the_log(
    world: World,
) -> None:
    teacher, learner = world.warmed_up(job(ials=ON))
    world.append(taste_events(200, 250))
    before = next_version(world, teacher, learner)
    again = world.start(job(ials=ON))
    assert isinstance(again.next_action(True), Restart)
    old, new = teacher.factors._learner, again.factors._learner
    assert old is not None
    assert new is not None
    assert new.factors.items_VF.tolist() == before.items_VF.tolist()
    assert new.num_events == old.num_events == 250
    assert sorted(zip(new._users, new._rows, strict=True)) == sorted(
        zip(old._users, old._rows, strict=True)
    )
    world.append(taste_events(250, 300))
    for each in (teacher, again):
        each.next_action(False)
    assert old.num_events == new.num_events == 300
    assert new.factors.items_VF.tolist() != before.items_VF.tolist()
    history = np.array([5, 6], np.int32)
    np.testing.assert_allclose(new.scores(history), old.scores(history), atol=0.02)


def test_a_job_that_starts_on_a_head_without_factors_fits_them_from_the_log(world: World) -> None:
    world.warmed_up(job())
    again = world.start(job(ials=ON))
    assert isinstance(again.next_action(True), Restart)
    scores_V = again.factors.live(Counters()).factors.scores(np.array([7], np.int32))  # type: ignore[union-attr]
    assert scores_V[5:].mean() > scores_V[:5].mean() + 0.2


def test_when_the_head_goes_back_the_learner_goes_on_with_its_own(world: World) -> None:
    teacher, learner = world.warmed_up(job(ials=ON))
    world.append(taste_events(200, 280))
    newest = next_version(world, teacher, learner)
    first = factors_of(world.store.payloads[0])
    assert newest.items_VF.tolist() != first.items_VF.tolist()
    teacher.feed.run(world.store.promote(1, "by hand"))
    assert isinstance(teacher.next_action(False), Restart)
    own = teacher.factors._learner
    assert own is not None
    assert own.factors.items_VF.tolist() == newest.items_VF.tolist()
    assert own.num_events == 280
    world.append(taste_events(280, 290))
    assert next_version(world, teacher, learner).items_VF.tolist() == newest.items_VF.tolist()


def test_the_same_code_in_two_shards_is_two_users_also_when_they_are_scored(world: World) -> None:
    teacher, _ = world.warmed_up(job(ials=ON))
    world.append(taste_events(200, 230))
    teacher.next_action(False)
    own = teacher.factors._learner
    assert own is not None
    assert set(own._users) == set(range(30))
    for user, row in zip(own._users, own._rows, strict=True):
        # A shard's users are of one taste here, and the shard is the user's last digit.
        assert (row >= 5) == (user % 2 == 1)


def test_a_shard_that_starts_again_changes_no_user_and_no_rewind_counts_twice(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _ = world.warmed_up(job(ials=ON))
    run = teacher.feed.run
    run(world.storage.close())
    world.storage = Storage(tmp_path, monkeypatch, num_shards=2)
    feed = StreamFeed(2, Counters(), factors=FactorLane.of(ON, 2))
    feed._runner.close()
    feed._runner = teacher.feed._runner
    for _ in range(2):
        feed.rewind(tuple(teacher.feed.watermark))
    old, new = teacher.factors._learner, feed.factors._learner
    assert old is not None
    assert new is not None
    assert sorted(zip(new._users, new._rows, strict=True)) == sorted(
        zip(old._users, old._rows, strict=True)
    )


def test_the_blend_learns_how_much_ials_is_worth(world: World) -> None:
    teacher, _ = world.warmed_up(job(ials=ON))
    before = teacher.examiner.blend.weights()["ials"].copy()
    world.append(taste_events(200, 300))
    teacher.next_action(False)
    assert (teacher.examiner.blend.weights()["ials"] != before).any()
    off = Examiner(BlendSettings(), 10, 2)
    lineage = Lineage(GuardSettings(), MODEL, num_shards=2)
    off.examine([], Counters(), lineage, 10, FactorLane(None, 2), np.random.default_rng(0))
    assert off.metrics() == {}


def test_it_is_refused_without_its_solver_and_not_missed_when_it_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    assert FactorLane.of(FactorSettings(), 2).state() == {}
    with pytest.raises(SolverMissing, match="pip install"):
        FactorLane.of(ON, 2)
