"""What grows is told from what does not."""

from __future__ import annotations

from pathlib import Path

from soak_picture import draw_soak
from vital_signs import MIB, PERIOD_S, DiskSample, Sample, lines, store_faults


def process(
    part: str, *, rss: float = 0.0, handles: float = 0.0, minutes: int = 30
) -> list[Sample]:
    """Samples of a process that grows by so many MiB and handles a minute."""
    times_s = [PERIOD_S * number for number in range(1, 12 * minutes + 1)]
    return [
        Sample(t, part, 7, int((100 + rss * t / 60) * MIB), int(50 + handles * t / 60), 20)
        for t in times_s
    ]


def faults(samples: list[Sample], events_per_minute: float = 0.0) -> list[str]:
    return [f for x in lines(samples, 300.0, 1_800.0, events_per_minute) for f in x.faults]


def test_what_is_steady_has_no_fault() -> None:
    assert faults(process("ParameterStore", rss=0.9)) == []


def test_memory_and_handles_that_grow_are_faults() -> None:
    assert len(faults(process("ParameterStore", rss=1.1))) == 1
    assert len(faults(process("ParameterStore", handles=0.3))) == 1


def test_a_shard_may_remember_its_events_and_no_more() -> None:
    events_per_minute = 2 * MIB / 300
    assert faults(process("EventBuffer", rss=2.9), events_per_minute) == []
    assert len(faults(process("EventBuffer", rss=3.1), events_per_minute)) == 1
    assert len(faults(process("ParameterStore", rss=2.9), events_per_minute)) == 1


def test_only_what_is_ours_and_lived_through_it_is_judged() -> None:
    assert faults(process("raylet", rss=9.0)) == []
    assert faults(process("replica", rss=9.0, minutes=25)) == []


def test_a_store_that_keeps_more_than_it_may_is_a_fault() -> None:
    disk = [DiskSample(5.0, 23 * MIB, 23, MIB, 0, 0), DiskSample(10.0, 24 * MIB, 24, MIB, 0, 0)]
    assert store_faults(disk, keep_versions=20) == ["after 10 s: 24 versions, 24.0 MiB"]
    assert len(store_faults([DiskSample(5.0, 25 * MIB, 20, MIB, 0, 0)], keep_versions=20)) == 1


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    disk = [DiskSample(5.0, MIB, 1, MIB, MIB, MIB)]
    draw_soak(process("replica"), disk, [60.0], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
