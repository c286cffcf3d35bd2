import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.blend import BLEND, BUCKET_STARTS, Blend, bucket_of, standardise
from recommender.ranking import COMPONENTS
from recommender.settings import BlendSettings

ALL = np.ones(50, np.bool_)
Components = dict[str, NDArray[np.float32]]


def peak(row: int, num_items: int = 50) -> NDArray[np.float32]:
    """A ranking that is sure of one item and indifferent about the others."""
    scores = np.zeros(num_items, np.float32)
    scores[row] = 1.0
    return scores


def noisy(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(50).astype(np.float32)


def teach(blend: Blend, num_events: int, good: str, bad: str, seed: int = 0) -> None:
    """`good` ranks the target first, `bad` knows nothing, for a regular user."""
    rng = np.random.default_rng(seed)
    for _ in range(num_events):
        target = int(rng.integers(50))
        informed = noisy(rng)
        informed[target] += 3.0
        blend.observe({good: informed, bad: noisy(rng)}, ALL, target, history_length=30)


@pytest.mark.parametrize(
    ("length", "bucket"), [(0, 0), (1, 1), (4, 1), (5, 2), (19, 2), (20, 3), (9_999, 3)]
)
def test_buckets_split_newcomers_from_regulars(length: int, bucket: int) -> None:
    assert bucket_of(length) == bucket
    assert len(BUCKET_STARTS) == 4


def test_at_first_every_component_counts_alike() -> None:
    blend = Blend(BlendSettings(), ("net", "content"))
    answer = blend.scores({"net": peak(3), "content": peak(7)}, ALL, 0)
    assert answer.served == BLEND
    assert answer.shares == pytest.approx({"net": 0.5, "content": 0.5})
    assert answer.scores_V[3] == pytest.approx(answer.scores_V[7])
    # One item of fifty at 1, the others at 0: mean 1/50, deviation 7/50, so it stands 7 above.
    assert answer.scores_V[3] == pytest.approx(0.5 * 7 - 0.5 / 7)


def test_weights_start_at_one_over_the_number_of_components() -> None:
    for weights in Blend(BlendSettings()).weights().values():
        np.testing.assert_allclose(weights, 1 / len(COMPONENTS))


def test_an_absent_component_is_left_out() -> None:
    answer = Blend(BlendSettings()).scores({"popularity": peak(3)}, ALL, 0)
    assert answer.shares == {"popularity": 1.0}
    assert int(answer.scores_V.argmax()) == 3


def test_the_component_that_foresees_gains_weight_and_in_its_bucket_most() -> None:
    blend = Blend(BlendSettings(), ("net", "content"))
    teach(blend, 200, good="net", bad="content")
    net, content = blend.weights()["net"], blend.weights()["content"]
    assert net[3] > 1.0 > 0.4 > content[3]
    # Users with other histories start from what was learned so far.
    assert (net[3] > net[:3]).all()
    assert (net[:3] > 0.6).all()
    assert (content[:3] < 0.4).all()


def test_the_first_step_comes_after_the_set_number_of_events_and_is_the_learning_rate() -> None:
    settings = BlendSettings(learning_rate=0.1, events_per_step=20, settle_events=1e9)
    blend = Blend(settings, ("net", "content"))
    start = blend.state()["raw"].copy()
    teach(blend, 19, good="net", bad="content")
    np.testing.assert_array_equal(blend.state()["raw"], start)
    teach(blend, 1, good="net", bad="content")
    # Adam's first step is the learning rate times the sign of the gradient.
    moved = blend.state()["raw"].astype(np.float64) - start.astype(np.float64)
    np.testing.assert_allclose(moved[3], [0.1, -0.1], rtol=1e-5)
    np.testing.assert_allclose(moved[-1], [0.1, -0.1], rtol=1e-5)  # what all buckets share
    assert not moved[:3].any()


def test_steps_get_smaller_down_to_a_tenth() -> None:
    settings = BlendSettings(learning_rate=0.1, events_per_step=10, settle_events=10)
    blend = Blend(settings, ("net", "content"))
    sizes = []
    for _ in range(30):
        before = blend.state()["raw"].astype(np.float64)
        teach(blend, 10, good="net", bad="content")
        sizes.append(np.abs(blend.state()["raw"].astype(np.float64) - before).max())
    assert sizes[0] == pytest.approx(0.05, rel=1e-5)  # half after ten events
    assert sizes[1] < 0.7 * sizes[0]
    # The same events again and again: Adam steps by about the step size.
    assert 0.005 < sizes[-1] < 0.012


def test_the_gradient_is_that_of_the_cross_entropy_over_the_union() -> None:
    settings = BlendSettings(top=3, events_per_step=1_000)
    rng = np.random.default_rng(1)
    components: Components = {"net": noisy(rng), "content": noisy(rng)}
    standard = np.stack([standardise(n, components[n], ALL) for n in ("net", "content")])
    union = np.unique(np.argsort(-standard, axis=1)[:, :3])
    target = int(union[0])
    blend = Blend(settings, ("net", "content"))
    blend.observe(components, ALL, target, 0)

    def loss(raw: NDArray[np.float64]) -> float:
        logits = np.log1p(np.exp(raw)) @ standard[:, union].astype(np.float64)
        return float(np.log(np.exp(logits).sum()) - logits[union == target][0])

    raw, step = blend.state()["raw"][0].astype(np.float64), 1e-5
    numeric = [(loss(raw + e) - loss(raw - e)) / (2 * step) for e in step * np.eye(2)]
    np.testing.assert_allclose(blend.state()["gradient"][0], numeric, rtol=1e-5)
    np.testing.assert_allclose(blend.state()["gradient"][-1], numeric, rtol=1e-5)


def test_a_target_outside_every_components_best_teaches_nothing() -> None:
    blend = Blend(BlendSettings(top=2), ("net", "content"))
    ranking = np.arange(50, dtype=np.float32)
    blend.observe({"net": ranking, "content": ranking}, ALL, 0, 0)
    assert not blend.state()["gradient"].any()


def test_the_guard_serves_a_component_that_beats_the_blend_for_certain() -> None:
    settings = BlendSettings(learning_rate=1e-9, guard_min_events=50)
    blend = Blend(settings, ("net", "content"))
    rng = np.random.default_rng(0)

    def observe(num_events: int) -> None:
        for _ in range(num_events):
            target, wrong = rng.choice(50, 2, replace=False)
            # The bad component is as sure as the good one, so the blend is level at best.
            components = {"net": peak(wrong), "content": peak(target)}
            blend.observe(components, ALL, int(target), 0)

    observe(49)
    assert blend.scores({"net": peak(1), "content": peak(2)}, ALL, 0).served == BLEND
    observe(1)
    answer = blend.scores({"net": peak(1), "content": peak(2)}, ALL, 0)
    assert answer.served == "content"
    assert answer.shares == {"content": 1.0}
    assert answer.scores_V[2] > answer.scores_V[1]
    elsewhere = blend.scores({"net": peak(1), "content": peak(2)}, ALL, 30)
    assert elsewhere.served == BLEND
    absent = blend.scores({"net": peak(1)}, ALL, 0)
    assert absent.served == BLEND


def test_the_guard_lets_a_component_win_by_less_than_its_margin() -> None:
    settings = BlendSettings(learning_rate=1e-9, guard_margin=10.0)
    blend = Blend(settings, ("net", "content"))
    teach(blend, 100, good="net", bad="content")
    answer = blend.scores({"net": peak(1), "content": peak(2)}, ALL, 30)
    assert answer.served == BLEND


def test_the_guard_does_not_act_on_a_lead_that_chance_explains() -> None:
    served = {}
    for certainty in (0.0, 2.0):
        settings = BlendSettings(
            learning_rate=1e-9, guard_margin=0.0, guard_certainty=certainty, guard_min_events=50
        )
        blend = Blend(settings, ("net", "content"))
        rng = np.random.default_rng(1)
        for _ in range(50):
            target = int(rng.integers(50))
            blend.observe({"net": noisy(rng), "content": noisy(rng)}, ALL, target, 0)
        quality = {name: ndcg[0] for name, ndcg in blend.quality().items()}
        assert max(quality["net"], quality["content"]) > quality[BLEND] + 0.002
        served[certainty] = blend.scores({"net": peak(1), "content": peak(2)}, ALL, 0).served
    assert served[0.0] != BLEND
    assert served[2.0] == BLEND


def test_the_guards_quality_is_discounted_ndcg() -> None:
    blend = Blend(BlendSettings(guard_half_life=1.0), ("net",))
    blend.observe({"net": peak(4)}, ALL, 4, 0)  # NDCG 1
    blend.observe({"net": -peak(4)}, ALL, 4, 0)  # NDCG 0
    assert blend.quality()["net"][0] == pytest.approx(0.5 / 1.5)
    assert blend.quality()[BLEND][0] == pytest.approx(0.5 / 1.5)


def test_a_restored_blend_goes_on_like_the_first() -> None:
    blend = Blend(BlendSettings(), ("net", "content"))
    teach(blend, 70, good="net", bad="content")
    restored = Blend.from_state(blend.state(), BlendSettings(), ("net", "content"))
    for each in (blend, restored):
        teach(each, 45, good="content", bad="net", seed=5)
    for name, array in blend.state().items():
        np.testing.assert_array_equal(restored.state()[name], array)


def test_a_state_of_other_components_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        Blend.from_state(Blend(BlendSettings()).state(), BlendSettings(), ("net",))


def test_a_component_that_the_state_does_not_know_starts_afresh() -> None:
    old = Blend(BlendSettings(), ("net", "content"))
    teach(old, 60, good="net", bad="content")
    blend = Blend.from_state(old.state(), BlendSettings(), ("net", "content", "ials"))
    for name, weights in old.weights().items():
        np.testing.assert_array_equal(blend.weights()[name], weights)
    np.testing.assert_allclose(blend.weights()["ials"], 1 / 3)
    np.testing.assert_array_equal(blend.quality()[BLEND], old.quality()[BLEND])
    assert blend.quality()["ials"].tolist() == [0, 0, 0, 0]
    teach(blend, 60, good="ials", bad="net")
    assert blend.quality()["ials"][3] > 0.3


def test_observing_gives_what_was_served_before_it() -> None:
    blend = Blend(BlendSettings(events_per_step=1), ("net", "content"))
    teach(blend, 20, good="net", bad="content")
    components = {"net": noisy(np.random.default_rng(8)), "content": peak(4)}
    served = blend.scores(components, ALL, 30)
    observed = blend.observe(components, ALL, 4, 30)
    np.testing.assert_array_equal(observed.scores_V, served.scores_V)
    assert (observed.shares, observed.served) == (served.shares, served.served)
    assert blend.scores(components, ALL, 30).shares != served.shares


def test_scoring_changes_nothing() -> None:
    blend = Blend(BlendSettings())
    before = blend.state()
    blend.scores({"net": peak(1), "rules": peak(2)}, ALL, 3)
    for name, array in blend.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_components_are_standardised_over_the_eligible_items() -> None:
    eligible = np.array([True, True, False, True])
    scores = np.array([1.0, 2.0, 1e6, 6.0], np.float32)
    standard = standardise("net", scores, eligible)
    np.testing.assert_allclose(standard[eligible], (np.array([1, 2, 6]) - 3) / np.sqrt(14 / 3))


def test_counts_go_through_a_logarithm_first() -> None:
    scores = np.array([0.0, 1.0, 3.0], np.float32)
    every = np.ones(3, np.bool_)
    by_hand = np.log(np.array([0.05, 1.05, 3.05]))
    expected = (by_hand - by_hand.mean()) / by_hand.std()
    np.testing.assert_allclose(standardise("popularity", scores, every), expected, rtol=1e-5)
    by_hand = np.log(np.array([0.1, 3 / 4 + 0.1, 9 / 4 + 0.1]))
    expected = (by_hand - by_hand.mean()) / by_hand.std()
    np.testing.assert_allclose(standardise("rules", scores, every), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["net", "rules", "popularity", "content"])
def test_a_component_that_tells_nothing_apart_gives_zeros(name: str) -> None:
    assert standardise(name, np.zeros(3, np.float32), np.ones(3, np.bool_)).tolist() == [0, 0, 0]
    assert standardise(name, np.zeros(3, np.float32), np.zeros(3, np.bool_)).tolist() == [0, 0, 0]
