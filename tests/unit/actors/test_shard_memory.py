from hypothesis import given
from hypothesis import strategies as st

from actors.shard_memory import RecentIds, Vocabulary


@given(st.lists(st.text(max_size=3)))
def test_codes_are_dense_in_order_of_first_sight_and_never_change(texts: list[str]) -> None:
    vocabulary = Vocabulary()
    codes = [vocabulary.add(text) for text in texts]
    first_seen = list(dict.fromkeys(texts))
    assert codes == [first_seen.index(text) for text in texts]
    assert vocabulary.after(0) == first_seen
    assert [vocabulary.find(text) for text in first_seen] == list(range(len(vocabulary)))
    assert [vocabulary.text(code) for code in codes] == texts
    assert vocabulary.find("never seen") is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30))), st.integers(1, 20))
def test_an_id_is_known_for_exactly_the_window(steps: list[tuple[int, int]], window: int) -> None:
    ids = RecentIds(window)
    seen: dict[str, int] = {}
    now = 0
    for number, elapsed in steps:
        now += elapsed
        ids.forget_old(now)
        seen = {i: at for i, at in seen.items() if at >= now - window}
        assert {f"e-{n}" for n in range(10) if f"e-{n}" in ids} == set(seen)
        assert len(ids) == len(seen)
        if f"e-{number}" not in ids:
            ids.add(f"e-{number}", now)
            seen[f"e-{number}"] = now
