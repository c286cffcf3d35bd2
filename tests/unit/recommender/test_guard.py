"""The guard's rules on plain numbers and on models that know one thing: no stream."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.guard import Guard
from recommender.model import Recommender
from recommender.probes import MemoryProbes
from recommender.promotion import Decision, Verdict
from recommender.scorer import Scorer
from recommender.settings import GuardSettings, ModelSettings
from recommender.windows import PAD, Windows

SETTINGS = GuardSettings(trust_events=200, fall_threshold=30.0)
MODEL = ModelSettings(dim=8, num_layers=1, intermediate=8, window=4, half_lives=(10.0,))
RNG = np.random.default_rng(0)


def hits(rate: float, num_events: int) -> NDArray[np.float64]:
    """As ragged as NDCG@10: mostly 0, sometimes 1."""
    return (RNG.random(num_events) < rate).astype(np.float64)


def watch(
    guard: Guard,
    served_N: NDArray[np.float64],
    trusted_N: NDArray[np.float64] | None,
) -> list[Decision]:
    """Rounds of 100 scored events; the decisions that changed the course."""
    decisions = []
    for start in range(0, len(served_N), 100):
        part = slice(start, start + 100)
        users_K = np.arange(start, start + len(served_N[part]))
        trusted_K = None if trusted_N is None else trusted_N[part]
        decision = guard.observe(users_K, served_N[part], trusted_K)
        if decision.verdict is not Verdict.KEEP:
            decisions.append(decision)
    return decisions


def guard_at(version: int = 1) -> Guard:
    guard = Guard(SETTINGS)
    guard.promoted(version)
    return guard


def test_a_burst_that_spoils_what_is_served_rolls_back_to_the_trusted_version() -> None:
    guard = guard_at(7)
    good_N = hits(0.5, 1_500)
    spoilt_N = np.concatenate([good_N[:1_000], hits(0.1, 500)])
    [decision, *_] = watch(guard, spoilt_N, good_N)
    assert decision.verdict is Verdict.ROLL_BACK
    assert guard.trusted == 7
    assert "trusted version 7" in decision.reason
    before, after = decision.metrics["fall_ndcg_at_10_trusted"], decision.metrics["fall_ndcg_at_10"]
    assert before > after + 0.1


def test_a_fall_that_the_trusted_version_shares_is_a_drift_and_learning_goes_faster() -> None:
    guard = guard_at()
    both_N = np.concatenate([hits(0.5, 1_000), hits(0.1, 500)])
    assert guard.urgency.level == 0.0
    [decision] = watch(guard, both_N, both_N)
    assert decision.verdict is Verdict.ADAPT
    assert "the world has changed" in decision.reason
    assert guard.urgency.level == 1.0


def test_harm_without_a_fall_is_found_beside_the_trusted_version() -> None:
    guard = guard_at()
    served_N = hits(0.3, 1_000)
    trusted_N = np.maximum(served_N, hits(0.3, 1_000))
    [decision, *_] = watch(guard, served_N, trusted_N)
    assert decision.verdict is Verdict.ROLL_BACK


def test_a_quiet_stream_and_one_that_gets_better_change_nothing() -> None:
    served_N = np.concatenate([hits(0.3, 3_000), hits(0.5, 3_000)])
    assert watch(guard_at(), served_N, hits(0.3, 6_000)) == []


def test_without_another_version_there_is_no_rollback() -> None:
    served_N = np.concatenate([hits(0.5, 1_000), hits(0.1, 500)])
    assert [d.verdict for d in watch(guard_at(), served_N, None)] == [Verdict.ADAPT]


def test_a_user_who_floods_a_round_has_ten_votes_in_it() -> None:
    guard = guard_at()
    watch(guard, hits(0.5, 1_000), None)
    users_K = np.concatenate([np.arange(50), np.full(5_000, 77)])
    flood_K = np.concatenate([np.full(50, 0.5), np.zeros(5_000)])
    assert guard.observe(users_K, flood_K, None).verdict is Verdict.KEEP
    assert guard.observe(np.arange(5_050), flood_K, None).verdict is Verdict.ADAPT


def test_a_version_is_trusted_after_so_many_scored_events_and_then_the_one_before_it() -> None:
    guard = guard_at(1)
    trusted = []
    for version in range(2, 9):
        guard.promoted(version)
        trusted.append(guard.trusted)
        watch(guard, hits(0.5, 100), None)
    # 2 stood for 200 events when 4 came, 4 when 6 came, 6 when 8 came.
    assert trusted == [1, 1, 2, 2, 4, 4, 6]
    assert guard.candidate == 8


def test_nothing_becomes_trusted_while_the_pace_is_raised_after_an_alarm() -> None:
    guard = guard_at(1)
    guard.promoted(2)
    guard.urgency.alarm()
    watch(guard, hits(0.5, 300), None)
    guard.promoted(3)
    assert guard.trusted == 1
    guard.urgency.passed(20_000)
    guard.promoted(4)
    assert guard.trusted == 2


def test_a_rollback_ends_the_raised_pace_and_the_old_watch() -> None:
    guard = guard_at(1)
    guard.promoted(2)
    guard.urgency.alarm()
    watch(guard, hits(0.9, 1_000), None)
    guard.begin(1)
    assert (guard.trusted, guard.candidate, guard.urgency.level) == (1, None, 0.0)
    assert watch(guard, hits(0.2, 1_000), None) == [], "the low level is the normal one now"


@pytest.mark.parametrize("num_scored", [0, 1, 50])
def test_few_scored_events_decide_nothing(num_scored: int) -> None:
    assert watch(guard_at(), np.zeros(num_scored), np.ones(num_scored)) == []


def scorer_for(item: int) -> Scorer:
    """Ranks one item first for everyone."""
    vectors_VD = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    state = Recommender(MODEL, vectors_VD).export_state()
    bias_V = np.zeros(4, np.float32)
    bias_V[item] = 1_000.0
    return Scorer.from_state(state | {"item_bias": bias_V}, MODEL)


@pytest.mark.parametrize("is_held_out", [False, True])
def test_a_candidate_is_judged_on_replayed_events_only_while_none_are_held_out(
    is_held_out: bool,
) -> None:
    guard = guard_at()
    items_BT = np.tile(np.array([[1, 3, PAD]], np.int32), (40, 1))
    zeros_BT = np.zeros(items_BT.shape, np.int8)
    windows = Windows(items_BT, zeros_BT, zeros_BT, np.full(40, 2, np.int32))
    drawn: list[int] = []

    def draw(num_windows: int) -> Windows:
        drawn.append(num_windows)
        return windows

    if is_held_out:
        guard.probes.add(40, windows, np.arange(40))
    popularity_MV = np.zeros((1, 4), np.float32)
    worse, head = scorer_for(2), scorer_for(3)
    decision = guard.judge({}, None, worse, head, popularity_MV, MemoryProbes(draw))
    assert decision.verdict is Verdict.REJECT
    assert drawn == ([] if is_held_out else [128])
    assert ("memory_ndcg_at_10" in decision.metrics) is not is_held_out
    better = guard.judge({}, None, head, worse, popularity_MV, MemoryProbes(draw))
    assert better.verdict is Verdict.PROMOTE


def guard_that_knows(num_users: int) -> Guard:
    """At version 1, which so many users were there for, and that was followed by version 2."""
    guard = Guard(SETTINGS)
    guard.meet(np.arange(num_users))
    guard.promoted(1)
    guard.promoted(2)
    return guard


def visits(known: int, new: int, num_events: int, first_new: int) -> NDArray[np.int64]:
    """Users of a stream: so many known ones and then so many new ones, over and over."""
    pattern = np.arange(num_events) % (known + new)
    news = first_new + np.arange(num_events)
    return np.where(pattern < known, np.arange(num_events) % 97, news)


def test_harm_to_known_users_counts_though_the_bots_that_did_it_are_foreseen_better() -> None:
    guard = guard_that_knows(97)
    users_K = visits(1, 1, 2_000, first_new=97)
    is_known_K = users_K < 97
    trusted_K = np.where(is_known_K, hits(0.5, 2_000), hits(0.3, 2_000))
    served_K = np.where(is_known_K, hits(0.3, 2_000), hits(0.6, 2_000))
    assert served_K.mean() > trusted_K.mean()
    verdicts = [
        guard.observe(users_K[k : k + 100], served_K[k : k + 100], trusted_K[k : k + 100])
        for k in range(0, 2_000, 100)
    ]
    harm = next(v for v in verdicts if v.verdict is not Verdict.KEEP)
    assert harm.verdict is Verdict.ROLL_BACK
    assert "users it knew" in harm.reason
    assert guard.trusted == 1


@pytest.mark.parametrize(
    ("known_rate", "expected"), [(0.5, []), (0.1, [Verdict.ADAPT])], ids=["bots", "drift"]
)
def test_a_fall_is_a_drift_only_if_known_users_share_it(
    known_rate: float, expected: list[Verdict]
) -> None:
    guard = guard_that_knows(97)
    num = 800
    for _ in range(10):
        guard.observe(np.arange(100) % 97, hits(0.5, 100), None)
    users_K = visits(1, 3, num, first_new=97)
    fallen_K = np.where(users_K < 97, hits(known_rate, num), hits(0.02, num))
    verdicts = [
        guard.observe(users_K[k : k + 50], fallen_K[k : k + 50], None).verdict
        for k in range(0, num, 50)
    ]
    assert [v for v in verdicts if v is not Verdict.KEEP] == expected
    assert (guard.urgency.level > 0) is bool(expected)


def test_a_fall_that_only_newcomers_have_puts_off_trust_in_what_was_learned_from_them() -> None:
    guard = guard_that_knows(97)
    for _ in range(10):
        guard.observe(np.arange(100) % 97, hits(0.5, 100), None)
    for first_new in range(97, 322, 75):
        users_K = visits(1, 3, 100, first_new)
        bots_K = np.where(users_K < 97, hits(0.5, 100), 0.0)
        guard.observe(users_K, bots_K, None)
    guard.promoted(3)
    assert (guard.trusted, guard.candidate) == (1, 2)


def test_going_back_to_a_version_makes_nobody_better_known() -> None:
    guard = guard_that_knows(97)
    bots_K = np.arange(1_000, 1_200)
    guard.observe(bots_K, hits(0.5, 200), None)
    guard.begin(1)
    users_K = np.concatenate([bots_K, np.arange(97), np.arange(97)])
    trusted_K = np.concatenate([np.zeros(200), np.full(194, 0.5)])
    served_K = np.concatenate([np.ones(200), np.full(194, 0.1)])
    decision = guard.observe(users_K, served_K, trusted_K)
    assert decision.verdict is Verdict.ROLL_BACK
