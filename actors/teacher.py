"""The teacher: what only the first worker of the training group does.

It reads the stream, predicts fresh events before they are learned, makes the lessons, judges the
candidates and publishes them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.examiner import Examiner
from actors.factor_lane import FactorLane
from actors.lessons import (
    Lesson,
    Restart,
    RoundReport,
    TrainingJobSettings,
    held_out_events,
    newest_windows,
)
from actors.lineage import Lineage
from actors.messages import (
    CorruptStorage,
    Head,
    Manifest,
    StorageFull,
    UnknownVersion,
    VersionInfo,
    VersionRefused,
)
from actors.parameter_store_client import ParameterStoreClient
from actors.payload import BLEND, FACTORS, MODEL
from actors.saved_version import SavedVersion, saved_with
from actors.stream_feed import CatalogGrowth, FreshPart, StreamFeed
from actors.telemetry import TrainingMetrics
from actors.text_lane import TextLane
from recommender.blend import Blend
from recommender.counters import Counters
from recommender.named_arrays import put_under, under
from recommender.probes import MemoryProbes
from recommender.promotion import Decision, Verdict
from recommender.replay import Strategy
from recommender.rounds import round_batches
from recommender.scorer import Scorer
from recommender.text_tuning import TextUpdate
from recommender.training import Learner
from recommender.windows import Windows, select

logger = logging.getLogger(__name__)

_PINS = ("trusted_version", "candidate_version")
_REPORT_ROUNDS = 50
_WARMUP_PREFETCH_STEPS = 32
_POLL_S = 0.2
_IDLE_S = 5.0
_FULL_DISK_PAUSE_S = 2.0


class Draw(IntEnum):
    """What random numbers are for; each has a sequence of its own."""

    WARM_UP = 0
    SCORED = 1
    DEALT = 2
    REPLAYED = 3
    COMPARED = 4


class Teacher:
    """What only the first worker does: read the stream, score, judge, publish, roll back.

    A rejected candidate is stored but not served, and the next action starts again from the head.
    What it learned, and what a version learned that was rolled back, is in quarantine (`Lineage`).

    A restart goes on from the head exactly as this process would have, given the same rounds: the
    same events in each, the catalogue unchanged meanwhile, the logs no longer than what the shards
    remember of them, BERT frozen and no iALS. Lost are the metrics of the last rounds, and what was
    seen in a round that was not stored: it is seen again.
    """

    def __init__(self, settings: TrainingJobSettings) -> None:
        self.settings = settings
        counters = Counters(settings.model.half_lives)
        self.factors = FactorLane.of(settings.ials, settings.buffer.num_shards, settings.seed)
        self.feed = StreamFeed(
            settings.buffer.num_shards, counters, filters=settings.filters, factors=self.factors
        )
        self.store = ParameterStoreClient.connect(timeout_s=60.0)
        self.metrics = TrainingMetrics()
        self.texts = TextLane.of(settings)
        self.examiner = Examiner(
            settings.blend,
            settings.loop.scored_per_round,
            settings.buffer.num_shards,
        )
        self.lineage = Lineage(
            settings.guard,
            settings.model,
            num_shards=settings.buffer.num_shards,
            seed=settings.seed,
        )
        self._memory = MemoryProbes(lambda n: self._replay(n, "uniform", 1.0, Draw.COMPARED))
        self._pinned: set[int] = set()
        self._decisions: list[Decision] = []  # since the last version; the next one tells them
        self._counts = {f"num_{name}": 0.0 for name in ("rejected", "rolled_back", "adapted")}
        self._num_items = 0
        self._report = RoundReport()
        self._num_rounds = 0

    def next_action(self, is_first: bool) -> Lesson | Restart | None:
        """Wait for something to do; None after a while without, so that no worker times out.

        The first action is a restart: at the head, or at nothing once there is enough to warm up
        on. Later ones are lessons, and restarts when someone else moved the head.
        """
        loop = self.settings.loop
        head = self.feed.run(self.store.head())
        if head is not None and (is_first or self._is_foreign(head)):
            logger.info("training starts at version=%d", head.manifest.version)
            return self._restart_at(head)
        if is_first:
            return self._first_restart()
        if self.feed.wait(
            enough=loop.round_events, interval_s=loop.round_interval_s, timeout_s=_IDLE_S
        ):
            return self._act(self.feed.take())
        return None

    def warmup_state(self) -> tuple[int, NDArray[np.float32], NDArray[np.bool_]]:
        """Events to learn, popularity after them, items that had one."""
        counters = self.feed.counters
        return counters.num_events, counters.popularity(), counters.touched()

    def warmup_batches(self, step: int) -> list[Windows]:
        """Some batches of windows anchored at events drawn evenly, for the steps from `step` on."""
        size = self.settings.training.batch_windows
        num_windows = size * _WARMUP_PREFETCH_STEPS
        windows = self._replay(num_windows, "uniform", 1.0, Draw.WARM_UP, step)
        if windows is None:
            raise RuntimeError("no event in the buffer is of an item in the catalogue")
        return [
            select(windows, slice(start, start + size)) for start in range(0, len(windows), size)
        ]

    def tune_text(self, learner: Learner) -> TextUpdate | None:
        """After a backward pass: text vectors that change now, because BERT learns too."""
        return self.texts.update(learner.model)

    def learned(self, losses: list[float], seconds: float) -> None:
        """Note what the steps of a round gave."""
        self._report.num_steps = len(losses)
        self._report.loss = float(np.mean(losses)) if losses else float("nan")
        self._report.seconds["train"] = seconds

    def publish(self, learner: Learner, reason: str = "round", fault: str = "") -> bool:
        """Judge the candidate and store it; returns whether Ray Train should be told.

        Args:
            learner: Holds the candidate.
            reason: What made it.
            fault: Why its steps failed, if they did.
        """
        started = time.monotonic()
        state = learner.ema_state()
        scorer = Scorer.from_state(state, self.settings.model)
        popularity_MV = self.feed.counters.popularity()
        if fault:
            decision = Decision(Verdict.REJECT, fault)
        else:
            decision = self.lineage.judge(state, scorer, popularity_MV, self._memory)
        if decision.verdict is Verdict.REJECT and self.lineage.head == 0:
            raise FloatingPointError(f"the first version cannot be served: {decision.reason}")
        if decision.verdict is Verdict.PROMOTE:
            version = self._store(learner, state, decision, reason)
            self.lineage.promoted(version, state, scorer)
            self.lineage.guard.probes.close_period(scorer, popularity_MV)
            self._pin()
        else:
            version = self._reject(learner, state, decision, reason)
        self._report.seconds["publish"] = time.monotonic() - started
        self.metrics.observe_round(self._report, decision)
        logger.info(
            "version=%d verdict=%s fresh=%d left_out=%d steps=%d loss=%.4f reason=%s %s",
            version,
            decision.verdict.value,
            self._report.num_fresh,
            self._report.left_out.total(),
            self._report.num_steps,
            self._report.loss,
            decision.reason,
            " ".join(f"{k}_s={v:.2f}" for k, v in self._report.seconds.items()),
        )
        self._num_rounds += 1
        return self._num_rounds % _REPORT_ROUNDS == 0

    def checkpoint_metrics(self) -> dict[str, float]:
        """What Ray Train's own records show."""
        return {
            "version": self.lineage.version,
            "loss": self._report.loss,
            **self.examiner.metrics(),
        }

    def _first_restart(self) -> Restart | None:
        if self.feed.num_events() < self.settings.loop.warmup_events:
            time.sleep(_POLL_S)
            return None
        growth = self._growth()
        if not len(growth.new_VD):
            logger.warning("events arrive but the catalogue is empty: put items first")
            time.sleep(1.0)
            return None
        self._read_to_the_end()
        self.factors.catch_up()
        return Restart(None, growth)

    def _is_foreign(self, head: Head) -> bool:
        return head.manifest.version != self.lineage.version

    def _restart_at(self, head: Head) -> Restart:
        """Go on with a head's weights, after all events that were learned or tried since."""
        stored = self.feed.run(self.store.list_versions())
        # A publish that was under way is over now, and its version is in the list.
        head = self.feed.run(self.store.head()) or head
        manifest = head.manifest
        saved = self._saved(manifest)
        last = self._last(stored, saved) if self.lineage.head == 0 else None
        # Of texts that are tuned only the head's are at hand, so nothing older can be ranked.
        is_frozen = self.settings.text_tuning.mode == "frozen"
        is_known = is_frozen and last is not None and last.knows(manifest.version)
        if last is not None:
            self._recall(last)
        if self.lineage.head != manifest.version:
            blend = last if last is not None and is_known else saved
            self.examiner.blend = Blend.from_state(under(BLEND, blend.payload), self.settings.blend)
        through = self.lineage.begin(
            head,
            under(MODEL, saved.payload),
            stored=stored,
            taken=tuple(self.feed.watermark),
            is_known=is_known,
        )
        if through != tuple(self.feed.watermark):
            self.feed.rewind(through)
        if last is not None:
            self._go_on(last, is_known)
        self.factors.catch_up()
        self._pin()
        self._num_items = manifest.num_items
        self.feed.known_items(manifest.num_items)
        self.texts.restart(saved.trainer)
        return Restart(saved.trainer, self._growth())

    def _saved(self, manifest: Manifest) -> SavedVersion:
        payload = self.feed.run(self.store.read(manifest.version))
        trainer = self.feed.run(self.store.read_trainer(manifest.version))
        return SavedVersion(manifest, payload, trainer)

    def _last(self, stored: Sequence[VersionInfo], head: SavedVersion) -> SavedVersion:
        """The newest version: what the process before this one knew last. At worst the head."""
        newest = stored[0].manifest
        if newest.version == head.manifest.version:
            return head
        try:
            return self._saved(newest)
        except (UnknownVersion, CorruptStorage) as error:
            logger.warning("version=%d cannot be gone on from error=%s", newest.version, error)
            return head

    def _recall(self, last: SavedVersion) -> None:
        """Know what the process before this one knew; its logs are not read again yet."""
        metrics = last.manifest.metrics
        self._counts |= {name: metrics.get(name, 0.0) for name in self._counts}
        last.give(self.lineage.guard, self._memory)
        # Those before it was stored, and those after.
        self._pinned = {int(metrics[name]) for name in _PINS if name in metrics}
        self._pinned |= self.lineage.kept
        self.factors.begin(under(FACTORS, last.payload))

    def _go_on(self, last: SavedVersion, is_known: bool) -> None:
        """The logs are read up to the watermark: be as the process before was there."""
        last.order(self.feed.counters)
        lineage = self.lineage
        if is_known:
            self._hold_kept()
        if is_known and last.manifest.version == lineage.head and lineage.scorer is not None:
            lineage.guard.probes.close_period(lineage.scorer, self.feed.counters.popularity())
        self._pinned -= lineage.kept  # perhaps it died before it pinned them

    def _hold_kept(self) -> None:
        """Have the versions at hand that the guard may go back to; without them it starts anew."""
        lineage = self.lineage
        try:
            for version in lineage.kept - {lineage.head}:
                payload = self.feed.run(self.store.read(version))
                lineage.hold(version, under(MODEL, payload))
        except (UnknownVersion, CorruptStorage) as error:
            logger.warning("nothing older than the head to go back to error=%s", error)
            lineage.guard.begin(lineage.head)

    def _act(self, parts: list[FreshPart]) -> Lesson | Restart:
        """Predict the fresh events; go back if that shows harm, else learn them."""
        started = time.monotonic()
        self._report = RoundReport(num_fresh=sum(len(part.events) for part in parts))
        for part in parts:
            self._report.left_out.update(part.left_out)
        growth = self._growth()
        self.texts.compare(self.lineage.scorer, parts, self.feed.counters.popularity())
        decision = self.examiner.examine(
            parts,
            self.feed.counters,
            self.lineage,
            self._num_items,
            self.factors,
            self._generator(Draw.SCORED),
        )
        self._add_probes(parts)
        self._report.seconds["score"] = time.monotonic() - started
        if decision.verdict is Verdict.ADAPT:
            self._note(decision, "num_adapted")
        if decision.verdict is Verdict.ROLL_BACK:
            return self._restart_at(self._roll_back(decision))
        return self._lesson(parts, growth)

    def _lesson(self, parts: list[FreshPart], growth: CatalogGrowth) -> Lesson:
        training, num_fresh = self.settings.training, self._report.num_fresh
        urgency = self.lineage.guard.urgency
        pace = urgency.pace(training)
        urgency.passed(num_fresh)
        num_steps = max(1, -(-training.steps_per_500_events * num_fresh // 500))
        newest = newest_windows(parts, pace.fresh_windows * num_steps, self.lineage.leave_out())
        num_older = training.batch_windows * num_steps - (0 if newest is None else len(newest))
        older = self._replay(
            num_older, training.replay_strategy, pace.replay_half_life, Draw.REPLAYED
        )
        return Lesson(
            growth,
            round_batches(newest, older, num_steps, self._generator(Draw.DEALT)),
            pace.learning_rate,
            self.feed.counters.popularity(),
            self.feed.counters.touched(),
            begin_from=self.texts.lost_to(),
        )

    def _growth(self) -> CatalogGrowth:
        """What the catalogue gained; the versions at hand rank it from now on, as replicas do."""
        growth = self.texts.take(self.feed.catalog_growth())
        if not growth.is_empty:
            rows = np.arange(self._num_items, self._num_items + len(growth.new_VD))
            self.lineage.grow(
                np.concatenate([growth.changed_rows, rows]),
                np.concatenate([growth.changed_VD, growth.new_VD]),
            )
        self._num_items += len(growth.new_VD)
        return growth

    def _roll_back(self, decision: Decision) -> Head:
        """Serve the trusted version again; the store keeps it, because it is pinned."""
        trusted = self.lineage.guard.trusted
        if trusted is None:
            raise RuntimeError(f"nothing to roll back to: {decision.reason}")
        self._note(decision, "num_rolled_back")
        logger.warning("rolled back to version=%d reason=%s", trusted, decision.reason)
        return self.feed.run(self.store.promote(trusted, f"rolled back: {decision.reason}"))

    def _reject(
        self,
        learner: Learner,
        state: Mapping[str, NDArray[Any]],
        decision: Decision,
        reason: str,
    ) -> int:
        """Keep a rejected candidate for whoever looks into it; 0 if it cannot be stored."""
        self._note(decision, "num_rejected")
        logger.warning("candidate rejected reason=%s", decision.reason)
        self.lineage.rejected()
        try:
            return self._store(learner, state, decision, reason)
        except VersionRefused as error:
            logger.warning("rejected candidate not stored error=%s", error)
            return 0

    def _note(self, decision: Decision, count: str) -> None:
        self._decisions.append(decision)
        self._counts[count] += 1
        self.metrics.observe_decision(decision)

    def _pin(self) -> None:
        """Let the store keep the versions that the guard may go back to, and no longer others."""
        kept = self.lineage.kept
        for version in kept - self._pinned:
            self.feed.run(self.store.pin(version))
        for version in self._pinned - kept:
            try:
                self.feed.run(self.store.unpin(version))
            except UnknownVersion:
                logger.warning("version=%d was gone before it was unpinned", version)
        self._pinned = kept

    def _store(
        self,
        learner: Learner,
        state: Mapping[str, NDArray[Any]],
        decision: Decision,
        reason: str,
    ) -> int:
        """Store a candidate, and with it the decisions since the last one; returns its number."""
        told = [
            f"{earlier.verdict.value} before: {earlier.reason}"
            for earlier in self._decisions
            if earlier is not decision
        ]
        manifest = Manifest(
            version=0,  # the store gives the number
            parent=self.lineage.head,
            created_ms=time.time_ns() // 1_000_000,
            trained_through=tuple(self.feed.watermark),
            num_items=learner.model.num_items,
            step=learner.step_count,
            reason="; ".join([f"{reason}: {decision.reason}", *told]),
            settings=self.settings.model_dump(
                mode="json", include={"model", "training", "text_tuning", "ials"}
            ),
            metrics={
                **{k: v for earlier in self._decisions for k, v in earlier.metrics.items()},
                **decision.metrics,
                **self.examiner.metrics(),
                **self.texts.metrics(),
                **self._counts,
                **dict(zip(_PINS, sorted(self._pinned), strict=False)),
            },
            encoder=self.settings.text.encoder,
            quarantined=self.lineage.quarantine.spans(),
        )
        payload = put_under(MODEL, state)
        payload |= put_under(BLEND, self.examiner.blend.state())
        payload |= put_under(FACTORS, self.factors.state())
        promote = decision.verdict is Verdict.PROMOTE
        trainer = learner.state() | self.texts.state()
        trainer |= saved_with(
            self.lineage.guard, self._memory, self.feed.counters, is_served=promote
        )
        stored = when_there_is_space(
            lambda: self.feed.run(self.store.publish(manifest, payload, trainer, promote=promote))
        )
        self._decisions.clear()
        return stored.manifest.version

    def _read_to_the_end(self) -> None:
        while self.feed.wait(enough=1, interval_s=0.0, timeout_s=0.0):
            parts = self.feed.take()
            for part in parts:
                self.feed.count(part)
            self._add_probes(parts)

    def _add_probes(self, parts: list[FreshPart]) -> None:
        leave_out = self.lineage.leave_out()
        for part in parts:
            self.lineage.guard.meet(part.users_among(len(leave_out)))
            self.lineage.guard.probes.add(len(part.events), *held_out_events(part, leave_out))

    def _replay(
        self, num_windows: int, strategy: Strategy, half_life: float, draw: Draw, step: int = 0
    ) -> Windows | None:
        seed = int(self._generator(draw, step).integers(2**31))
        leave_out = self.lineage.leave_out()
        return self.feed.replay(num_windows, strategy, half_life, seed, leave_out)

    def _generator(self, draw: Draw, step: int = 0) -> np.random.Generator:
        """Random numbers for one purpose at one place of the stream.

        They depend on the seed and the watermark, not on how long this process has lived.
        """
        offsets = (offset + 1 for offset in self.feed.watermark)
        return np.random.default_rng((self.settings.seed, draw, step, *offsets))


def when_there_is_space(
    publish: Callable[[], VersionInfo], pause_s: float = _FULL_DISK_PAUSE_S
) -> VersionInfo:
    """Publish, again and again while the disk is full: the head is served, and learning waits.

    The store refuses before it writes, so no attempt leaves a version behind. To fail instead would
    start the worker group again, and it would learn the same events to be refused once more.
    """
    is_known = False
    while True:
        try:
            return publish()
        except StorageFull as error:
            if not is_known:
                logger.warning("learning waits for disk space error=%s", error)
            is_known = True
            time.sleep(pause_s)
