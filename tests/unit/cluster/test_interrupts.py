"""Ctrl-C is held back while it would do harm, and is never lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from cluster.interrupts import interrupts_held


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def hold(*steps: Callable[[], object]) -> None:
    with interrupts_held():
        for step in steps:
            step()


def test_the_block_ends_and_then_the_interrupt_comes() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hold(press_ctrl_c, press_ctrl_c, lambda: done.append("rest"))
    assert done == ["rest"]


def test_held_twice_it_comes_at_the_end_of_each() -> None:
    done: list[str] = []

    def inner() -> None:
        with pytest.raises(KeyboardInterrupt):
            hold(press_ctrl_c, lambda: done.append("inner"))

    with pytest.raises(KeyboardInterrupt):
        hold(inner, press_ctrl_c, lambda: done.append("outer"))
    assert done == ["inner", "outer"]


def test_without_one_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    hold()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_an_error_of_the_block_goes_on() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        hold(press_ctrl_c, lambda: 1 // 0)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_process_without_the_interrupt_keeps_its_handler(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGINT, handler)
    held: list[object] = []
    try:
        hold(lambda: held.append(signal.getsignal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert held == [handler]


def test_other_threads_may_use_it() -> None:
    done: list[str] = []
    thread = threading.Thread(target=hold, args=(lambda: done.append("there"),))
    thread.start()
    thread.join()
    assert done == ["there"]
