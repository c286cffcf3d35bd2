from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bert import tiny_bert

from recommender.baselines import ItemNeighbours
from recommender.blend import BLEND, Blend
from recommender.counters import Counters
from recommender.datasets import Dataset
from recommender.evaluation_settings import EvaluationSettings
from recommender.events import Item
from recommender.fresh_scoring import LiveState, ScoredEvents, requests, score_fresh
from recommender.progressive import evaluate
from recommender.quality_report import QualityReport
from recommender.replay import ReplayMemory
from recommender.settings import (
    BlendSettings,
    FactorSettings,
    GuardSettings,
    ModelSettings,
    TextSettings,
    TextTuningSettings,
    TrainingSettings,
)
from recommender.text_tower import TextTower
from recommender.text_tuning import TextTuner
from recommender.windows import FreshEvents

NUM_ITEMS = 12

SMALL = EvaluationSettings(
    model=ModelSettings(dim=8, num_layers=1, num_heads=1, intermediate=8, window=5),
    training=TrainingSettings(batch_windows=8, fresh_windows=2, warmup_epochs=1, ramp_steps=1),
    round_events=40,
)


def memory_of(users: list[int], items: list[int]) -> ReplayMemory:
    memory = ReplayMemory(window=5)
    for index, (user, item) in enumerate(zip(users, items, strict=True)):
        memory.append(user, item, 5, index * 1_000)
    return memory


def dataset_of(
    num_events: int, *, num_items: int = NUM_ITEMS, repeats: bool = False, seed: int = 0
) -> Dataset:
    """Users walk through the items in a ring, from a random place on."""
    rng = np.random.default_rng(seed)
    length = num_items * (2 if repeats else 1)
    num_users = -(-num_events // length)
    starts = rng.integers(num_items, size=num_users)
    users = np.arange(num_events, dtype=np.int32) // length
    rows = ((starts[users] + np.arange(num_events) % length) % num_items).astype(np.int32)
    return Dataset(
        name="ring",
        items=tuple(Item(f"i{row}", f"item {row}") for row in range(num_items)),
        user_ids=tuple(f"u{user}" for user in range(num_users)),
        users_N=users,
        rows_N=rows,
        feedback_N=np.full(num_events, 5, np.int8),
        values_N=np.full(num_events, 5.0, np.float32),
        event_types_N=np.full(num_events, "rating"),
        timestamps_ms_N=np.arange(num_events) * 1_000,
    )


def texts(num_items: int = NUM_ITEMS) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((num_items, 6)).astype(np.float32)


def run(dataset: Dataset, rankings: Collection[str], **options: bool | int) -> QualityReport:
    return evaluate(dataset, texts(), SMALL, rankings=rankings, **options)  # type: ignore[arg-type]


def score(
    fresh: FreshEvents, live: LiveState, blend: Blend, exclude_seen: bool = True
) -> ScoredEvents:
    return score_fresh(
        fresh,
        np.ones(len(fresh), np.bool_),
        live,
        scorer=None,
        blend=blend,
        half_life_index=0,
        num_items=NUM_ITEMS,
        exclude_seen=exclude_seen,
    )


def test_each_request_finds_the_counters_before_its_event_and_no_other() -> None:
    fresh = memory_of([0, 0, 1, 0], [3, 4, 3, 5]).fresh(-1, 10)
    live = LiveState(Counters([10.0], NUM_ITEMS), {"item_knn": ItemNeighbours(NUM_ITEMS)})
    selected = np.array([False, True, False, True])
    found = []
    for request in requests(fresh, selected, live):
        found.append((request.index, request.target, live.counters.num_events))
        if request.index == 3:
            assert request.seen_rows.tolist() == [3, 4]
            assert request.history_rows.tolist() == [3, 4]
            neighbours = live.baselines["item_knn"].scores(np.array([3], np.int32))
            assert neighbours[4] > 0
            assert neighbours[5] == 0
    assert found == [(1, 4, 1), (3, 5, 3)]
    assert live.counters.num_events == 4


def test_counting_through_requests_is_counting_the_batch() -> None:
    fresh = memory_of([0, 1, 0, 0, 1], [1, 2, 3, 4, 5]).fresh(-1, 10)
    stepwise, at_once = (LiveState(Counters([10.0], NUM_ITEMS)) for _ in range(2))
    for _ in requests(fresh, np.array([True, False, True, True, False]), stepwise):
        pass
    at_once.learn(fresh)
    history = np.array([1, 2, 3], np.int32)
    np.testing.assert_array_equal(
        stepwise.counters.rule_scores(history), at_once.counters.rule_scores(history)
    )
    np.testing.assert_allclose(stepwise.counters.popularity(), at_once.counters.popularity())


def test_an_event_is_ranked_before_it_counts() -> None:
    fresh = memory_of([0, 1, 2], [3, 3, 4]).fresh(-1, 10)
    blend = Blend(BlendSettings())
    scored = score(fresh, LiveState(Counters([10.0], NUM_ITEMS)), blend)
    # Nothing is known at first, then item 3 is popular, and item 4 is level with ten others.
    assert scored.ranks["popularity"].tolist() == [6.5, 1.0, 7.0]
    assert scored.served_K == (BLEND,) * 3


def test_the_blend_learns_from_every_scored_event() -> None:
    fresh = memory_of([0, 1, 2], [3, 3, 4]).fresh(-1, 10)
    blend = Blend(BlendSettings())
    score(fresh, LiveState(Counters([10.0], NUM_ITEMS)), blend)
    assert blend.state()["num_events"].tolist() == [3, 0, 0, 0]


def test_an_item_the_user_had_is_skipped_unless_repeats_count() -> None:
    fresh = memory_of([0, 0, 0], [3, 4, 3]).fresh(-1, 10)
    strict = score(fresh, LiveState(Counters([10.0], NUM_ITEMS)), Blend(BlendSettings()))
    assert strict.indices_K.tolist() == [0, 1]
    assert strict.num_skipped == 1
    # Without item 3, which the user had, eleven items are level.
    assert strict.ranks["popularity"][1] == 6.0
    live = LiveState(Counters([10.0], NUM_ITEMS))
    repeats = score(fresh, live, Blend(BlendSettings()), exclude_seen=False)
    assert repeats.indices_K.tolist() == [0, 1, 2]
    assert repeats.ranks["popularity"].tolist()[1:] == [7.0, 2.0]


def test_an_item_outside_the_catalogue_is_skipped() -> None:
    fresh = memory_of([0], [NUM_ITEMS]).fresh(-1, 10)
    scored = score(fresh, LiveState(Counters([10.0])), Blend(BlendSettings()))
    assert scored.num_skipped == 1
    assert scored.ranks == {}


def test_an_item_without_a_row_is_neither_scored_nor_counted() -> None:
    fresh = memory_of([0, 0, 1], [3, -1, 4]).fresh(-1, 10)
    live = LiveState(Counters([10.0], NUM_ITEMS), {"item_knn": ItemNeighbours(NUM_ITEMS)})
    scored = score(fresh, live, Blend(BlendSettings()))
    assert scored.indices_K.tolist() == [0, 2]
    assert scored.num_skipped == 1
    assert live.counters.num_events == 2


def test_every_fifth_event_of_the_second_half_is_scored_and_three_quarters_reported() -> None:
    report = run(dataset_of(400), ["popularity"])
    events = report.events
    assert (events.warm_up, events.streamed, events.scored) == (200, 200, 40)
    assert events.reported == 30
    assert events.skipped == 0


def test_counts_add_up_with_repeats() -> None:
    dataset = dataset_of(400, repeats=True)
    strict = run(dataset, ["popularity"]).events
    assert strict.skipped > 0
    assert strict.scored + strict.skipped == 40
    loose = run(dataset, ["popularity"], exclude_seen=False).events
    assert (loose.scored, loose.skipped) == (40, 0)


def test_only_the_first_events_are_used_if_asked() -> None:
    whole, part = dataset_of(400), dataset_of(200)
    limited = run(whole, ["rules"], max_events=200)
    assert limited.events.warm_up + limited.events.streamed == 200
    assert limited.quality == run(part, ["rules"]).quality


def test_rules_foresee_a_ring_and_popularity_does_not() -> None:
    quality = run(dataset_of(800, num_items=NUM_ITEMS), ["popularity", "rules"]).quality
    assert list(quality) == ["popularity", "rules"]
    assert quality["rules"]["ndcg_at_10"] > 0.8
    assert quality["rules"]["ndcg_at_10"] > quality["popularity"]["ndcg_at_10"] + 0.2
    assert len(quality["rules"]["ndcg_at_10_by_quarter"]) == 4


def test_all_rankings_are_compared_on_the_same_events_and_the_seed_decides() -> None:
    dataset = dataset_of(300)
    rankings = ["popularity", "rules", "item_knn", "ease", "frozen", "learning", "blend"]
    first, again = (run(dataset, rankings, seed=3) for _ in range(2))
    assert list(first.quality) == rankings
    assert first.quality == again.quality
    assert first.quality["frozen"] != first.quality["learning"]
    assert sum(first.served.values()) == first.events.scored
    assert run(dataset, rankings, seed=4).quality["learning"] != first.quality["learning"]


def test_ials_is_a_ranking_and_a_component_of_a_second_blend() -> None:
    pytest.importorskip("implicit")
    factors = FactorSettings(factors=4, refit_events=50, regularisation=0.1)
    settings = SMALL.model_copy(update={"factors": factors})
    rankings = ["rules", "ials", "blend", "blend_ials"]
    report = evaluate(dataset_of(400), texts(), settings, rankings=rankings)
    assert list(report.quality) == rankings
    assert report.quality["ials"]["mrr"] > 0.0
    assert report.quality["blend_ials"] != report.quality["blend"]
    without = evaluate(dataset_of(400), texts(), settings, rankings=["blend"])
    assert without.quality["blend"] == report.quality["blend"]


def test_the_components_of_the_blend_can_be_compared_alone() -> None:
    report = run(dataset_of(300), ["trending", "content", "popularity", "blend"])
    assert list(report.quality) == ["popularity", "trending", "content", "blend"]
    assert report.quality["content"] != report.quality["trending"]


def test_slices_are_of_the_reported_events_and_lists_of_all() -> None:
    report = run(dataset_of(400), ["popularity", "rules"])
    by_length = [part for name, part in report.slices.items() if name.startswith("history")]
    assert sum(part.num_events for part in by_length) == report.events.reported == 30
    total = sum(part.num_events * part.ndcg_at_10["rules"] for part in by_length)
    assert total / 30 == pytest.approx(report.quality["rules"]["ndcg_at_10"])
    assert report.slices["new users"].num_events > 0
    assert report.slices["new items"].num_events == 0
    assert report.slices["new items"].ndcg_at_10 == {"popularity": 0.0, "rules": 0.0}
    assert set(report.lists) == {"popularity", "rules"}
    assert 0.0 < report.lists["rules"].coverage <= 1.0


def test_in_baskets_only_first_lines_are_predicted() -> None:
    ring = dataset_of(400, num_items=8)
    # Four lines a basket.
    shop = replace(ring, timestamps_ms_N=ring.timestamps_ms_N // 4_000 * 4_000)
    report = evaluate(shop, texts(8), SMALL, rankings=["rules"], protocol="baskets")
    assert (report.events.scored, report.events.skipped) == (50, 0)
    assert report.protocol == "baskets"


def test_cpu_time_is_counted_for_learning_and_scoring_apart() -> None:
    ticks = iter(range(10_000))
    report = evaluate(
        dataset_of(200), texts(), SMALL, rankings=["learning"], cpu_clock=lambda: next(ticks)
    )
    # 100 streamed events in three rounds, one tick each.
    assert report.warm_up_cpu_s == 1
    assert report.learn_cpu_s_per_1000 == pytest.approx(30)
    assert report.score_cpu_s_per_1000 == pytest.approx(150)


def test_progress_only_rises_and_ends_at_all_events() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        dataset_of(200), texts(), SMALL, rankings=["learning"], progress=lambda *p: seen.append(p)
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (200, 200)


def test_unknown_rankings_and_foreign_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="magic"):
        run(dataset_of(10), ["magic"])
    with pytest.raises(ValueError, match="3 text vectors for 12 items"):
        evaluate(dataset_of(10), texts(3), SMALL)


@pytest.mark.parametrize("num_events", [0, 1, 2])
def test_a_stream_too_short_to_score_gives_zeros(num_events: int) -> None:
    report = run(dataset_of(num_events), ["popularity", "blend"])
    assert report.events.scored == 0
    assert report.quality["blend"]["ndcg_at_10"] == 0.0


def test_a_tuner_moves_the_texts_during_the_stream_and_not_before() -> None:
    data = dataset_of(400)
    bert = tiny_bert()
    settings = TextTuningSettings(mode="lora", learning_rate=0.1, gather_steps=1, cpu_share=1.0)
    tower = TextTower(bert, TextSettings(), settings)
    text_VD = tower.encode(tower.states([item.text for item in data.items]))
    tuner = TextTuner(tower, settings, name="tiny")
    rankings = ("frozen", "learning")
    tuned = evaluate(data, text_VD, SMALL, rankings=rankings, tuner=tuner)
    plain = evaluate(data, text_VD, SMALL, rankings=rankings)
    assert tuner.num_steps > 0
    assert tuned.quality["frozen"] == plain.quality["frozen"]
    assert tuned.quality["learning"] != plain.quality["learning"]
    guarded = SMALL.model_copy(update={"guard": GuardSettings()})
    with pytest.raises(ValueError, match="cannot be combined"):
        evaluate(data, text_VD, guarded, rankings=rankings, tuner=tuner)


def test_a_guard_that_has_nothing_to_object_to_changes_no_figure() -> None:
    data = dataset_of(400)
    plain = evaluate(data, texts(), SMALL, rankings=("learning", BLEND))
    guarded = evaluate(
        data,
        texts(),
        SMALL.model_copy(update={"guard": GuardSettings(fall_threshold=1e9)}),
        rankings=("learning", BLEND),
    )
    assert guarded.decisions == ()
    assert guarded.quality == plain.quality
