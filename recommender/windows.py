"""Columnar batches of user windows: what the replay memory gives and the model learns from.

Axes: B rows, T = window + 1 items a row. Rows are right-padded: item i of a row sits at column i,
unused columns hold PAD. Causal attention never looks right, so padding needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = -1


@dataclass(frozen=True)
class Windows:
    """The last T items of a user up to and including an event, oldest first.

    Attributes:
        items_BT: int32 item codes or rows, PAD where unused.
        feedback_BT: int8, see `events.feedback_code`; 0 where unused.
        gaps_BT: int8, see `events.gap_code`; 0 where unused.
        lengths_B: int32, how many columns of each row are used, in [0, T].
    """

    items_BT: NDArray[np.int32]
    feedback_BT: NDArray[np.int8]
    gaps_BT: NDArray[np.int8]
    lengths_B: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths_B)

    def with_items(self, items_BT: NDArray[np.int32]) -> Windows:
        """The same windows over other item numbers (codes of a shard to rows of the catalogue)."""
        return Windows(items_BT, self.feedback_BT, self.gaps_BT, self.lengths_B)


@dataclass(frozen=True)
class FreshEvents:
    """Accepted events in log order, each with the user's window that ends at it.

    Attributes:
        offsets_N: int64 log offsets, rising.
        users_N: int32 user codes.
        items_N: int32 item codes (equal to the last used column of each window).
        acknowledged_ms_N: int64 wall-clock time at which each event was acknowledged.
        windows: N rows; the event itself is the last used item of its row.
        seen_values: int32 item codes the user had before each event, concatenated.
        seen_splits: int64 of length N + 1; row i is seen_values[seen_splits[i]:seen_splits[i+1]].
    """

    offsets_N: NDArray[np.int64]
    users_N: NDArray[np.int32]
    items_N: NDArray[np.int32]
    acknowledged_ms_N: NDArray[np.int64]
    windows: Windows
    seen_values: NDArray[np.int32]
    seen_splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets_N)


def without_unknown(windows: Windows) -> Windows:
    """The same windows with every PAD between used items taken out and the rest moved left.

    Items that the catalogue does not have become PAD when codes are mapped to rows. Rows without
    such items come back as they are.
    """
    num_columns = windows.items_BT.shape[1]
    used_BT = np.arange(num_columns) < windows.lengths_B[:, None]
    known_BT = used_BT & (windows.items_BT != PAD)
    if (known_BT == used_BT).all():
        return windows
    order_BT = np.argsort(~known_BT, axis=1, kind="stable")
    lengths_B = known_BT.sum(axis=1, dtype=np.int32)
    left_BT = np.arange(num_columns) < lengths_B[:, None]

    def packed(values_BT: NDArray[Any], unused: int) -> NDArray[Any]:
        moved_BT = np.take_along_axis(values_BT, order_BT, axis=1)
        return np.where(left_BT, moved_BT, values_BT.dtype.type(unused))

    return Windows(
        packed(windows.items_BT, PAD),
        packed(windows.feedback_BT, 0),
        packed(windows.gaps_BT, 0),
        lengths_B,
    )


def select(windows: Windows, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Windows:
    """Some rows of a batch."""
    return Windows(
        windows.items_BT[rows],
        windows.feedback_BT[rows],
        windows.gaps_BT[rows],
        windows.lengths_B[rows],
    )


def firsts_first(users_N: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Places in a list of users: the first of each user, in order, then the others, in order."""
    firsts = np.sort(np.unique(users_N, return_index=True)[1])
    return np.concatenate([firsts, np.setdiff1d(np.arange(len(users_N)), firsts)])


def newest_of(fresh: FreshEvents, num_windows: int) -> Windows:
    """Windows of fresh events: each user's latest first, then the others, newest first."""
    newest_first = len(fresh) - 1 - firsts_first(fresh.users_N[::-1])
    return select(fresh.windows, newest_first[:num_windows])


def concatenate(parts: list[Windows]) -> Windows:
    """Batches of the same width, one after the other.

    Raises:
        ValueError: If there is none.
    """
    return Windows(
        np.concatenate([part.items_BT for part in parts]),
        np.concatenate([part.feedback_BT for part in parts]),
        np.concatenate([part.gaps_BT for part in parts]),
        np.concatenate([part.lengths_B for part in parts]),
    )
