"""Metrics of the actors and the training loop, in one place. Ray exports them to Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from recommender.promotion import Decision, Verdict

if TYPE_CHECKING:
    from actors.lessons import RoundReport

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]


class TrainingMetrics:
    """What the training loop counts."""

    def __init__(self) -> None:
        self._events = Counter("rheos_training_events", "Fresh events learned.")
        self._left_out = Counter(
            "rheos_training_left_out_events",
            "Fresh events that the filters keep from teaching.",
            tag_keys=("reason",),
        )
        self._steps = Counter("rheos_training_steps", "Optimiser steps.")
        self._versions = Counter(
            "rheos_training_versions", "Versions stored.", tag_keys=("verdict",)
        )
        self._decisions = Counter(
            "rheos_training_decisions",
            "Candidates rejected, heads rolled back, drifts adapted to.",
            tag_keys=("verdict",),
        )
        self._probe_change = Gauge(
            "rheos_training_probe_change",
            "Mean change of NDCG@10 on held-out probes since their periods; below 0 is forgetting.",
        )
        self._loss = Gauge("rheos_training_loss", "Mean loss of the last round.")
        self._seconds = Histogram(
            "rheos_training_phase_s",
            "Time of each phase of a round.",
            boundaries=_SECONDS,
            tag_keys=("phase",),
        )

    def observe_decision(self, decision: Decision) -> None:
        """Count a decision that changed the course."""
        self._decisions.inc(tags={"verdict": decision.verdict.value})

    def observe_round(self, report: RoundReport, decision: Decision) -> None:
        """Count one round and what was decided about its candidate."""
        is_promoted = decision.verdict is Verdict.PROMOTE
        self._versions.inc(tags={"verdict": "promoted" if is_promoted else "rejected"})
        if (change := decision.metrics.get("probe_change")) is not None:
            self._probe_change.set(change)
        if report.num_fresh:
            self._events.inc(report.num_fresh)
        for reason, number in report.left_out.items():
            if number:
                self._left_out.inc(number, tags={"reason": reason})
        if report.num_steps:
            self._steps.inc(report.num_steps)
            self._loss.set(report.loss)
        for phase, seconds in report.seconds.items():
            self._seconds.observe(seconds, tags={"phase": phase})


class KeeperMetrics:
    """What the keeper counts."""

    def __init__(self) -> None:
        self._deeds = Counter(
            "rheos_keeper_deeds", "Things the keeper had to do.", tag_keys=("deed",)
        )

    def count(self, deed: str) -> None:
        """Count one deed: `recreated`, `killed_hung`, `moved` or `resubmitted`."""
        self._deeds.inc(tags={"deed": deed})
