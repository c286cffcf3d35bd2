import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.item_table import ItemTable
from recommender.events import Item

puts = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=5), max_size=12)


@given(puts, st.integers(1, 4))
def test_a_follower_that_applies_every_change_has_the_table(
    batches: list[list[tuple[int, int]]], chunk: int
) -> None:
    table = ItemTable()
    latest: dict[int, int] = {}
    follower: dict[int, tuple[Item, float]] = {}
    revision = 0
    for batch in batches:
        changed, num_new = table.new_or_changed([Item(f"i-{n}", "x" * size) for n, size in batch])
        num_before = table.num_items
        table.accept(changed)
        latest.update(batch)
        assert table.num_items == num_before + num_new == len(latest)
        pending = table.next_pending(chunk)
        table.show(np.array([[len(item.text)] for item in pending], np.float32).reshape(-1, 1))
        changes = table.changes_after(revision)
        for row, item, vector in zip(changes.rows, changes.items, changes.vectors, strict=True):
            assert row <= len(follower)
            assert row not in follower or follower[row][0].item_id == item.item_id
            follower[int(row)] = (item, float(vector[0]))
        revision = changes.revision
        assert len(follower) == changes.num_items
    while pending := table.next_pending(100):
        table.show(np.array([[len(item.text)] for item in pending], np.float32))
    changes = table.changes_after(revision)
    for row, item, vector in zip(changes.rows, changes.items, changes.vectors, strict=True):
        follower[int(row)] = (item, float(vector[0]))
    assert {item.item_id: len(item.text) for item, _ in follower.values()} == {
        f"i-{n}": size for n, size in latest.items()
    }
    assert all(vector == len(item.text) for item, vector in follower.values())
    assert table.revision == table.num_changes
