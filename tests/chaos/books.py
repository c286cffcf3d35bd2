"""Balances the books: what was sent, acknowledged, stored and trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
from clients import NO_ANSWER, Reply
from killer import Kill
from ledger import Ledger
from training_watch import Version, Watermark

_CONTENT = ("user_id", "item_id", "event_type", "timestamp_ms")


@dataclass(frozen=True)
class Books:
    """Counts of events. They balance if every field from `lost` on is zero or empty.

    Attributes:
        sent: Different events that a client sent.
        acknowledged: Those that a client was told are stored.
        stored: Rows of the log.
        learned: Those that the head learned as fresh, or has in its warm-up.
        quarantined: Those that the guard keeps every version from learning.
        lost: Acknowledged, and not in the log.
        doubled: In the log more than once.
        invented: In the log, and never sent.
        changed: In the log with other content than was sent.
        untrained: In the log behind the head's watermark.
        learned_twice: Versions whose steps or watermarks do not follow from their parents'.
        violations: What clients were told that cannot be.
    """

    sent: int
    acknowledged: int
    stored: int
    learned: int
    quarantined: int
    lost: int
    doubled: int
    invented: int
    changed: int
    untrained: int
    learned_twice: tuple[str, ...] = field(default=())
    violations: tuple[str, ...] = field(default=())

    def faults(self) -> dict[str, object]:
        """What does not balance."""
        names = ("lost", "doubled", "invented", "changed", "untrained")
        counts: dict[str, object] = {name: getattr(self, name) for name in names}
        counts |= {"learned_twice": self.learned_twice, "violations": self.violations}
        return {name: found for name, found in counts.items() if found}


def balance(
    ledger: Ledger, exported: Path, versions: Mapping[int, Version], head: Version
) -> Books:
    """The books of a run that is over.

    Args:
        ledger: What clients know.
        exported: Folder that `rheos export` wrote.
        versions: Every version that was seen, the head among them.
        head: The version that was served in the end.
    """
    table = pa.concat_tables(pq.read_table(path) for path in sorted(exported.glob("*.parquet")))
    rows = table.to_pylist()
    copies = Counter(row["event_id"] for row in rows)
    changed = sum(
        any(row[name] != ledger.sent[row["event_id"]][name] for name in _CONTENT)
        for row in rows
        if row["event_id"] in ledger.sent
    )
    untrained = sum(row["offset"] > head.trained_through[row["shard"]] for row in rows)
    quarantined = sum(last - first + 1 for _, first, last in head.quarantined)
    return Books(
        sent=len(ledger.sent),
        acknowledged=len(ledger.acknowledged),
        stored=len(rows),
        learned=len(rows) - untrained - quarantined,
        quarantined=quarantined,
        lost=len(ledger.acknowledged - copies.keys()),
        doubled=sum(number - 1 for number in copies.values()),
        invented=len(copies.keys() - ledger.sent.keys()),
        changed=changed,
        untrained=untrained,
        learned_twice=tuple(learned_twice(versions)),
        violations=tuple(ledger.violations),
    )


def learned_twice(versions: Mapping[int, Version]) -> list[str]:
    """Versions that did not learn just the events between their parent's watermark and their own.

    Steps are taken by the number of fresh events, so they tell how many those were; only events of
    items in the catalogue may have been sent. A version whose parent was never seen says nothing.
    """
    found = []
    for version in versions.values():
        parent = versions.get(version.parent)
        if parent is None:
            continue
        num_fresh = _num_between(parent.trained_through, version)
        expected = max(1, -(-version.steps_per_500_events * num_fresh // 500))
        steps = version.step - parent.step
        if num_fresh < 0 or steps != expected:
            found.append(
                f"version {version.number} took {steps} steps after {parent.number} for "
                f"{num_fresh} fresh events, and {expected} are expected"
            )
    return found


def _num_between(through: Watermark, version: Version) -> int:
    """Events from a watermark to a version's, or -1 if the version goes back anywhere."""
    spans = list(zip(through, version.trained_through, strict=True))
    if any(after < before for before, after in spans):
        return -1
    skipped = sum(
        max(0, last - max(first, through[shard] + 1) + 1)
        for shard, first, last in version.quarantined
    )
    return sum(after - before for before, after in spans) - skipped


@dataclass(frozen=True)
class Outage:
    """What the kills of one part cost; times are (median, longest), in seconds.

    Attributes:
        num_kills: How many there were.
        failed: Recommendations that failed, and those of them whose retry at once failed too.
        back: Until a new process of it ran.
        unanswered: Longest time between two recommendations that were answered.
        unwritten: Longest time that a batch waited for its acknowledgement.
        learning: Until a version had learned an event of every shard, sent after the kill.
    """

    num_kills: int
    failed: tuple[int, int]
    back: tuple[float, float]
    unanswered: tuple[float, float]
    unwritten: tuple[float, float]
    learning: tuple[float, float]


def outages(kills: Sequence[Kill], ledger: Ledger, replies: Sequence[Reply]) -> dict[str, Outage]:
    """By part, from each kill until the next one."""
    ends_s = [kill.at_s for kill in kills[1:]] + [float("inf")]
    answered_s = sorted(reply.told_s for reply in replies if reply.status == 200)
    unanswered, unwritten, failed = [], [], []
    for kill, end_s in zip(kills, ends_s, strict=True):
        told_s = [at_s for at_s in answered_s if kill.at_s <= at_s < end_s]
        unanswered.append(longest_gap_s([kill.at_s, *told_s]))
        missed = [r for r in replies if r.status != 200 and kill.at_s <= r.told_s < end_s]
        failed.append(Counter(reply.is_retry for reply in missed))
        waited = [
            a.told_s - max(a.first_asked_s, kill.at_s)
            for a in ledger.acknowledgements
            if a.told_s > kill.at_s and a.first_asked_s < end_s
        ]
        unwritten.append(max(waited, default=float("inf")))
    found = {}
    for part in dict.fromkeys(kill.part for kill in kills):
        mine = [number for number, kill in enumerate(kills) if kill.part == part]
        found[part] = Outage(
            num_kills=len(mine),
            failed=(sum(failed[n][False] for n in mine), sum(failed[n][True] for n in mine)),
            back=_middle_and_longest([kills[n].back_s for n in mine]),
            unanswered=_middle_and_longest([unanswered[n] for n in mine]),
            unwritten=_middle_and_longest([unwritten[n] for n in mine]),
            learning=_middle_and_longest([kills[n].learned_s for n in mine]),
        )
    return found


def longest_gap_s(times_s: Sequence[float]) -> float:
    """Longest time between two neighbours of rising times."""
    gaps = [after - before for before, after in pairwise(times_s)]
    return max(gaps, default=float("inf"))


def _middle_and_longest(values_s: Sequence[float | None]) -> tuple[float, float]:
    known = [float("inf") if value is None else value for value in values_s]
    return round(median(known), 2), round(max(known), 2)


@dataclass(frozen=True)
class Answers:
    """Recommendations as clients got them.

    Attributes:
        asked: First tries.
        failed: First tries that were not answered with a recommendation.
        failed_twice: Requests whose retry failed as well.
        by_status: Tries by status; 0 is no answer at all.
        longest_gap_s: Longest time between two recommendations.
        longest_wait_s: Longest time that a client waited for an answer of any kind.
    """

    asked: int
    failed: int
    failed_twice: int
    by_status: dict[int, int]
    longest_gap_s: float
    longest_wait_s: float

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> Answers:
        """From all tries."""
        first = [reply for reply in replies if not reply.is_retry]
        answered_s = sorted(reply.told_s for reply in replies if reply.status == 200)
        return cls(
            asked=len(first),
            failed=sum(reply.status != 200 for reply in first),
            failed_twice=sum(reply.status != 200 for reply in replies if reply.is_retry),
            by_status=dict(Counter(reply.status for reply in replies)),
            longest_gap_s=round(longest_gap_s(answered_s), 2),
            longest_wait_s=round(max((r.told_s - r.asked_s for r in replies), default=0.0), 2),
        )

    @property
    def errors(self) -> int:
        """Tries that were answered with an error that is neither overload nor absence."""
        return sum(n for s, n in self.by_status.items() if s not in (200, NO_ANSWER, 502, 503, 504))
