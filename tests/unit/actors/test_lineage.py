import numpy as np
from numpy.typing import NDArray

from actors.lineage import Lineage
from actors.messages import Head, Manifest, VersionInfo, Watermark
from recommender.model import Recommender
from recommender.scorer import Scorer
from recommender.settings import GuardSettings, ModelSettings

MODEL = ModelSettings(dim=8, num_layers=1, intermediate=8, window=4, half_lives=(10.0,))
GUARD = GuardSettings(hold_out_every=3, trust_events=10)
POPULARITY_MV = np.zeros((1, 5), np.float32)


def texts(num_items: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(num_items, 6)).astype(np.float32)


STATE = Recommender(MODEL, texts(5)).export_state()


def stored(
    version: int, through: Watermark, quarantined: tuple[tuple[int, int, int], ...] = ()
) -> VersionInfo:
    manifest = Manifest(version, 0, 0, through, 5, 0, "test", quarantined=quarantined)
    return VersionInfo(manifest, is_head=False, is_pinned=False, size_bytes=0)


def begin(lineage: Lineage, head: VersionInfo, *others: VersionInfo, taken: Watermark) -> Watermark:
    return lineage.begin(Head(1, head.manifest, ""), STATE, [head, *others], taken)


def new_lineage() -> Lineage:
    return Lineage(GUARD, MODEL, num_shards=2)


def promote(lineage: Lineage, version: int) -> None:
    lineage.promoted(version, STATE, Scorer.from_state(STATE, MODEL))


def test_a_start_goes_on_at_the_heads_watermark_and_nothing_is_in_quarantine() -> None:
    lineage = new_lineage()
    assert begin(lineage, stored(4, (9, 5)), stored(3, (7, 4)), taken=(-1, -1)) == (9, 5)
    assert lineage.quarantine.spans() == ()
    assert (lineage.head, lineage.version, lineage.kept) == (4, 4, {4})


def test_what_newer_versions_learned_before_a_rollback_is_not_learned_again() -> None:
    lineage = new_lineage()
    newer = [stored(5, (12, 5)), stored(6, (12, 8))]
    assert begin(lineage, stored(4, (9, 5)), *newer, taken=(-1, -1)) == (12, 8)
    assert lineage.quarantine.spans() == ((0, 10, 12), (1, 6, 8))
    assert [rule.spans for rule in lineage.leave_out()] == [((10, 12),), ((6, 8),)]


def test_a_quarantine_goes_on_with_the_versions_that_come_after_it() -> None:
    lineage = new_lineage()
    begin(lineage, stored(7, (20, 9), ((0, 10, 12),)), taken=(-1, -1))
    assert lineage.quarantine.spans() == ((0, 10, 12),)


def test_after_a_rejection_training_goes_on_behind_the_events_of_the_candidate() -> None:
    lineage = new_lineage()
    begin(lineage, stored(4, (9, 5)), taken=(-1, -1))
    promote(lineage, 5)
    served = lineage.scorer
    lineage.rejected()
    assert (lineage.head, lineage.version) == (5, 0)
    assert begin(lineage, stored(5, (11, 6)), taken=(15, 6)) == (15, 6)
    assert lineage.quarantine.spans() == ((0, 12, 15),)
    assert lineage.version == 5
    assert lineage.scorer is served
    assert lineage.guard.trusted == 4, "what is trusted stays so: the head has not moved"


def test_after_a_rollback_the_head_is_all_that_is_trusted() -> None:
    lineage = new_lineage()
    begin(lineage, stored(4, (9, 5)), taken=(-1, -1))
    promote(lineage, 5)
    assert lineage.trusted_scorer is not None
    begin(lineage, stored(4, (9, 5)), stored(5, (11, 6)), taken=(11, 6))
    assert lineage.trusted_scorer is None
    assert lineage.kept == {4}


def test_all_versions_at_hand_grow_with_the_catalogue() -> None:
    lineage = new_lineage()
    begin(lineage, stored(4, (9, 5)), taken=(-1, -1))
    promote(lineage, 5)
    lineage.grow(np.arange(5, 7), texts(2))
    assert lineage.scorer is not None
    assert lineage.trusted_scorer is not None
    assert lineage.scorer.num_items == lineage.trusted_scorer.num_items == 7


def test_versions_that_nobody_goes_back_to_are_let_go() -> None:
    lineage = new_lineage()
    begin(lineage, stored(1, (0, 0)), taken=(-1, -1))
    for version in range(2, 8):
        promote(lineage, version)
        lineage.guard.observe(np.arange(5), np.ones(5), np.ones(5))
    assert lineage.kept == {4, 6}
    assert lineage.head == 7
    assert set(lineage._scorers) == {4, 6, 7}


def test_by_default_every_event_is_learned() -> None:
    lineage = Lineage(GuardSettings(), MODEL, num_shards=2)
    begin(lineage, stored(4, (9, 5)), taken=(-1, -1))
    assert all(rule.is_nothing for rule in lineage.leave_out())
