from collections.abc import Sequence

import numpy as np
import pytest

from recommender.activation_cache import ActivationCache, TokenStates

TEXTS = ("one", "two words", "and three words")


class Reader:
    """A state a word, which is the word's length; remembers what it was asked to read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        self.read += texts
        return [np.array([[len(w)] for w in text.split()], np.float32) for text in texts]


def states_of(cache: ActivationCache, rows: list[int]) -> list[list[float]]:
    return [states_TD[:, 0].tolist() for states_TD in cache.take(rows)]


@pytest.mark.parametrize("max_bytes", [0, 12, 10_000])
def test_the_answer_does_not_depend_on_what_is_cached(max_bytes: int) -> None:
    cache = ActivationCache(Reader(), max_bytes)
    cache.set_texts([0, 1, 2], TEXTS)
    for rows, expected in (
        ([2, 0], [[3, 5, 5], [3]]),
        ([0, 1, 0], [[3], [3, 5], [3]]),
        ([2, 2], [[3, 5, 5], [3, 5, 5]]),
    ):
        assert states_of(cache, rows) == expected
        assert cache.nbytes <= max_bytes


def test_a_text_is_read_once_if_there_is_room() -> None:
    reader = Reader()
    cache = ActivationCache(reader, 10_000)
    cache.set_texts([0, 1, 2], TEXTS)
    cache.take([0, 1, 0])
    cache.take([1, 2, 0])
    assert reader.read == list(TEXTS)
    assert cache.nbytes == 6 * 4
    assert len(cache) == 3


def test_another_text_is_read_anew_and_the_same_one_is_not() -> None:
    reader = Reader()
    cache = ActivationCache(reader, 10_000)
    cache.set_texts([0, 1], TEXTS[:2])
    cache.take([0, 1])
    cache.set_texts([0, 1], ("longer", TEXTS[1]))
    assert states_of(cache, [0, 1]) == [[6], [3, 5]]
    assert reader.read == [*TEXTS[:2], "longer"]
    assert cache.nbytes == 3 * 4


def test_a_row_without_a_text_is_an_error() -> None:
    with pytest.raises(KeyError):
        ActivationCache(Reader(), 100).take([5])
