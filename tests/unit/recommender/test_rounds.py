import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.rounds import round_batches
from recommender.windows import Windows


def windows(first: int, num_rows: int) -> Windows:
    """Rows that can be told apart by their one item."""
    items_BT = np.arange(first, first + num_rows, dtype=np.int32)[:, None]
    zeros_BT = np.zeros((num_rows, 1), np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.ones(num_rows, np.int32))


def dealt(
    num_newest: int | None, num_older: int | None, num_steps: int, seed: int = 0
) -> list[list[int]]:
    """The items of each batch: newest ones from 0 on, older ones from 1,000 on."""
    newest = None if num_newest is None else windows(0, num_newest)
    older = None if num_older is None else windows(1_000, num_older)
    batches = round_batches(newest, older, num_steps, np.random.default_rng(seed))
    return [batch.items_BT[:, 0].tolist() for batch in batches]


counts = st.none() | st.integers(0, 40)


@settings(deadline=None)
@given(counts, counts, st.integers(1, 9))
def test_every_window_is_in_one_batch_and_no_batch_is_empty(
    num_newest: int | None, num_older: int | None, num_steps: int
) -> None:
    batches = dealt(num_newest, num_older, num_steps)
    everything = [*range(num_newest or 0), *range(1_000, 1_000 + (num_older or 0))]
    assert sorted(item for batch in batches for item in batch) == everything
    assert len(batches) <= num_steps
    assert all(batches)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9))
def test_each_step_gets_its_share_of_both_kinds(
    num_newest: int, num_older: int, num_steps: int
) -> None:
    batches = dealt(num_newest, num_older, num_steps)
    batches += [[]] * (num_steps - len(batches))
    num_new = [sum(item < 1_000 for item in batch) for batch in batches]
    num_old = [sum(item >= 1_000 for item in batch) for batch in batches]
    assert max(num_new) - min(num_new) <= 1
    assert max(num_old) - min(num_old) <= 1


def test_the_newest_are_shuffled_and_the_seed_decides() -> None:
    batches = dealt(40, None, 4)
    assert batches == dealt(40, None, 4)
    assert batches != dealt(40, None, 4, seed=1)
    assert [item for batch in batches for item in batch] != list(range(40))


def test_nothing_to_learn_makes_no_batch() -> None:
    assert dealt(None, None, 3) == dealt(0, 0, 3) == []
