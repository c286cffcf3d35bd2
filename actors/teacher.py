"""The teacher: what only the first worker of the training group does.

It reads the stream, predicts fresh events before they are learned, makes the lessons, judges the
candidates and publishes them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.lessons import (
    Lesson,
    Restart,
    RoundReport,
    TrainingJobSettings,
    newest_windows,
)
from actors.messages import Head, Manifest
from actors.parameter_store_client import ParameterStoreClient
from actors.stream_feed import CatalogGrowth, FreshPart, StreamFeed
from actors.telemetry import TrainingMetrics
from actors.text_lane import TextLane
from recommender.blend import Blend
from recommender.counters import Counters
from recommender.fresh_scoring import LiveState, score_fresh
from recommender.metrics import ndcg_at_k
from recommender.promotion import Decision, Verdict, find_non_finite, judge, memory_ndcg
from recommender.ranking import BLEND_HALF_LIFE, nearest_half_life
from recommender.replay import Strategy
from recommender.rounds import round_batches
from recommender.scorer import Scorer
from recommender.text_tuning import TextUpdate
from recommender.training import Learner
from recommender.windows import Windows, select

logger = logging.getLogger(__name__)

_NUM_PROBES = 128
_PROBE_ROUNDS = 20
_REPORT_ROUNDS = 50
_METRIC_ROUNDS = 50
_WARMUP_PREFETCH_STEPS = 32
_POLL_S = 0.2
_IDLE_S = 5.0


class Teacher:
    """What only the first worker does: read the stream, score, judge, publish.

    A rejected candidate is stored but not served, and the next action starts again from the head;
    its events count as handed out, so they are not tried for ever.
    """

    def __init__(self, settings: TrainingJobSettings) -> None:
        self.settings = settings
        counters = Counters(settings.model.half_lives)
        self.feed = StreamFeed(settings.buffer.num_shards, counters, filters=settings.filters)
        self.store = ParameterStoreClient.connect(timeout_s=60.0)
        self.metrics = TrainingMetrics()
        self.texts = TextLane.of(settings)
        self.blend = Blend(settings.blend)
        self._half_life = nearest_half_life(settings.model.half_lives, BLEND_HALF_LIFE)
        self._random = np.random.default_rng(settings.seed)
        self._version = 0  # the one that training stands on; 0 also after a rejection
        self._num_rejected = 0
        self._num_items = 0
        self._scorer: Scorer | None = None
        self._probes: Windows | None = None
        self._report = RoundReport()
        self._recent: deque[Mapping[str, float]] = deque(maxlen=_METRIC_ROUNDS)
        self._num_rounds = 0
        self._samples = 0

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
            return self._lesson(self.feed.take())
        return None

    def warmup_state(self) -> tuple[int, NDArray[np.float32], NDArray[np.bool_]]:
        """Events to learn, popularity after them, items that had one."""
        counters = self.feed.counters
        return counters.num_events, counters.popularity(), counters.touched()

    def warmup_batches(self) -> list[Windows]:
        """Some batches of windows anchored at events drawn evenly."""
        size = self.settings.training.batch_windows
        windows = self._replay(size * _WARMUP_PREFETCH_STEPS, "uniform")
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

    def publish(self, learner: Learner, reason: str = "round") -> bool:
        """Judge the candidate and store it; returns whether Ray Train should be told."""
        started = time.monotonic()
        state = learner.ema_state()
        if (name := find_non_finite(state)) is not None:
            raise FloatingPointError(f"{name} of the candidate holds a value that is not finite")
        scorer = Scorer.from_state(state, self.settings.model)
        decision = self._judge(state, scorer)
        is_promoted = decision.verdict is Verdict.PROMOTE
        self._num_rejected += not is_promoted
        version = self._store(learner, state, decision, reason)
        self._report.seconds["publish"] = time.monotonic() - started
        self.metrics.observe_round(self._report, is_promoted)
        logger.info(
            "version=%d promoted=%s fresh=%d left_out=%d steps=%d loss=%.4f reason=%s %s",
            version,
            is_promoted,
            self._report.num_fresh,
            self._report.left_out.total(),
            self._report.num_steps,
            self._report.loss,
            decision.reason,
            " ".join(f"{k}_s={v:.2f}" for k, v in self._report.seconds.items()),
        )
        if is_promoted:
            self._version, self._scorer = version, scorer
        else:
            self._version = 0  # the head is not ours now: the next action starts again from it
        self._num_rounds += 1
        return self._num_rounds % _REPORT_ROUNDS == 0

    def checkpoint_metrics(self) -> dict[str, float]:
        """What Ray Train's own records show."""
        return {"version": self._version, "loss": self._report.loss, **self._progressive_metrics()}

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
        return Restart(None, growth)

    def _is_foreign(self, head: Head) -> bool:
        return head.manifest.version != self._version

    def _restart_at(self, head: Head) -> Restart:
        manifest = head.manifest
        state = self.feed.run(self.store.read_trainer(manifest.version))
        payload = self.feed.run(self.store.read(manifest.version))
        is_after_rejection = self._version == 0 and self._num_rounds > 0
        if not is_after_rejection:
            self.feed.rewind(manifest.trained_through)
            self.blend = Blend.from_state(_under(payload, "blend."), self.settings.blend)
            self._num_rejected = int(manifest.metrics.get("num_rejected", 0))
        self._scorer = Scorer.from_state(_under(payload, "model."), self.settings.model)
        self._version = manifest.version
        self._num_items = manifest.num_items
        self.feed.known_items(manifest.num_items)
        self.texts.restart(state)
        return Restart(state, self._growth())

    def _lesson(self, parts: list[FreshPart]) -> Lesson:
        started = time.monotonic()
        training = self.settings.training
        num_fresh = sum(len(part.events) for part in parts)
        self._report = RoundReport(num_fresh=num_fresh)
        for part in parts:
            self._report.left_out.update(part.left_out)
        num_steps = max(1, -(-training.steps_per_500_events * num_fresh // 500))
        newest = newest_windows(parts, training.fresh_windows * num_steps)
        num_older = training.batch_windows * num_steps - (0 if newest is None else len(newest))
        older = self._replay(num_older, "recency")
        growth = self._growth()
        self._score(parts)
        self._report.seconds["score"] = time.monotonic() - started
        batches = round_batches(newest, older, num_steps, self._random)
        return Lesson(
            growth,
            batches,
            self.feed.counters.popularity(),
            self.feed.counters.touched(),
            begin_from=self.texts.lost_to(),
        )

    def _score(self, parts: list[FreshPart]) -> None:
        """Progressive validation: predict some fresh events before anything learns them.

        The counters count all of them on the way.
        """
        self.texts.compare(self._scorer, parts, self.feed.counters.popularity())
        num_fresh = sum(len(part.events) for part in parts)
        share = min(1.0, self.settings.loop.scored_per_round / max(1, num_fresh))
        ndcg: dict[str, list[float]] = {}
        for part in parts:
            scored = score_fresh(
                part.events,
                self._random.random(len(part.events)) < share,
                LiveState(self.feed.counters),
                scorer=self._scorer,
                blend=self.blend,
                half_life_index=self._half_life,
                num_items=self._num_items,
            )
            for name, ranks_K in scored.ranks.items():
                ndcg.setdefault(name, []).extend(ndcg_at_k(ranks_K, 10).tolist())
        self._recent.append(
            {f"{name}_ndcg_at_10": float(np.mean(v)) for name, v in ndcg.items() if v}
        )

    def _progressive_metrics(self) -> dict[str, float]:
        names = {name for metrics in self._recent for name in metrics}
        return {
            f"progressive_{name}": float(np.mean([m[name] for m in self._recent if name in m]))
            for name in sorted(names)
        }

    def _judge(self, state: Mapping[str, NDArray[Any]], scorer: Scorer) -> Decision:
        if self._probes is None or self._num_rounds % _PROBE_ROUNDS == 0:
            probes = self._replay(_NUM_PROBES, "uniform")
            self._probes = None if probes is None else select(probes, probes.lengths_B > 1)
        if self._probes is None or self._scorer is None:
            return Decision(Verdict.PROMOTE, "no memory to compare on yet")
        popularity_MV = self.feed.counters.popularity()
        return judge(
            memory_ndcg(scorer, self._probes, popularity_MV),
            memory_ndcg(self._scorer, self._probes, popularity_MV),
        )

    def _store(
        self,
        learner: Learner,
        state: Mapping[str, NDArray[Any]],
        decision: Decision,
        reason: str,
    ) -> int:
        """Store a candidate; returns its number."""
        manifest = Manifest(
            version=0,  # the store gives the number
            parent=self._version,
            created_ms=time.time_ns() // 1_000_000,
            trained_through=tuple(self.feed.watermark),
            num_items=learner.model.num_items,
            step=learner.step_count,
            reason=f"{reason}: {decision.reason}",
            settings=self.settings.model_dump(
                mode="json", include={"model", "training", "text_tuning"}
            ),
            metrics={
                **decision.metrics,
                **self._progressive_metrics(),
                **self.texts.metrics(),
                "num_rejected": self._num_rejected,
            },
            encoder=self.settings.text.encoder,
        )
        payload = {f"model.{name}": value for name, value in state.items()}
        payload |= {f"blend.{name}": value for name, value in self.blend.state().items()}
        promote = decision.verdict is Verdict.PROMOTE
        stored = self.feed.run(
            self.store.publish(
                manifest, payload, learner.state() | self.texts.state(), promote=promote
            )
        )
        return stored.manifest.version

    def _growth(self) -> CatalogGrowth:
        """What the catalogue gained; what predicts here ranks it from now on, as a replica does."""
        growth = self.texts.take(self.feed.catalog_growth())
        self._num_items += len(growth.new_VD)
        if self._scorer is not None and not growth.is_empty:
            first = self._scorer.num_items
            rows = np.arange(first, first + len(growth.new_VD))
            self._scorer = self._scorer.with_items(
                np.concatenate([growth.changed_rows, rows]),
                np.concatenate([growth.changed_VD, growth.new_VD]),
            )
        return growth

    def _read_to_the_end(self) -> None:
        while self.feed.wait(enough=1, interval_s=0.0, timeout_s=0.0):
            for part in self.feed.take():
                self.feed.count(part.events)

    def _replay(self, num_windows: int, strategy: Strategy) -> Windows | None:
        self._samples += 1
        seed = hash((self.settings.seed, self._samples)) & 0x7FFF_FFFF
        return self.feed.replay(
            num_windows, strategy, self.settings.training.replay_half_life, seed
        )


def _under(payload: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): value
        for name, value in payload.items()
        if name.startswith(prefix)
    }
