"""What the frozen lower layers of a BERT say of each item's text, computed once.

Layers that do not train give the same states each time, so only the layers above them need to run
again. Axes: T tokens of one text, D size of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

TokenStates = NDArray[Any]
"""States of one text's tokens, [T, D]; token ids, [T], where no layer is frozen."""


class ActivationCache:
    """Token states by item row, within a bound of bytes.

    Rows beyond the bound are computed again each time they are asked for, so the answer never
    depends on what is cached. Lost at a restart, and filled again by use.

    Args:
        compute: Gives the states of texts, one array a text.
        max_bytes: Bound on the arrays that are kept.
    """

    def __init__(
        self, compute: Callable[[Sequence[str]], list[TokenStates]], max_bytes: int
    ) -> None:
        self._compute = compute
        self._max_bytes = max_bytes
        self._texts: dict[int, str] = {}
        self._states: dict[int, TokenStates] = {}
        self.nbytes = 0
        """Bytes of all states that are kept."""

    def __len__(self) -> int:
        """Rows whose states are kept."""
        return len(self._states)

    def set_texts(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Texts of rows; what was computed of another text of theirs is forgotten."""
        for row, text in zip(rows, texts, strict=True):
            if self._texts.get(row) != text:
                self._texts[row] = text
                old = self._states.pop(row, None)
                self.nbytes -= 0 if old is None else old.nbytes

    def take(self, rows: Sequence[int]) -> list[TokenStates]:
        """States of rows, in their order.

        Raises:
            KeyError: If a row has no text.
        """
        missing = [row for row in dict.fromkeys(rows) if row not in self._states]
        computed = dict(
            zip(missing, self._compute([self._texts[row] for row in missing]), strict=True)
            if missing
            else ()
        )
        states = [self._states.get(row, computed.get(row)) for row in rows]
        for row, row_states in computed.items():
            if self.nbytes + row_states.nbytes <= self._max_bytes:
                self._states[row] = row_states
                self.nbytes += row_states.nbytes
        return [row_states for row_states in states if row_states is not None]
