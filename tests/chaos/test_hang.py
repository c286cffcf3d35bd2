"""Processes are stopped and stay there: for Ray they are alive for ever."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killer import HANG, Kill, Killer
from ledger import Ledger
from live_system import LiveSystem
from rich.console import Console
from training_watch import TrainingWatch
from under_load import KEEP_VERSIONS, ONLY_LONG, play, show

MAX_WAIT_S = 4.0
"""The goal is `serving.deadline_s`, 2 s; a busy machine must not turn the test red."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400), ONLY_LONG]


def test_what_hangs_is_replaced_and_nobody_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = LiveSystem(tmp_path, more_config=KEEP_VERSIONS)

    def stop_two(ledger: Ledger, watch: TrainingWatch) -> list[Kill]:
        killer = Killer(system, ledger, watch, random.Random(0))
        return list(killer.run(["replica" + HANG, "EventBuffer" + HANG]))

    try:
        run = play(system, 0, stop_two)
    finally:
        system.down()
    with capsys.disabled():
        show(run, Console(width=120))
    assert run.books.faults() == {}
    assert [kill for kill in run.kills if not kill.has_recovered] == []
    assert run.answers.longest_gap_s < 10.0
    assert run.answers.longest_wait_s < MAX_WAIT_S
