"""Every crash of a piece of work: without power, by `kill -9` and then without power, and again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crash_disk import Tree, put_down
from recorder import Killed, Recording, recorded

from actors.messages import ActorsError


class Ledger(Protocol):
    """What clients were told, see `LogLedger` and `StoreLedger`; it is given a clock as `now`."""

    def position(self, moment: int) -> Any:
        """What a disk is held to after a crash at a moment: equal if the demands are."""

    def check(self, data_dir: Path, moment: int) -> None:
        """Raise if a disk breaks a promise after a crash at a moment."""


@dataclass
class Tally:
    """How many different states were checked, and which broke a promise.

    Attributes:
        violations: What was wrong, with the operation at which the crash came.
    """

    max_violations: int = 1_000_000
    num_states: int = 0
    violations: list[str] = field(default_factory=list)
    _seen: set[Any] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        """Whether enough went wrong."""
        return len(self.violations) >= self.max_violations

    def check(self, tree: Tree, ledger: Ledger, moment: int, context: str) -> None:
        """Check a state, unless it was checked before under the same demands."""
        key = hash((frozenset(tree.items()), repr(ledger.position(moment))))
        if key in self._seen:
            return
        self._seen.add(key)
        self.num_states += 1
        with scratch_folder() as folder:
            put_down(tree, folder / "state")
            try:
                ledger.check(folder / "state", moment)
            except (ActorsError, AssertionError) as error:
                self.violations.append(f"{context}: {type(error).__name__}: {error}")


class scratch_folder:
    """A folder in memory, where there is one: thousands of states are written and read."""

    def __enter__(self) -> Path:
        in_memory = Path("/dev/shm")
        parent = in_memory if os.access(in_memory, os.W_OK) else None
        self.path = Path(tempfile.mkdtemp(prefix="rheos-crash-", dir=parent))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def power_losses(
    tally: Tally, work: Callable[[Path, Any], None], ledger: Any
) -> Iterator[tuple[int, Tree]]:
    """Check every state that a loss of power at any operation of the work may leave; gives them."""
    with scratch_folder() as folder:
        with recorded(folder / "data") as recording:
            ledger.now = lambda: len(recording)
            work(folder / "data", ledger)
        recording.check_complete()
        for moment, disk in recording.disks():
            for tree in disk.crash_states():
                tally.check(tree, ledger, moment, _place(recording, moment))
                if tally.is_done:
                    return
                yield moment, tree


def crashes_of_recovery(
    tally: Tally, tree: Tree, moment: int, ledger: Ledger, open_it: Callable[[Path], Any]
) -> None:
    """Check every state after a second loss of power, while the first one is recovered from."""
    with scratch_folder() as folder:
        put_down(tree, folder / "data")
        with recorded(folder / "data") as recording, open_it(folder / "data"):
            pass
        for place, disk in recording.disks():
            for again in disk.crash_states():
                tally.check(again, ledger, moment, f"recovery, {_place(recording, place)}")
                if tally.is_done:
                    return


def kills(
    tally: Tally,
    work: Callable[[Path, Any], None],
    go_on: Callable[[Path, Any], None],
    new_ledger: Callable[[], Any],
    step: int = 1,
) -> None:
    """Kill the process at every `step`-th operation, go on, and lose power at any time after.

    The next process sees what the dead one wrote, on disk or not; only then the power goes.
    """
    kill_at = 0
    while True:
        with scratch_folder() as folder, recorded(folder / "data") as recording:
            ledger = new_ledger()
            ledger.now = lambda recording=recording: len(recording)
            was_killed = _killed(recording, kill_at, lambda: work(folder / "data", ledger))  # noqa: B023
            if not was_killed:
                return
            go_on(folder / "data", ledger)
            recording.check_complete()
            states = list(_states_after(recording, kill_at))
        for moment, tree in states:
            context = f"killed at {kill_at}, then {_place(recording, moment)}"
            tally.check(tree, ledger, moment, context)
            if tally.is_done:
                return
        kill_at += step


def _states_after(recording: Recording, kill_at: int) -> Iterator[tuple[int, Tree]]:
    for moment, disk in recording.disks():
        if moment >= kill_at:
            yield moment, disk.lost()
            yield moment, disk.seen()


def _killed(recording: Recording, kill_at: int, work: Callable[[], None]) -> bool:
    """Run the work up to an operation; whether it got that far."""

    def kill(_: object) -> None:
        if len(recording) >= kill_at:
            raise Killed

    recording.before = kill
    with suppress(Killed):
        work()
        return False
    recording.before = lambda _: None
    recording.release()
    return True


def _place(recording: Recording, moment: int) -> str:
    if moment == len(recording.operations):
        return "after the last operation"
    return f"before operation {moment}, {type(recording.operations[moment]).__name__}"
