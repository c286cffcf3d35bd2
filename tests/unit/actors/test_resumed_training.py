"""Whenever training is killed, it goes on exactly as it would have: the same losses and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broken_runs import Arrivals, BrokenRun, Kill
from local_teacher import ITEMS, MODEL, taste_events

from actors.examiner import Examiner
from actors.lessons import TrainingJobSettings
from actors.lineage import Lineage
from actors.parameter_store_client import ParameterStoreClient
from actors.served_versions import ServedVersions
from actors.settings import BufferSettings, LoopSettings
from actors.stream_feed import StreamFeed
from actors.teacher import Teacher
from actors.training_loop import TrainingLoop
from actors.version_files import VersionFiles
from recommender.settings import MEASURED_FILTERS, GuardSettings, Section, TrainingSettings
from recommender.training import Learner

Run = Callable[..., BrokenRun]

ARRIVALS = [
    Arrivals(ITEMS, taste_events(0, 200, num_users=150)),
    *(Arrivals([], taste_events(n, n + 40, num_users=150)) for n in range(200, 400, 40)),
]

SETTINGS = TrainingJobSettings(
    loop=LoopSettings(warmup_events=100, scored_per_round=30, round_events=1),
    buffer=BufferSettings(num_shards=2),
    model=MODEL,
    training=TrainingSettings(
        batch_windows=8,
        fresh_windows=2,
        warmup_epochs=1,
        steps_per_500_events=50,
        learning_rate=0.02,
        ema_decay=0.5,  # so that versions rank differently
    ),
    guard=GuardSettings(trust_events=20, hold_out_every=5, period_events=100),
)


PLACES = {
    "while the warm-up learns": Kill(Learner, "step", True, 0, call=3),
    "before the first version is stored": Kill(ParameterStoreClient, "publish", False, 0),
    "once the first version is stored": Kill(ParameterStoreClient, "publish", True, 0),
    "before the warm-up is reported": Kill(TrainingLoop, "_report_to_train", False, 1),
    "while it waits": Kill(StreamFeed, "wait", False, 2),
    "once events are read": Kill(StreamFeed, "wait", True, 2),
    "once events are handed out": Kill(StreamFeed, "take", True, 2),
    "once the catalogue has told": Kill(StreamFeed, "catalog_growth", True, 2),
    "once events are predicted": Kill(Examiner, "examine", True, 2),
    "once replay is drawn": Kill(StreamFeed, "replay", True, 2),
    "before the first step": Kill(Learner, "step", False, 2),
    "amid the steps": Kill(Learner, "step", True, 2, call=2),
    "after the last step": Kill(Teacher, "learned", True, 2),
    "once the candidate is judged": Kill(Lineage, "judge", True, 2),
    "before the version is stored": Kill(ParameterStoreClient, "publish", False, 2),
    "once the version is served": Kill(ServedVersions, "_serve", True, 2),
    "once the version is stored": Kill(ParameterStoreClient, "publish", True, 2),
    "once the version is known": Kill(Lineage, "promoted", True, 3),
    "before anything is pinned": Kill(Teacher, "_pin", False, 3),
    "once one version is pinned": Kill(ParameterStoreClient, "pin", True, 3),
    "once all are pinned": Kill(Teacher, "_pin", True, 3),
    "once the round is over": Kill(Teacher, "publish", True, 2),
}
"""Places of a round. What happens in the store is listed apart, where the store dies too."""

IN_THE_STORE = {
    "before the version is written": Kill(VersionFiles, "write", False, 2),
    "once the version is written and not yet served": Kill(VersionFiles, "write", True, 2),
    "before the move of the head is written": Kill(ServedVersions, "_serve", False, 2),
}


def changed(**sections: Section) -> TrainingJobSettings:
    """The settings with other sections."""
    return SETTINGS.model_copy(update=sections)


VARIANTS = {
    "nobody held out": changed(guard=GuardSettings(trust_events=20)),
    "filters": changed(filters=MEASURED_FILTERS),
    "an anchor and sampled items": changed(
        training=SETTINGS.training.model_copy(
            update={
                "anchor_weight": 0.5,
                "anchor_steps": 3,
                "sampled_softmax_above": 5,
                "num_sampled": 16,
            }
        )
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs over the same stream, each in a folder of its own."""

    def run_it(
        *kills: Kill,
        settings: TrainingJobSettings = SETTINGS,
        arrivals: Sequence[Arrivals] = ARRIVALS,
        **options: Any,
    ) -> BrokenRun:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.MonkeyPatch.context() as patch:
            return BrokenRun(folder, patch, settings, arrivals, kills, **options)

    return run_it


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> BrokenRun:
    """The unbroken run."""
    with pytest.MonkeyPatch.context() as patch:
        return BrokenRun(tmp_path_factory.mktemp("whole"), patch, SETTINGS, ARRIVALS)


def assert_same(resumed: BrokenRun, whole: BrokenRun, num_kills: int = 1) -> None:
    """Every loss and array is the same at every watermark, and every event was fresh once."""
    assert resumed.num_kills == num_kills
    assert resumed.learned == whole.learned
    for shard in (0, 1):
        fresh = [
            offset for version in resumed.in_order() for offset in version.fresh.get(shard, ())
        ]
        assert fresh == list(range(100, 200)), "events were skipped, or fresh twice"


def test_the_unbroken_run_serves_every_round_and_comes_to_trust_a_later_version(
    whole: BrokenRun,
) -> None:
    versions = whole.in_order()
    assert [version.is_promoted for version in versions] == [True] * len(ARRIVALS)
    assert [len(version.losses) for version in versions[1:]] == [4] * (len(ARRIVALS) - 1)
    assert len({version.kept[0] for version in versions[1:]}) > 1


@pytest.mark.parametrize("reopens", [False, True], ids=["alone", "with shards and store"])
@pytest.mark.parametrize("place", PLACES)
def test_training_killed_anywhere_goes_on_to_the_same_weights(
    run: Run, whole: BrokenRun, place: str, reopens: bool
) -> None:
    assert_same(run(PLACES[place], reopens=reopens), whole)


@pytest.mark.parametrize("place", IN_THE_STORE)
def test_a_store_that_dies_with_training_amid_a_publish_loses_and_repeats_nothing(
    run: Run, whole: BrokenRun, place: str
) -> None:
    assert_same(run(IN_THE_STORE[place], reopens=True), whole)


def kills_in_every_round() -> list[Kill]:
    """Amid the steps of the warm-up and of each round."""
    return [Kill(Learner, "step", True, n, call=2) for n in range(len(ARRIVALS))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_killed_in_every_round_goes_on_to_the_same_weights(run: Run, variant: str) -> None:
    settings, kills = VARIANTS[variant], kills_in_every_round()
    whole = run(settings=settings)
    assert_same(run(*kills, settings=settings, reopens=True), whole, num_kills=len(kills))


def test_training_that_was_told_to_hurry_hurries_on_after_a_kill(run: Run) -> None:
    kills = kills_in_every_round()
    usual, whole = run(), run(alarms=2)
    assert [v.urgency > 0 for v in whole.in_order()] == [False, False, True, True, True, True]
    assert whole.in_order()[-1].losses != usual.in_order()[-1].losses
    assert_same(run(*kills, alarms=2, reopens=True), whole, num_kills=len(kills))


@pytest.mark.parametrize("place", ["once the version is stored", "once the round is over"])
def test_a_rejected_round_changes_nothing_of_what_a_resumed_run_learns(
    run: Run, place: str
) -> None:
    whole = run(rejects=2)
    assert [version.is_promoted for version in whole.in_order()].count(False) == 1
    assert_same(run(PLACES[place], rejects=2, reopens=True), whole)
    kills = [Kill(Learner, "step", True, 3, call=2)]
    assert_same(run(*kills, rejects=2, reopens=True), whole)


def test_a_catalogue_that_grew_changes_nothing_of_what_a_resumed_run_learns(run: Run) -> None:
    grown = [*ARRIVALS[:2], replace(ARRIVALS[2], items=["i-10", "a longer one"]), *ARRIVALS[3:]]
    kills = kills_in_every_round()
    whole = run(arrivals=grown)
    assert_same(run(*kills, arrivals=grown, reopens=True), whole, num_kills=len(kills))
