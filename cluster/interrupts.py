"""Ctrl-C that waits for a moment at which it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C (SIGINT) take effect, as KeyboardInterrupt, only at the end of the block.

    For what is left unusable if it is cut: a module half imported, a connection that native threads
    use already and Python does not know of yet. If the block raises, that error goes on instead.
    Does nothing in other threads than the main one, which Python never interrupts, and where
    SIGINT is ignored or has its default effect.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    is_pressed = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_pressed
        is_pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if is_pressed:
        raise KeyboardInterrupt
