import itertools

import numpy as np
import pyarrow as pa
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


@given(st.lists(st.text(max_size=3)), st.integers(0, 20))
def test_codes_of_many_texts_are_those_of_single_ones(texts: list[str], cut: int) -> None:
    single, many = Vocabulary(), Vocabulary()
    codes = [single.add(text) for text in texts]
    found = [many.add_all(pa.array(part, pa.string())) for part in (texts[:cut], texts[cut:])]
    assert np.concatenate(found).tolist() == codes
    assert many.after(0) == single.after(0)
    assert many.nbytes == single.nbytes


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=30), st.integers(0, 30))
def test_many_ids_are_remembered_as_single_ones(steps: list[tuple[int, int]], cut: int) -> None:
    ids = [f"e-{number}" for number, _ in steps]
    times = list(itertools.accumulate(elapsed for _, elapsed in steps))
    single, many = RecentIds(10), RecentIds(10)
    for event_id, time_ms in zip(ids, times, strict=True):
        single.add(event_id, time_ms)
    many.add_all(ids[:cut], times[:cut])
    many.add_all(ids[cut:], times[cut:])
    for now_ms in range(200):
        for both in (single, many):
            both.forget_old(now_ms)
        known = {event_id: at for event_id, at in zip(ids, times, strict=True) if at >= now_ms - 10}
        assert {i for i in ids if i in many} == {i for i in ids if i in single} == set(known)
        assert many.nbytes == single.nbytes
    assert many.nbytes == 0
