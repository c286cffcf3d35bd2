import numpy as np
import pytest
from numpy.typing import NDArray

from recommender.datasets import Dataset
from recommender.settings import TextSettings
from recommender.simulator import GroundTruth, SimulatorSettings, simulate
from recommender.text_encoder import TextEncoder

SETTINGS = SimulatorSettings(num_users=200, num_items=300, num_events=6_000, drift_at=3_000)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return simulate(SETTINGS)


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return GroundTruth(SETTINGS)


def _ndcg(scores_V: NDArray[np.float64], target: int, seen: list[int]) -> float:
    scores_V = scores_V.copy()
    score = scores_V[target]
    scores_V[seen] = -np.inf
    rank = 1 + int((scores_V > score).sum()) + (int((scores_V == score).sum()) - 1) / 2
    return float(1 / np.log2(1 + rank)) if rank <= 10 else 0.0


def _mean_ndcg(dataset: Dataset, truth: GroundTruth, start: int, stop: int, knows: str) -> float:
    """Quality of what `knows` names: popularity, taste, taste and series, or an old taste."""
    seen_U: list[list[int]] = [[] for _ in dataset.user_ids]
    popularity_V = np.zeros(len(dataset.items))
    found = []
    for index in range(stop):
        user, row = int(dataset.users_N[index]), int(dataset.rows_N[index])
        if index >= start and index % 3 == 0:
            at_event = 0 if knows == "old taste" else index
            previous = seen_U[user][-1] if knows == "series" and seen_U[user] else None
            relevance_V = truth.relevance(dataset.user_ids[user], at_event, previous)
            scores_V = popularity_V if knows == "popularity" else relevance_V
            found.append(_ndcg(scores_V, row, seen_U[user]))
        seen_U[user].append(row)
        popularity_V *= 0.5 ** (1 / 1_000)
        popularity_V[row] += 1
    return float(np.mean(found))


def test_the_same_seed_gives_the_same_stream(dataset: Dataset) -> None:
    again = simulate(SETTINGS)
    other = simulate(SETTINGS.model_copy(update={"seed": 1}))

    assert again.items == dataset.items
    assert list(again.events()) == list(dataset.events())
    assert not np.array_equal(other.rows_N, dataset.rows_N)


def test_a_stream_has_the_length_and_the_order_that_was_asked_for(dataset: Dataset) -> None:
    assert len(dataset) == SETTINGS.num_events
    assert len(dataset.items) == SETTINGS.num_items
    assert (np.diff(dataset.timestamps_ms_N) > 0).all()
    _, first_N = np.unique(dataset.users_N, return_index=True)
    assert (np.diff(first_N) > 0).all()


def test_nobody_has_two_events_on_one_item(dataset: Dataset) -> None:
    assert len(set(zip(dataset.users_N, dataset.rows_N, strict=True))) == len(dataset)


def test_who_knows_the_tastes_beats_popularity_by_far(dataset: Dataset, truth: GroundTruth) -> None:
    popularity = _mean_ndcg(dataset, truth, 1_500, 3_000, "popularity")
    taste = _mean_ndcg(dataset, truth, 1_500, 3_000, "taste")

    assert taste > 3 * popularity
    assert popularity > 0.01  # skewed enough that popularity is worth something


def test_who_knows_the_series_too_is_better_still(dataset: Dataset, truth: GroundTruth) -> None:
    series = _mean_ndcg(dataset, truth, 1_500, 3_000, "series")

    assert series > 1.4 * _mean_ndcg(dataset, truth, 1_500, 3_000, "taste")


def test_after_the_drift_the_old_tastes_lose(dataset: Dataset, truth: GroundTruth) -> None:
    old_taste = _mean_ndcg(dataset, truth, 3_000, 6_000, "old taste")

    assert _mean_ndcg(dataset, truth, 3_000, 6_000, "taste") > 4 * old_taste


def test_nothing_differs_before_the_drift(dataset: Dataset) -> None:
    steady = simulate(SETTINGS.model_copy(update={"drift_at": None}))

    assert np.array_equal(dataset.rows_N[:3_000], steady.rows_N[:3_000])
    assert not np.array_equal(dataset.rows_N[3_000:], steady.rows_N[3_000:])


def test_users_and_items_arrive_over_time(dataset: Dataset, truth: GroundTruth) -> None:
    half = len(dataset) // 2
    assert set(dataset.users_N[half:]) - set(dataset.users_N[:half])
    assert set(dataset.rows_N[half:]) - set(dataset.rows_N[:half])
    assert (truth.item_arrivals_V[dataset.rows_N] <= np.arange(len(dataset))).all()


def test_relevance_is_a_probability_over_the_items_that_are_there(truth: GroundTruth) -> None:
    relevance_V = truth.relevance("user-00007", at_event=2_000, previous_row=0)

    assert relevance_V.sum() == pytest.approx(1.0)
    assert (relevance_V[truth.item_arrivals_V > 2_000] == 0).all()
    assert relevance_V.argmax() == 1  # the next part of the series


def test_every_item_has_a_sentence_of_its_own(dataset: Dataset) -> None:
    texts = {item.text for item in dataset.items}

    assert len(texts) == len(dataset.items)
    assert all(text.endswith(".") and len(text.split()) >= 8 for text in texts)


def test_texts_carry_the_topic_to_bert() -> None:
    truth = GroundTruth(SimulatorSettings(num_items=96))
    encoder = TextEncoder(TextSettings(), threads=1)
    vectors_VD = encoder.encode([item.text for item in truth.items])
    vectors_VD /= np.linalg.norm(vectors_VD, axis=1, keepdims=True)
    similarity_VV = vectors_VD @ vectors_VD.T
    series_V = np.arange(96) // truth.settings.series_length
    similarity_VV[series_V[:, None] == series_V] = -np.inf  # the parts of a series share words

    nearest_V = similarity_VV.argmax(axis=1)
    assert (truth.topics_V[nearest_V] == truth.topics_V).mean() > 0.8


def test_a_world_that_everybody_has_seen_ends_the_stream() -> None:
    small = SimulatorSettings(num_users=2, num_items=24, num_events=1_000, initial_share=1.0)

    assert len(simulate(small)) == 2 * 24


def test_more_sentences_change_the_texts_and_nothing_else() -> None:
    settings = SimulatorSettings(num_items=48, num_events=300)
    short = simulate(settings)
    long = simulate(settings.model_copy(update={"num_sentences": 5}))
    np.testing.assert_array_equal(long.rows_N, short.rows_N)
    for short_item, long_item in zip(short.items, long.items, strict=True):
        assert long_item.text.startswith(short_item.text)
        assert long_item.text.count(".") == short_item.text.count(".") + 4
