from dataclasses import replace

import numpy as np

from recommender.datasets import Dataset
from recommender.events import Item
from recommender.slices import Protocol, scored_events, slices_of


def dataset_of(
    users: list[int], rows: list[int], times_s: list[int], types: list[str] | None = None
) -> Dataset:
    count = len(users)
    return Dataset(
        name="shop",
        items=tuple(Item(f"i{row}", "text") for row in range(max(rows) + 1)),
        user_ids=tuple(f"u{user}" for user in range(max(users) + 1)),
        users_N=np.array(users, np.int32),
        rows_N=np.array(rows, np.int32),
        feedback_N=np.zeros(count, np.int8),
        values_N=np.ones(count, np.float32),
        event_types_N=np.array(types or ["purchase"] * count),
        timestamps_ms_N=np.array(times_s, np.int64) * 1_000,
    )


SHOP = dataset_of(
    users=[0, 0, 1, 0, 0, 1, 1, 1],
    rows=[0, 1, 2, 3, 4, 0, 1, 2],
    times_s=[1, 1, 1, 5, 5, 6, 6, 9],
    types=["purchase", "purchase", "purchase", "return", "purchase", "purchase", "purchase",
           "return"],
)  # fmt: skip


def selected(protocol: Protocol, start: int, stop: int, dataset: Dataset = SHOP) -> list[int]:
    return np.flatnonzero(scored_events(dataset, protocol, start, stop)).tolist()


def test_every_fifth_event_of_the_stream_is_predicted() -> None:
    long = dataset_of([0] * 30, list(range(30)), list(range(30)))
    assert selected("events", 10, 28, long) == [12, 17, 22, 27]


def test_of_a_basket_only_the_first_line_that_is_no_return_is_predicted() -> None:
    assert selected("baskets", 0, 8) == [0, 2, 4, 5]


def test_a_basket_that_began_before_the_stream_is_not_predicted() -> None:
    assert selected("baskets", 1, 5) == [2, 4]


def test_lines_of_one_basket_need_not_be_neighbours() -> None:
    mixed = dataset_of([0, 1, 0, 1], [0, 1, 2, 3], [1, 1, 1, 1])
    assert selected("baskets", 0, 4, mixed) == [0, 1]


def test_new_users_count_for_their_first_five_events() -> None:
    stream = dataset_of([0] + [1] * 7 + [0], [0] * 9, list(range(9)))
    slices = slices_of(stream, np.arange(1, 9), start=1)
    assert slices["new users"].tolist() == [True] * 5 + [False] * 3


def test_an_item_is_new_if_nobody_had_it_before_the_stream() -> None:
    stream = replace(SHOP, rows_N=np.array([0, 1, 0, 2, 2, 1, 3, 0], np.int32))
    slices = slices_of(stream, np.array([3, 4, 5, 6, 7]), start=3)
    assert slices["new items"].tolist() == [True, True, False, True, False]


def test_each_event_is_in_one_slice_of_history_lengths() -> None:
    stream = dataset_of([0] * 25, [0] * 25, list(range(25)))
    slices = slices_of(stream, np.arange(25), start=0)
    by_length = {name: mask.sum() for name, mask in slices.items() if name.startswith("history")}
    assert by_length == {"history 0": 1, "history 1-4": 4, "history 5-19": 15, "history 20+": 5}
