"""What a shard keeps in memory to learn from: user sequences, recent events, a sample of old ones.

Axes: N events, B windows or blocks of a user's events, T = window + 1 items a window, H items of a
history, K all items joined.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recommender.hold_out import EVERYTHING, LeaveOut
from recommender.windows import PAD, FreshEvents, Windows, firsts_first

Strategy = Literal["uniform", "recency", "mix"]

_EVENT = np.dtype(
    [
        ("offset", np.int64),
        ("timestamp_ms", np.int64),
        ("acknowledged_ms", np.int64),
        ("user", np.int32),
        ("item", np.int32),
        ("feedback", np.int8),
    ]
)
# A user's sequence is one flat array of (timestamp_ms, offset, item << 8 | feedback).
_FIELDS = 3
_ROW_BYTES = 8 * _FIELDS
_BYTES_PER_USER = 200
_LAST_GAP = 12
_MAX_DRAWS = 16  # until as many events were drawn as asked for


class UserSequence(NamedTuple):
    """Items of one user, oldest first: int32 items, int8 feedback, int64 timestamps, each [H]."""

    items: NDArray[np.int32]
    feedback: NDArray[np.int8]
    timestamps_ms: NDArray[np.int64]


def windows_of(sequences: Sequence[UserSequence], num_columns: int) -> Windows:
    """The last `num_columns` items of each sequence as one batch of windows.

    The gap of a window's first item is taken to the item before it where the sequence has one.
    """
    lengths_B = np.array([len(s.items) for s in sequences], np.int64)
    shown_B = np.minimum(lengths_B, num_columns)
    shape = (len(sequences), num_columns)
    items_BT = np.full(shape, PAD, np.int32)
    feedback_BT = np.zeros(shape, np.int8)
    gaps_BT = np.zeros(shape, np.int8)
    if len(sequences):
        kept_B = np.minimum(lengths_B, num_columns + 1)  # one more than is shown, for the first gap
        items_K = np.concatenate([s.items[-num_columns - 1 :] for s in sequences])
        feedback_K = np.concatenate([s.feedback[-num_columns - 1 :] for s in sequences])
        timestamps_K = np.concatenate([s.timestamps_ms[-num_columns - 1 :] for s in sequences])
        gaps_K = _gap_codes(np.diff(timestamps_K, prepend=0) // 1_000)
        firsts_B = np.cumsum(kept_B) - kept_B
        gaps_K[firsts_B[kept_B > 0]] = 0
        columns_BT = np.arange(num_columns)
        used_BT = columns_BT < shown_B[:, None]
        sources = ((firsts_B + kept_B - shown_B)[:, None] + columns_BT)[used_BT]
        items_BT[used_BT] = items_K[sources]
        feedback_BT[used_BT] = feedback_K[sources]
        gaps_BT[used_BT] = gaps_K[sources]
    return Windows(items_BT, feedback_BT, gaps_BT, shown_B.astype(np.int32))


def windows_before(windows: Windows) -> Windows:
    """Windows without their last item: what was known just before the event each one ends at."""
    lengths_B = np.maximum(windows.lengths_B - 1, 0)
    used_BT = np.arange(windows.items_BT.shape[1] - 1) < lengths_B[:, None]
    return Windows(
        np.where(used_BT, windows.items_BT[:, :-1], np.int32(PAD)),
        np.where(used_BT, windows.feedback_BT[:, :-1], np.int8(0)),
        np.where(used_BT, windows.gaps_BT[:, :-1], np.int8(0)),
        lengths_B,
    )


class ReplayMemory:
    """User sequences, a ring of recent events and a uniform sample of the events that left it.

    Promises that what it says of an event depends on the events up to its offset alone: a late one
    does not change the windows of those before it. Never holds more than `history_length` items a
    user (a quarter more in between), `recent_window` recent and `reservoir_size` older events. An
    event that has left its user's history has a window of just itself. A restart loses everything;
    the shard appends its log again.
    """

    def __init__(
        self,
        *,
        window: int = 50,
        history_length: int = 1_000,
        recent_window: int = 200_000,
        reservoir_size: int = 50_000,
        seed: int = 0,
    ) -> None:
        self.num_events = 0
        self.next_offset = 0
        self._num_columns = window + 1
        self._history_length = history_length
        self._max_stored = history_length + history_length // 4
        self._sequences: defaultdict[int, array[int]] = defaultdict(partial(array, "q"))
        self._recent_N = np.zeros(recent_window, _EVENT)
        self._num_recent = 0
        self._older_N = np.zeros(reservoir_size, _EVENT)
        self._num_left_recent = 0
        self._num_in_sequences = 0
        self._rng = np.random.default_rng(seed)

    @property
    def first_recent_offset(self) -> int:
        """Oldest offset that `fresh` can start at."""
        return self.next_offset - self._num_recent

    @property
    def num_users(self) -> int:
        """Users with at least one event."""
        return len(self._sequences)

    @property
    def nbytes(self) -> int:
        """Bytes held, to within allocation slack."""
        sequences = self._num_in_sequences * _ROW_BYTES + self.num_users * _BYTES_PER_USER
        return self._recent_N.nbytes + self._older_N.nbytes + sequences

    def append(
        self,
        user: int,
        item: int,
        feedback: int,
        timestamp_ms: int,
        acknowledged_ms: int = 0,
        offset: int | None = None,
    ) -> int:
        """Take one event in and give its offset.

        Raises:
            ValueError: If `offset` does not continue the last one (the first may be any).
        """
        if offset is None:
            offset = self.next_offset
        self._check_follows(offset)
        event = (offset, timestamp_ms, acknowledged_ms, user, item, feedback)
        self._remember(np.array([event], _EVENT))
        self._insert(self._sequences[user], timestamp_ms, offset, item << 8 | feedback)
        self._num_in_sequences += 1
        self.next_offset = offset + 1
        self.num_events += 1
        return offset

    def extend(
        self,
        users_N: NDArray[np.integer[Any]],
        items_N: NDArray[np.integer[Any]],
        feedback_N: NDArray[np.integer[Any]],
        timestamps_ms_N: NDArray[np.integer[Any]],
        acknowledged_ms_N: NDArray[np.integer[Any]] | int = 0,
        first_offset: int | None = None,
    ) -> None:
        """Take many events in: the same as `append` of each, some times faster.

        Raises:
            ValueError: If `first_offset` does not continue the last one (the first may be any).
        """
        if first_offset is None:
            first_offset = self.next_offset
        self._check_follows(first_offset)
        num_new = len(users_N)
        if not num_new:
            return
        events_N = np.empty(num_new, _EVENT)
        events_N["offset"] = np.arange(first_offset, first_offset + num_new)
        events_N["timestamp_ms"] = timestamps_ms_N
        events_N["acknowledged_ms"] = acknowledged_ms_N
        events_N["user"], events_N["item"] = users_N, items_N
        events_N["feedback"] = feedback_N
        size = len(self._recent_N)
        for start in range(0, num_new, size):
            self._remember(events_N[start : start + size])
        self._extend_sequences(events_N)
        self.next_offset = first_offset + num_new
        self.num_events += num_new

    def history(self, user: int) -> UserSequence:
        """The user's last `history_length` items, by (timestamp, offset); empty if unknown."""
        return _unpack(self._stored(user)[-self._history_length :])

    def fresh(self, after_offset: int, limit: int, include_seen: bool = True) -> FreshEvents:
        """Up to `limit` events that follow `after_offset`, each with what was known before it.

        Raises:
            LookupError: If the first of them has left the recent window.
        """
        first = after_offset + 1
        if first < self.first_recent_offset:
            raise LookupError(
                f"offset {first} is older than the recent window, which starts at "
                f"{self.first_recent_offset}"
            )
        stop = max(first, min(first + limit, self.next_offset))
        events_N = self._recent(np.arange(first, stop))
        seen = [
            self._seen_before(user, offset) if include_seen else np.zeros(0, np.int32)
            for user, offset in zip(
                events_N["user"].tolist(), events_N["offset"].tolist(), strict=True
            )
        ]
        return FreshEvents(
            offsets_N=events_N["offset"].copy(),
            users_N=events_N["user"].copy(),
            items_N=events_N["item"].copy(),
            acknowledged_ms_N=events_N["acknowledged_ms"].copy(),
            windows=self._windows(events_N),
            seen_values=np.concatenate([np.zeros(0, np.int32), *seen]),
            seen_splits=np.cumsum([0, *map(len, seen)], dtype=np.int64),
        )

    def sample(
        self,
        n: int,
        strategy: Strategy,
        half_life: float,
        rng: np.random.Generator,
        leave_out: LeaveOut = EVERYTHING,
        through: int | None = None,
    ) -> Windows:
        """Windows that end at `n` sampled events, drawn with replacement; none if there is none.

        With `through` the later events might as well not be there: as long as the recent window
        holds all events, the same are drawn as before they came.

        Args:
            n: Windows to draw. Fewer come if nearly all events are left out.
            strategy: `uniform` over all events, `recency` with an exponential age, or half of each.
            half_life: In events, of the age under `recency`.
            rng: Decides what is drawn.
            leave_out: Events that no window may end at.
            through: Last offset that may be drawn; default the newest.
        """
        newest = self.next_offset - 1 if through is None else min(through, self.next_offset - 1)
        num_later = self.next_offset - 1 - newest
        num_events = (self.num_events if len(self._older()) else self._num_recent) - num_later
        if num_events <= 0:
            return windows_of([], self._num_columns)
        drawn = np.empty(0, _EVENT)
        for _ in range(_MAX_DRAWS):
            ages = _draw_ages(n - len(drawn), num_events, strategy, half_life, rng)
            events_N = self._aged(ages + num_later, rng)
            may_N = leave_out.may_learn(events_N["user"], events_N["offset"])
            drawn = np.concatenate([drawn, events_N[may_N]])
            if len(drawn) == n:
                break
        return self._windows(drawn)

    def latest_windows(
        self, n: int, after_offset: int, leave_out: LeaveOut = EVERYTHING
    ) -> Windows:
        """Windows that end at up to `n` of the newest events that are not left out.

        The newest event of each user with one after `after_offset` comes first, then the newest
        others.
        """
        offsets_N = np.arange(self.next_offset - 1, self.first_recent_offset - 1, -1)
        if not leave_out.is_nothing:
            users_N = self._recent(offsets_N)["user"]
            offsets_N = offsets_N[leave_out.may_learn(users_N, offsets_N)]
        num_after = int((offsets_N > after_offset).sum())
        after = firsts_first(self._recent(offsets_N[:num_after])["user"])
        chosen_N = np.concatenate([offsets_N[after], offsets_N[num_after:]])[:n]
        return self._windows(self._recent(chosen_N))

    def _check_follows(self, offset: int) -> None:
        if offset != self.next_offset and self.num_events:
            raise ValueError(f"offset {offset} does not follow {self.next_offset - 1}")

    def _remember(self, events_N: NDArray[np.void]) -> None:
        """Put events, no more than it has room for, into the ring."""
        size = len(self._recent_N)
        places_N = events_N["offset"] % size
        num_free = min(len(events_N), size - self._num_recent)
        if num_free < len(events_N):
            self._retire(self._recent_N[places_N[num_free:]])
        self._num_recent += num_free
        self._recent_N[places_N] = events_N

    def _retire(self, events_N: NDArray[np.void]) -> None:
        """Offer events that leave the ring to the reservoir (Vitter 1985, algorithm R)."""
        size = len(self._older_N)
        numbers_N = np.arange(self._num_left_recent, self._num_left_recent + len(events_N))
        self._num_left_recent += len(events_N)
        places_N = numbers_N.copy()
        # One draw for each event, so that it does not matter how they were batched.
        is_full_N = numbers_N >= size
        places_N[is_full_N] = self._rng.integers(numbers_N[is_full_N] + 1)
        is_kept_N = places_N < size
        self._older_N[places_N[is_kept_N]] = events_N[is_kept_N]  # of one place, the last stays

    def _extend_sequences(self, events_N: NDArray[np.void]) -> None:
        """Append each user's events as one block, where they come in the order of their times."""
        events_N = events_N[np.argsort(events_N["user"], kind="stable")]
        packed_N = events_N["item"].astype(np.int64) << 8 | events_N["feedback"]
        rows_N = np.stack([events_N["timestamp_ms"], events_N["offset"], packed_N], axis=1)
        is_first_N = np.diff(events_N["user"], prepend=-1) != 0
        is_late_N = (np.diff(rows_N[:, 0], prepend=0) < 0) & ~is_first_N
        firsts_B = np.flatnonzero(is_first_N)
        blocks = zip(
            events_N["user"][firsts_B].tolist(),
            rows_N[firsts_B, 0].tolist(),
            np.logical_or.reduceat(is_late_N, firsts_B).tolist(),
            itertools.pairwise([*firsts_B.tolist(), len(events_N)]),
            strict=True,
        )
        max_values, data = self._max_stored * _FIELDS, memoryview(rows_N.tobytes())
        for user, timestamp_ms, is_late, (start, stop) in blocks:
            flat = self._sequences[user]
            is_full = len(flat) + (stop - start) * _FIELDS > max_values
            if is_full or is_late or (flat and flat[-_FIELDS] > timestamp_ms):
                for row in rows_N[start:stop].tolist():
                    self._insert(flat, *row)
            else:
                flat.frombytes(data[start * _ROW_BYTES : stop * _ROW_BYTES])
        self._num_in_sequences += len(events_N)

    def _insert(self, flat: array[int], timestamp_ms: int, offset: int, packed: int) -> None:
        """Put one item into a sequence at its place in time, and drop the oldest if need be."""
        place = len(flat)
        while place and flat[place - _FIELDS] > timestamp_ms:
            place -= _FIELDS
        flat[place:place] = array("q", (timestamp_ms, offset, packed))
        num_stored = len(flat) // _FIELDS
        if num_stored > self._max_stored:
            num_over = num_stored - self._history_length
            del flat[: num_over * _FIELDS]
            self._num_in_sequences -= num_over

    def _stored(self, user: int) -> NDArray[np.int64]:
        """[H, 3] view; must not outlive the call, for an array with a view cannot grow."""
        flat = self._sequences.get(user, array("q"))
        return np.frombuffer(flat, np.int64).reshape(-1, _FIELDS)

    def _recent(self, offsets_N: NDArray[np.int64]) -> NDArray[np.void]:
        return self._recent_N[offsets_N % len(self._recent_N)]

    def _older(self) -> NDArray[np.void]:
        return self._older_N[: self._num_left_recent]

    def _aged(self, ages_N: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.void]:
        """The events of these ages; where one has left the ring, any older one stands for it."""
        events_N = self._recent(self.next_offset - 1 - ages_N)
        is_older_N = ages_N >= self._num_recent
        older_N = self._older()
        events_N[is_older_N] = older_N[rng.integers(max(1, len(older_N)), size=is_older_N.sum())]
        return events_N

    def _seen_before(self, user: int, offset: int) -> NDArray[np.int32]:
        stored_H = self._stored(user)
        return _unpack(stored_H[stored_H[:, 1] < offset]).items

    def _windows(self, events_N: NDArray[np.void]) -> Windows:
        return windows_of(
            [self._sequence_to(*event) for event in events_N.tolist()], self._num_columns
        )

    def _sequence_to(
        self,
        offset: int,
        timestamp_ms: int,
        _acknowledged_ms: int,
        user: int,
        item: int,
        feedback: int,
    ) -> UserSequence:
        """The user's last items up to an event, without those that came in after it."""
        stored_H = self._stored(user)
        at = np.flatnonzero(stored_H[:, 1] == offset)
        if at.size == 0:
            return _unpack(np.array([[timestamp_ms, offset, item << 8 | feedback]]))
        stored_H = stored_H[: at[0] + 1]
        return _unpack(stored_H[stored_H[:, 1] <= offset][-self._num_columns - 1 :])


def _draw_ages(
    n: int, num_events: int, strategy: Strategy, half_life: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many events before the newest each of `n` drawn ones lies."""
    num_uniform = {"uniform": n, "recency": 0, "mix": n // 2}[strategy]
    uniform = rng.integers(num_events, size=num_uniform)
    mean_age = half_life / math.log(2)
    reachable = -math.expm1(-num_events / mean_age)
    recency = -mean_age * np.log1p(-reachable * rng.random(n - num_uniform))
    return np.concatenate([uniform, np.minimum(recency.astype(np.int64), num_events - 1)])


def _unpack(stored_H: NDArray[np.int64]) -> UserSequence:
    packed_H = stored_H[:, 2]
    return UserSequence(
        (packed_H >> 8).astype(np.int32), (packed_H & 0xFF).astype(np.int8), stored_H[:, 0].copy()
    )


def _gap_codes(gaps_s: NDArray[np.int64]) -> NDArray[np.int8]:
    """`events.gap_code` of many gaps at once."""
    _, num_bits = np.frexp(np.maximum(gaps_s, 0).astype(np.float64))
    codes = np.minimum(_LAST_GAP, (num_bits - 1) // 2 + 1)
    return np.where(gaps_s > 0, codes, 0).astype(np.int8)
