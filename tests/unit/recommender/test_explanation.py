import numpy as np
import pytest

from recommender.blend import standardise
from recommender.counters import Counters
from recommender.explanation import Explanation, Ranked, _pulls, explain
from recommender.implicit_factors import ItemFactors
from recommender.model_inputs import text_moments, unit_text
from recommender.ranking import History, component_scores, content_scores
from recommender.settings import FactorSettings
from recommender.windows import Windows

NUM_ITEMS = 40
ELIGIBLE_V = np.arange(NUM_ITEMS) >= 25
TARGETS_K = np.array([30, 33])
WEIGHTS = {"rules": 0.5, "popularity": 0.1, "net": 0.25, "content": 0.15}
FACTORS = ItemFactors.of(
    np.random.default_rng(7).normal(size=(NUM_ITEMS - 3, 4)).astype(np.float32),
    FactorSettings(regularisation=0.5),
)


class SumOfPairs:
    """A net whose logit of item j is the sum of `pairs[h, j]` over the history items h."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.pairs_VV = rng.normal(size=(NUM_ITEMS, NUM_ITEMS)).astype(np.float32)
        text_VD = rng.normal(size=(NUM_ITEMS, 8)).astype(np.float32)
        self.text_unit = unit_text(text_VD, *text_moments(text_VD))
        self.num_items = NUM_ITEMS

    def net_scores(self, windows: Windows, popularity_MV: object) -> np.ndarray:
        return np.stack(
            [
                self.pairs_VV[items[:length]].sum(axis=0)
                for items, length in zip(windows.items_BT, windows.lengths_B, strict=True)
            ]
        )


def ranked_for(rows: list[int], factors: ItemFactors | None = None) -> Ranked:
    counters = Counters(num_items=NUM_ITEMS)
    rng = np.random.default_rng(6)
    counters.update(
        rng.integers(NUM_ITEMS, size=300).astype(np.int32),
        rng.integers(NUM_ITEMS, size=(300, 5)).astype(np.int32),
    )
    number = len(rows)
    history = History(
        np.array(rows, np.int32), np.zeros(number, np.int8), 1_000 * np.arange(number)
    )
    net = SumOfPairs()
    return Ranked(
        scorer=net,
        counters=counters,
        text_unit_VD=net.text_unit,
        history=history,
        components=component_scores(net, counters, history, half_life_index=1, factors=factors),
        weights=WEIGHTS if factors is None else {**WEIGHTS, "ials": 0.2},
        eligible_V=ELIGIBLE_V,
        factors=factors,
    )


def all_of(ranked: Ranked, num_influences: int = 99) -> list[Explanation]:
    return explain(ranked, TARGETS_K, num_influences=num_influences)


def test_lifts_add_up_to_the_blend_score() -> None:
    ranked = ranked_for([3, 7, 11, 2])
    blend_V = np.array(list(WEIGHTS.values())) @ np.stack(
        [standardise(name, ranked.components[name], ELIGIBLE_V) for name in WEIGHTS]
    )
    for target, explanation in zip(TARGETS_K, all_of(ranked), strict=True):
        assert sum(explanation.lifts.values()) == pytest.approx(float(blend_V[target]), abs=1e-5)


def test_the_parts_of_rules_and_content_add_up_to_the_scores() -> None:
    ranked = ranked_for([3, 7, 11, 2, 3, *range(25)])
    parts_SK = ranked.counters.rule_contributions(ranked.history.rows_H, TARGETS_K)
    scores_V = ranked.counters.rule_scores(ranked.history.rows_H)
    np.testing.assert_allclose(parts_SK.sum(axis=0), scores_V[TARGETS_K], rtol=1e-5)
    assert len(parts_SK) == 20


def test_a_pull_is_the_sum_of_its_parts_and_the_strongest_comes_first() -> None:
    for explanation in all_of(ranked_for([3, 7, 11, 2])):
        pulls = [influence.pull for influence in explanation.because]
        assert pulls == sorted(pulls, reverse=True)
        assert min(pulls) > 0
        for influence in explanation.because:
            assert sum(influence.by_component.values()) == pytest.approx(influence.pull)


def test_the_content_pulls_of_a_short_history_add_up_to_the_content_lift() -> None:
    for explanation in all_of(ranked_for([3, 7])):
        named = {influence.row: influence.by_component for influence in explanation.because}
        if len(named) == 2:
            total = sum(by["content"] for by in named.values())
            assert total == pytest.approx(explanation.lifts["content"], abs=1e-5)
            return
    pytest.fail("no target was pulled by both items")


def test_the_ials_pulls_of_a_short_history_add_up_to_the_ials_lift() -> None:
    ranked = ranked_for([3, 7, 11, 3], FACTORS)
    pulls_SK = _pulls(ranked, TARGETS_K, ranked.lifts(TARGETS_K))["ials"]
    np.testing.assert_allclose(pulls_SK.sum(axis=0), ranked.lifts(TARGETS_K)["ials"], atol=1e-6)
    assert pulls_SK[0].tolist() == [0, 0], "an item speaks from its latest place"
    assert (np.abs(pulls_SK[1:]) > 1e-4).all()


def test_of_a_long_history_the_last_twenty_items_have_their_ials_pulls() -> None:
    ranked = ranked_for([*range(24), 23], FACTORS)
    pulls_SK = _pulls(ranked, TARGETS_K, ranked.lifts(TARGETS_K))["ials"]
    assert pulls_SK.shape == (20, 2)
    assert not pulls_SK[-2].any()
    assert pulls_SK[-1].all()


def test_the_net_loses_what_an_item_gave_when_it_is_left_out() -> None:
    rows = [3, 7, 11, 2]
    ranked = ranked_for(rows)
    pairs_VV = SumOfPairs().pairs_VV
    full_V = standardise("net", pairs_VV[rows].sum(axis=0), ELIGIBLE_V)
    for target, explanation in zip(TARGETS_K, all_of(ranked), strict=True):
        for influence in explanation.because:
            others = [row for row in rows if row != influence.row]
            without_V = standardise("net", pairs_VV[others].sum(axis=0), ELIGIBLE_V)
            lost = WEIGHTS["net"] * float(full_V[target] - without_V[target])
            assert influence.by_component["net"] == pytest.approx(lost, abs=1e-5)


def test_only_as_many_items_are_named_as_asked_for() -> None:
    assert all(len(e.because) <= 2 for e in all_of(ranked_for([3, 7, 11, 2]), num_influences=2))


def test_a_newcomer_is_told_the_lifts_alone() -> None:
    for explanation in all_of(ranked_for([])):
        assert explanation.because == ()
        assert set(explanation.lifts) == set(WEIGHTS)


def test_content_without_a_history_tells_nothing_apart() -> None:
    net = SumOfPairs()
    assert (content_scores(net.text_unit, np.zeros(0, np.int32)) == 0).all()
