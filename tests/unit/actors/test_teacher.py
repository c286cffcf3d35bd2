"""The loop acts: harm that was served is taken back, and a full disk is waited out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from local_teacher import World, job, taste_events

from actors.lessons import Lesson, Restart
from actors.messages import Manifest, StorageError, StorageFull, VersionInfo
from actors.teacher import Teacher, when_there_is_space
from recommender.events import Event
from recommender.promotion import Decision, Verdict
from recommender.training import Learner

STORED = VersionInfo(Manifest(7, 6, 0, (0,), 0, 0, "round"), True, False, 100)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


def visits(first: int, last: int) -> list[Event]:
    """Few from each user, so that most are of an item that the user has not seen."""
    return taste_events(first, last, num_users=200)


def spoil(learner: Learner) -> None:
    """Whoever liked one half of the items is now shown the other."""
    with torch.no_grad():
        learner.model.output.weight.neg_()
        learner.average.output.weight.neg_()


def slip_through(teacher: Teacher, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> int:
    """Serve what the guard would not have let through; returns its number."""
    promoted = Decision(Verdict.PROMOTE, "nobody looked")
    with monkeypatch.context() as patched:
        patched.setattr(teacher.lineage, "judge", lambda *_: promoted)
        teacher.publish(learner)
    return teacher.lineage.head


def second_version(
    world: World, monkeypatch: pytest.MonkeyPatch, change: Callable[[Learner], None] | None = None
) -> tuple[Teacher, Learner]:
    """A teacher whose second version is served, as it was learned or changed."""
    teacher, learner = world.warmed_up(job(), visits(0, 400), num_steps=600)
    world.append(visits(400, 460))
    assert isinstance(teacher.next_action(False), Lesson)
    if change is not None:
        change(learner)
    assert slip_through(teacher, learner, monkeypatch) == 2
    assert world.store.current is not None
    assert world.store.current.manifest.version == 2
    return teacher, learner


def test_a_served_version_that_does_harm_goes_by_itself_and_what_it_learned_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, learner = second_version(world, monkeypatch, spoil)

    world.append(visits(460, 860))
    action = teacher.next_action(False)

    assert isinstance(action, Restart)
    assert world.store.current is not None
    assert world.store.current.manifest.version == 1
    assert world.store.current.reason.startswith("rolled back: progressive NDCG@10 over")
    assert action.state is not None
    for name, values in world.store.trainers[0].items():
        np.testing.assert_array_equal(action.state[name], values)

    learner.load_state(action.state)
    world.append(visits(860, 900))
    lesson = teacher.next_action(False)
    assert isinstance(lesson, Lesson)
    teacher.publish(learner)
    manifest = world.store.infos[-1].manifest
    assert manifest.parent == 1
    assert manifest.metrics["num_rolled_back"] == 1
    assert manifest.metrics["fall_ndcg_at_10"] < 0.9 * manifest.metrics["fall_ndcg_at_10_trusted"]
    assert "roll_back before: progressive NDCG@10" in manifest.reason
    # A shard has every other event: 200 before the first version, 430 until harm was seen.
    assert manifest.quarantined == ((0, 200, 429), (1, 200, 429))
    assert manifest.trained_through == (449, 449)


def test_a_served_version_that_does_no_harm_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, _ = second_version(world, monkeypatch)
    world.append(visits(460, 860))
    assert isinstance(teacher.next_action(False), Lesson)
    assert world.store.current is not None
    assert world.store.current.manifest.version == 2


def test_a_publish_that_ends_while_training_starts_puts_nothing_into_quarantine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_version(world, monkeypatch)
    stored = world.store.list_versions

    async def list_and_end() -> list[VersionInfo]:
        await world.store.promote(2, "the publish is over")
        return await stored()

    world.teachers[0].feed.run(world.store.promote(1, "not yet over"))
    monkeypatch.setattr(world.store, "list_versions", list_and_end)
    teacher = world.start(job())
    assert isinstance(teacher.next_action(True), Restart)
    assert teacher.lineage.head == 2
    assert teacher.lineage.quarantine.spans() == ()


def test_learning_waits_while_the_disk_is_full_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    num_refusals = 2

    def publish() -> VersionInfo:
        nonlocal num_refusals
        num_refusals -= 1
        if num_refusals >= 0:
            raise StorageFull("1 byte is free")
        return STORED

    with caplog.at_level(logging.WARNING):
        assert when_there_is_space(publish, pause_s=0.0) is STORED
    assert [record.getMessage() for record in caplog.records] == [
        "learning waits for disk space error=1 byte is free"
    ]


def test_another_failure_of_the_store_is_not_waited_out() -> None:
    def publish() -> VersionInfo:
        raise StorageError("fsync failed")

    with pytest.raises(StorageError, match="fsync failed"):
        when_there_is_space(publish)
