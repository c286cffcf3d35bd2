"""Which fresh events may teach: caps on one user and one item, and filters against bots.

What is left out stays in the log and in its user's own history; it only does not teach the others.
Whether an event is kept depends on the log up to it alone, never on how the log was cut into
batches, so a trainer that reads the log again decides the same.

Axes: N events, T columns of a window, F keys of an event, P bands, R hashes of a band.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from recommender.model_inputs import latest_items
from recommender.settings import FilterSettings
from recommender.windows import PAD, FreshEvents, Windows, select, without_unknown

Keys = NDArray[np.uint64]

_NUM_BANDS = 4
_HASHES_PER_BAND = 5
_TWIN_ITEMS = 20
_TWIN_MIN_ITEMS = 5
_SURGE_MEMORY = 5  # spans, the present one included
_SURGE_FLOOR = 10
_NUM_KEYS = 2 + 2 * _NUM_BANDS
_USER, _ITEM = 0, 1
_MULTIPLIERS = np.random.default_rng(0x5EED).integers(
    2**63, size=_NUM_BANDS * _HASHES_PER_BAND, dtype=np.uint64
) * np.uint64(2) + np.uint64(1)


class Reason(IntEnum):
    """Why an event does not teach. The first that applies counts."""

    KEPT = 0
    REPEAT = 1
    TWIN = 2
    USER_CAP = 3
    SURGE = 4


@dataclass(frozen=True)
class Recent:
    """What is remembered of the events before a batch: their offsets and what they share.

    Attributes:
        offsets_N: int64, rising.
        keys_NF: uint64; events with an equal key in a column have that in common.
    """

    offsets_N: NDArray[np.int64]
    keys_NF: Keys

    @classmethod
    def nothing(cls) -> Recent:
        """The start of a log."""
        return cls(np.zeros(0, np.int64), np.zeros((0, _NUM_KEYS), np.uint64))


@dataclass(frozen=True)
class Screened:
    """The verdict on a batch.

    Attributes:
        reasons_N: int8 `Reason` of each event.
        recent: To be given with the next batch of the same log.
    """

    reasons_N: NDArray[np.int8]
    recent: Recent

    @property
    def kept_N(self) -> NDArray[np.bool_]:
        """Events that teach."""
        return np.equal(self.reasons_N, Reason.KEPT)

    def counts(self) -> dict[str, int]:
        """How many events were left out for each reason, by its lower-case name."""
        counts = np.bincount(self.reasons_N, minlength=len(Reason)).tolist()
        return {reason.name.lower(): counts[reason] for reason in Reason if reason}


def screen(fresh: FreshEvents, recent: Recent, settings: FilterSettings) -> Screened:
    """Judge the next events of one shard's log.

    - A *repeat* is on an item that the user's window holds `max_repeats` times already.
    - A *twin* comes to an item after nearly the same items as `max_twins` events of others did:
      MinHash over the last 20 items finds 8 of 10 pairs that share 0.8 of them (Jaccard), and 1 of
      8 that share a half. Source: Broder 1997, doi:10.1109/SEQUEN.1997.666900.
    - The *user cap* is `max_user_events` in any `span` events of the shard. A cap for each API key
      is one more column of `_keys` and one more line here, once events carry their key.
    - A *surge* is an item with more than 10 events in a span and more than `max_growth` times what
      the four spans before make one expect.

    Repeats count for nothing else: a bot that repeats itself cannot block an item for the others.

    Args:
        fresh: In log order, each with its window.
        recent: Of the batch before; `Recent.nothing()` at the start of the log.
        settings: Bounds; a bound of 0 switches its filter off.
    """
    reasons_N = np.full(len(fresh), Reason.KEPT, np.int8)
    if settings.max_repeats:
        last_N = np.maximum(fresh.windows.lengths_B - 1, 0)
        earlier_N = _earlier_BT(fresh.windows)[np.arange(len(fresh)), last_N]
        reasons_N[earlier_N >= settings.max_repeats] = Reason.REPEAT
    own_N, span = np.flatnonzero(reasons_N == Reason.KEPT), settings.span
    offsets = np.concatenate([recent.offsets_N, fresh.offsets_N[own_N]])
    keys = np.concatenate([recent.keys_NF, _keys(fresh)[own_N]])
    # From the least to the most important: a later line overrules an earlier one.
    new = slice(len(recent.offsets_N), None)
    for reason, over in (
        (Reason.SURGE, _surges(keys[:, _ITEM], offsets, settings)),
        (
            Reason.USER_CAP,
            over_cap(keys[:, _USER], offsets, settings.max_user_events, span),
        ),
        (Reason.TWIN, _twins(keys, offsets, settings)),
    ):
        reasons_N[own_N[over[new]]] = reason
    oldest = (offsets[-1] if len(offsets) else 0) - _SURGE_MEMORY * span
    kept = offsets > oldest
    return Screened(reasons_N, Recent(offsets[kept], keys[kept]))


def over_cap(codes_N: Keys, offsets_N: NDArray[np.int64], cap: int, span: int) -> NDArray[np.bool_]:
    """Events whose code (a user, later a key) had `cap` events within the span before; 0: none."""
    return _num_before(codes_N, offsets_N, span) >= (cap or np.inf)


def known_events(fresh: FreshEvents, windows: Windows, seen_rows: NDArray[np.int32]) -> FreshEvents:
    """The events of items that the catalogue has, over its rows.

    Args:
        fresh: Over the codes of a shard.
        windows: Its windows over catalogue rows, PAD for an unknown item.
        seen_rows: Its `seen_values` likewise.
    """
    last_N = windows.lengths_B - 1
    items_N = windows.items_BT[np.arange(len(last_N)), last_N]
    known_N = items_N != PAD
    events = keep(replace(fresh, items_N=items_N, windows=windows, seen_values=seen_rows), known_N)
    is_known = events.seen_values != PAD
    owner = np.repeat(np.arange(len(events)), np.diff(events.seen_splits))[is_known]
    num_seen_N = np.bincount(owner, minlength=len(events))
    return replace(
        events,
        windows=without_unknown(events.windows),
        seen_values=events.seen_values[is_known],
        seen_splits=np.concatenate([[0], np.cumsum(num_seen_N)]).astype(np.int64),
    )


def keep(fresh: FreshEvents, kept_N: NDArray[np.bool_]) -> FreshEvents:
    """Some events of a batch."""
    lengths_N = np.diff(fresh.seen_splits)
    return FreshEvents(
        offsets_N=fresh.offsets_N[kept_N],
        users_N=fresh.users_N[kept_N],
        items_N=fresh.items_N[kept_N],
        acknowledged_ms_N=fresh.acknowledged_ms_N[kept_N],
        windows=select(fresh.windows, kept_N),
        seen_values=fresh.seen_values[np.repeat(kept_N, lengths_N)],
        seen_splits=np.concatenate([[0], np.cumsum(lengths_N[kept_N])]).astype(np.int64),
    )


def without_repeats(windows: Windows, max_repeats: int) -> Windows:
    """The same windows with every item at most so often, the earliest times; 0 leaves them be."""
    if not max_repeats:
        return windows
    items_BT = np.where(_earlier_BT(windows) < max_repeats, windows.items_BT, np.int32(PAD))
    return without_unknown(windows.with_items(items_BT))


def _earlier_BT(windows: Windows) -> NDArray[np.int64]:
    """How often each position's item stands further left in its row."""
    items_BT = windows.items_BT
    num_columns = items_BT.shape[1]
    counts_BT = np.zeros(items_BT.shape, np.int64)
    for distance in range(1, num_columns):
        counts_BT[:, distance:] += items_BT[:, distance:] == items_BT[:, :-distance]
    return counts_BT


def _keys(fresh: FreshEvents) -> Keys:
    """User, item, and for each band what twins share, with and without the user; [N, F]."""
    users_N = fresh.users_N.astype(np.uint64)
    items_N = fresh.items_N.astype(np.uint64)
    lately = latest_items(fresh.windows, _TWIN_ITEMS)
    used_NT = np.arange(lately.items_BT.shape[1]) < lately.lengths_B[:, None]
    is_long_N = lately.lengths_B >= _TWIN_MIN_ITEMS
    columns = [users_N, items_N]
    own = []
    for band in range(_NUM_BANDS):
        band_N = _mixed(np.full(len(fresh), band, np.uint64), items_N)
        for multiplier in _MULTIPLIERS[band * _HASHES_PER_BAND : (band + 1) * _HASHES_PER_BAND]:
            hashes_NT = _scattered((lately.items_BT.astype(np.uint64) + np.uint64(1)) * multiplier)
            hashes_NT[~used_NT] = np.iinfo(np.uint64).max
            smallest_N = hashes_NT.min(axis=1, initial=np.iinfo(np.uint64).max)
            band_N = _mixed(band_N, smallest_N)
        # Too short to say: a key that only this user has, so that nobody is a twin.
        own_N = _mixed(band_N, users_N)
        columns.append(np.where(is_long_N, band_N, own_N))
        own.append(own_N)
    return np.stack([*columns, *own], axis=1)


def _twins(keys: Keys, offsets_N: NDArray[np.int64], settings: FilterSettings) -> NDArray[np.bool_]:
    twins_N = np.zeros(len(offsets_N), np.bool_)
    if settings.max_twins:
        for column in range(2, 2 + _NUM_BANDS):
            all_N = _num_before(keys[:, column], offsets_N, settings.span)
            own_N = _num_before(keys[:, column + _NUM_BANDS], offsets_N, settings.span)
            twins_N |= all_N - own_N >= settings.max_twins
    return twins_N


def _surges(
    items_N: NDArray[np.uint64], offsets_N: NDArray[np.int64], settings: FilterSettings
) -> NDArray[np.bool_]:
    """Events beyond what an item's past makes one expect; none in the first span of a log."""
    span = settings.span
    if not settings.max_growth:
        return np.zeros(len(items_N), np.bool_)
    now_N = _num_before(items_N, offsets_N, span)
    before_N = _num_before(items_N, offsets_N, _SURGE_MEMORY * span) - now_N
    past_N = np.clip(offsets_N - span, 0, (_SURGE_MEMORY - 1) * span)
    expected_N = before_N * span / np.maximum(past_N, span)
    allowed_N = np.maximum(_SURGE_FLOOR, settings.max_growth * expected_N)
    return (now_N >= allowed_N) & (offsets_N >= span)


def _num_before(codes_N: Keys, offsets_N: NDArray[np.int64], span: int) -> NDArray[np.int64]:
    """How many of the `span - 1` offsets before each event have an event of its code."""
    if not len(codes_N):
        return np.zeros(0, np.int64)
    _, groups_N = np.unique(codes_N, return_inverse=True)
    order_N = np.argsort(groups_N, kind="stable")  # by offset within a group
    width = int(offsets_N[-1] - offsets_N[0]) + 1
    starts_N = groups_N[order_N] * width
    places_N = starts_N + offsets_N[order_N] - offsets_N[0]
    firsts_N = np.searchsorted(places_N, np.maximum(places_N - span + 1, starts_N))
    counts_N = np.empty(len(codes_N), np.int64)
    counts_N[order_N] = np.arange(len(codes_N)) - firsts_N
    return counts_N


def _mixed(left_N: Keys, right_N: Keys) -> Keys:
    return _scattered(left_N * np.uint64(0x9E3779B97F4A7C15) + right_N)


def _scattered(values: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
