import numpy as np

from recommender.exploration import draw_unseen, num_slots, seed_of, with_unseen

NUM_ITEMS = 100
SIMILARITY_V = np.linspace(1.0, 0.0, NUM_ITEMS, dtype=np.float32)
ALL_V = np.ones(NUM_ITEMS, np.bool_)


def test_a_short_answer_keeps_no_place() -> None:
    assert [num_slots(k, 1) for k in (1, 9, 10, 19, 20, 100)] == [0, 0, 1, 1, 2, 10]
    assert num_slots(100, 0) == 0


def test_the_same_request_explores_the_same_and_another_something_else() -> None:
    drawn = [
        draw_unseen(SIMILARITY_V, ALL_V, 3, seed_of(request)).tolist()
        for request in ("a", "a", "b")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_similar_items_come_more_often_and_none_is_shut_out() -> None:
    drawn = np.concatenate([draw_unseen(SIMILARITY_V, ALL_V, 1, seed) for seed in range(8_000)])
    counts_V = np.bincount(drawn, minlength=NUM_ITEMS)
    assert counts_V[:10].sum() > 0.45 * counts_V.sum()
    assert (counts_V > 0).all()


def test_without_a_history_all_are_drawn_alike() -> None:
    similarity_V = np.zeros(NUM_ITEMS, np.float32)
    drawn = np.concatenate([draw_unseen(similarity_V, ALL_V, 1, seed) for seed in range(8_000)])
    counts_V = np.bincount(drawn, minlength=NUM_ITEMS)
    assert counts_V.min() > 40
    assert counts_V.max() < 130


def test_only_the_last_places_change_and_no_item_comes_twice() -> None:
    ranked_K = np.arange(10, dtype=np.int32)
    unseen_V = np.zeros(NUM_ITEMS, np.bool_)
    unseen_V[[2, 8, 9, 50, 51]] = True
    for seed in range(50):
        rows, explores = with_unseen(ranked_K, 10, SIMILARITY_V, unseen_V, num=2, seed=seed)
        assert rows[:8].tolist() == list(range(8))
        assert set(rows[8:].tolist()) <= {8, 9, 50, 51}
        assert len(set(rows.tolist())) == 10
        assert explores.tolist() == [False] * 8 + [True] * 2


def test_places_without_an_unseen_item_go_back_to_the_ranking() -> None:
    ranked_K = np.arange(10, dtype=np.int32)
    unseen_V = np.zeros(NUM_ITEMS, np.bool_)
    unseen_V[70] = True
    rows, explores = with_unseen(ranked_K, 10, SIMILARITY_V, unseen_V, num=3, seed=1)
    assert rows.tolist() == [*range(9), 70]
    assert explores.sum() == 1


def test_unseen_items_fill_an_answer_that_is_short() -> None:
    ranked_K = np.array([3], np.int32)
    rows, explores = with_unseen(
        ranked_K, 10, SIMILARITY_V, np.zeros(NUM_ITEMS, np.bool_), num=2, seed=1
    )
    assert rows.tolist() == [3]
    assert not explores.any()
