"""What a shard knows, fed by its log: vocabularies, ids seen, the replay memory.

Axes: N events of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recommender.events import feedback_codes
from recommender.replay import ReplayMemory

_BYTES_PER_TEXT = 150
"""Beside its characters: the object, a number of its own, a dictionary's place for both."""
_BATCH_EVENTS = 50_000


class Vocabulary:
    """Texts and their codes: 0, 1, 2... in the order of their first sight; a code never changes."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._codes: dict[str, int] = {}
        self._texts: list[str] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """The code of a text, a new one if need be."""
        code = self._codes.setdefault(text, len(self._texts))
        if code == len(self._texts):
            self._texts.append(text)
            self.nbytes += _nbytes([text])
        return code

    def add_all(self, texts_N: pa.Array) -> NDArray[np.int32]:
        """The codes of many texts, as `add` gives them one after the other."""
        encoded = texts_N.dictionary_encode()  # in the order of first sight
        texts, codes = encoded.dictionary.to_pylist(), self._codes
        for text in texts:
            if text not in codes:
                self.add(text)
        codes_of_texts = np.fromiter(map(codes.__getitem__, texts), np.int32, len(texts))
        codes_N: NDArray[np.int32] = codes_of_texts[encoded.indices.to_numpy()]
        return codes_N

    def find(self, text: str) -> int | None:
        """The code of a text, None if it has none."""
        return self._codes.get(text)

    def text(self, code: int) -> str:
        """The text of a code."""
        return self._texts[code]

    def after(self, num_known: int) -> list[str]:
        """The texts of the codes from `num_known` on."""
        return self._texts[num_known:]


class RecentIds:
    """Ids seen within a window of time, exactly."""

    def __init__(self, window_ms: int) -> None:
        self.nbytes = 0
        self._window_ms = window_ms
        self._seen_ms: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._seen_ms)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._seen_ms

    def add(self, event_id: str, now_ms: int) -> None:
        """Remember an id; ids must come in the order of their times to be forgotten in time."""
        self.add_all([event_id], [now_ms])

    def add_all(self, event_ids: Sequence[str], times_ms: Sequence[int]) -> None:
        """Remember many ids, as `add` one after the other."""
        new = dict(zip(event_ids, times_ms, strict=True))
        if len(new) < len(event_ids) or not self._seen_ms.keys().isdisjoint(new):
            for event_id, time_ms in zip(event_ids, times_ms, strict=True):
                self._forget(event_id)  # it goes to the end, where its new time belongs
                self._remember({event_id: time_ms})
        else:
            self._remember(new)

    def forget_old(self, now_ms: int) -> None:
        """Drop the ids seen more than the window ago."""
        while self._seen_ms:
            oldest = next(iter(self._seen_ms))
            if self._seen_ms[oldest] >= now_ms - self._window_ms:
                return
            self._forget(oldest)

    def _remember(self, new_ms: Mapping[str, int]) -> None:
        self._seen_ms.update(new_ms)
        self.nbytes += _nbytes(new_ms)

    def _forget(self, event_id: str) -> None:
        if self._seen_ms.pop(event_id, None) is not None:
            self.nbytes -= _nbytes([event_id])


class ShardMemory:
    """Everything a shard derives from its log, the same after a restart as before it."""

    def __init__(self, replay: ReplayMemory, dedup_window_ms: int) -> None:
        self.replay = replay
        self.users = Vocabulary()
        self.items = Vocabulary()
        self.event_ids = RecentIds(dedup_window_ms)

    @property
    def nbytes(self) -> int:
        """Bytes held, to within allocation slack."""
        texts = self.users.nbytes + self.items.nbytes
        return self.replay.nbytes + texts + self.event_ids.nbytes

    def apply(self, batch: pa.RecordBatch) -> None:
        """Take in a batch of the log (`event_log.LOG_SCHEMA`), in order."""
        times_ms = batch.column("acknowledged_ms").to_pylist()
        self.event_ids.add_all(batch.column("event_id").to_pylist(), times_ms)
        self.apply_again(batch, self.replay)
        if times_ms:
            self.event_ids.forget_old(times_ms[-1])

    def apply_all(self, batches: Iterable[pa.RecordBatch]) -> None:
        """`apply` all of a log, in batches of a size that is neither slow nor takes much memory."""
        for batch in _rebatched(batches):
            self.apply(batch)

    def apply_again(self, batch: pa.RecordBatch, replay: ReplayMemory) -> None:
        """Take a batch that was applied before into another replay memory, under the same codes."""
        if not batch.num_rows:
            return
        types = batch.column("event_type").dictionary_encode()
        event_types_N = np.array(types.dictionary.to_pylist())[types.indices.to_numpy()]
        replay.extend(
            self.users.add_all(batch.column("user_id")),
            self.items.add_all(batch.column("item_id")),
            feedback_codes(event_types_N, batch.column("value").to_numpy()),
            batch.column("timestamp_ms").to_numpy(),
            batch.column("acknowledged_ms").to_numpy(),
            batch.column("offset")[0].as_py(),
        )


def _nbytes(texts: Collection[str]) -> int:
    return sum(map(len, texts)) + len(texts) * _BYTES_PER_TEXT


def _rebatched(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_EVENTS):
            waiting.append(batch.slice(start, _BATCH_EVENTS))
            num_waiting += waiting[-1].num_rows
            if num_waiting >= _BATCH_EVENTS:
                yield pa.concat_batches(waiting)
                waiting, num_waiting = [], 0
    if waiting:
        yield pa.concat_batches(waiting)
