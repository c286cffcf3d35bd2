import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.windows import PAD, Windows, concatenate, select, without_unknown

Row = list[tuple[int, int, int]]  # item (PAD if unknown), feedback, gap
rows_of_five = st.lists(
    st.lists(
        st.tuples(st.integers(PAD, 6), st.integers(1, 16), st.integers(0, 12)),
        max_size=5,
    ),
    max_size=6,
)


def windows(rows: list[Row]) -> Windows:
    shape = (len(rows), 5)
    made = Windows(
        np.full(shape, PAD, np.int32),
        np.zeros(shape, np.int8),
        np.zeros(shape, np.int8),
        np.array([len(row) for row in rows], np.int32),
    )
    for b, row in enumerate(rows):
        for t, (item, feedback, gap) in enumerate(row):
            made.items_BT[b, t] = item
            made.feedback_BT[b, t] = feedback
            made.gaps_BT[b, t] = gap
    return made


def same(one: Windows, other: Windows) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(_arrays(one), _arrays(other), strict=True))


def _arrays(batch: Windows) -> list[np.ndarray]:
    return [batch.items_BT, batch.feedback_BT, batch.gaps_BT, batch.lengths_B]


@settings(deadline=None)
@given(rows_of_five)
def test_without_unknown_is_as_if_the_unknown_items_had_never_been(rows: list[Row]) -> None:
    known = [[entry for entry in row if entry[0] != PAD] for row in rows]
    packed = without_unknown(windows(rows))
    assert same(packed, windows(known))
    before, after = _arrays(windows(rows)), _arrays(packed)
    assert [array.dtype for array in after] == [array.dtype for array in before]


def test_without_unknown_leaves_its_argument_as_it_was() -> None:
    row: Row = [(1, 6, 0), (PAD, 7, 1), (2, 8, 2)]
    given_windows = windows([row])
    without_unknown(given_windows)
    assert same(given_windows, windows([row]))


def test_windows_without_unknown_items_are_not_copied() -> None:
    all_known = windows([[(1, 6, 0)], [], [(2, 7, 1)] * 5])
    assert without_unknown(all_known) is all_known


@pytest.mark.parametrize(
    "chosen", [np.array([2, 0]), np.array([True, False, True]), slice(1, 3), np.array([], np.int64)]
)
def test_select_takes_whole_rows_in_the_order_asked_for(chosen: np.ndarray | slice) -> None:
    rows: list[Row] = [[(1, 6, 0)], [(2, 7, 1), (3, 8, 2)], [(4, 9, 3)] * 3]
    places = np.arange(3)[chosen].tolist()
    assert same(select(windows(rows), chosen), windows([rows[place] for place in places]))


@settings(deadline=None)
@given(st.lists(rows_of_five, min_size=1, max_size=4))
def test_concatenate_is_one_batch_after_the_other(parts: list[list[Row]]) -> None:
    joined = concatenate([windows(part) for part in parts])
    assert same(joined, windows([row for part in parts for row in part]))


def test_there_is_no_concatenation_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one array"):
        concatenate([])
