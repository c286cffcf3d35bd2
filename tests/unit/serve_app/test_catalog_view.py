"""The replica's copy of the catalogue against a plain list of items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import CatalogChanges
from recommender.events import Item
from serve_app.catalog_view import CatalogView


def _changes(revision: int, rows: Sequence[int], items: Sequence[Item]) -> CatalogChanges:
    vectors = np.array([[row, len(items[i].categories)] for i, row in enumerate(rows)], np.float32)
    return CatalogChanges(
        revision, 0, np.array(rows, np.int64), tuple(items), vectors.reshape(len(rows), 2)
    )


_CATEGORIES = st.lists(st.sampled_from("abc"), max_size=4).map(tuple)


@given(
    steps=st.lists(
        st.tuples(
            st.lists(_CATEGORIES, max_size=4), st.dictionaries(st.integers(0, 20), _CATEGORIES)
        ),
        max_size=6,
    )
)
def test_a_view_equals_the_list_of_items_after_any_changes(
    steps: list[tuple[list[tuple[str, ...]], dict[int, tuple[str, ...]]]],
) -> None:
    view, expected = CatalogView(), list[Item]()
    for revision, (new, changed) in enumerate(steps, start=1):
        rows = [row for row in sorted(changed) if row < len(expected)]
        for row in rows:
            expected[row] = Item(f"i{row}", "changed", categories=changed[row])
        rows += range(len(expected), len(expected) + len(new))
        expected += [Item(f"i{len(expected) + i}", "new", categories=c) for i, c in enumerate(new)]
        view.apply(_changes(revision, rows, [expected[row] for row in rows]))
        assert view.revision == revision
        assert view.items == expected
        assert view.vectors_VD[:, :1].ravel().tolist() == list(range(len(expected)))
        for wanted in ("a", "b", "c", "ab", "z"):
            mask = [bool(set(wanted) & set(item.categories)) for item in expected]
            assert view.mask(wanted).tolist() == mask
        assert view.categories == sorted({c for item in expected for c in item.categories})
        assert [view.row(item.item_id) for item in expected] == list(range(len(expected)))


def test_a_row_that_was_skipped_is_an_error() -> None:
    view = CatalogView()
    with pytest.raises(ValueError, match="row 1 came before row 0"):
        view.apply(_changes(1, [1], [Item("b", "")]))


def test_a_page_after_an_unknown_item_starts_at_the_front() -> None:
    view = CatalogView()
    view.apply(_changes(1, [0, 1, 2], [Item("a", ""), Item("b", ""), Item("c", "")]))
    assert [item.item_id for item in view.page("a", 1)] == ["b"]
    assert [item.item_id for item in view.page("nix", 2)] == ["a", "b"]
    assert view.page("c", 5) == []


def test_unknown_ids_are_left_out_and_order_is_kept() -> None:
    view = CatalogView()
    view.apply(_changes(1, [0, 1], [Item("a", ""), Item("b", "")]))
    assert view.rows(["b", "nix", "a", "b"]).tolist() == [1, 0, 1]
