"""The continuous training loop: what every worker of the Ray Train group runs.

A round: wait for fresh events, predict them with the served version, learn them together with
replayed ones, judge the candidate, publish it, remember the watermark. The first worker reads and
publishes (see `teacher.py`); the others only compute. The parameter store is the checkpoint:
weights, optimiser and watermark of a version are one unit on disk, so a killed group goes on
exactly where the head stands, and no event is skipped or learned twice as fresh.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from actors.lessons import Lesson, Restart, TrainingJobSettings
from actors.stream_feed import CatalogGrowth
from actors.teacher import Teacher
from actors.worker_group import WorkerGroup
from recommender.model import Recommender
from recommender.training import Learner
from recommender.windows import Windows

logger = logging.getLogger(__name__)


def run_worker(config: dict[str, Any]) -> None:
    """One worker of the group, from its start; returns only when the job is stopped."""
    settings = TrainingJobSettings.model_validate(config)
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings.loop.threads)
    group = WorkerGroup(context.get_world_rank(), context.get_world_size(), device)
    TrainingLoop(settings, group).run()


class TrainingLoop:
    """One worker's part of the loop."""

    def __init__(self, settings: TrainingJobSettings, group: WorkerGroup) -> None:
        self.settings = settings
        self.group = group
        self.teacher = Teacher(settings) if group.is_first else None

    def run(self) -> None:
        """Learn until the process is ended."""
        learner: Learner | None = None
        while True:
            action = self.group.share(partial(self._next_action, is_first=learner is None))
            if isinstance(action, Restart):
                learner = self._restart(action)
            elif action is not None and learner is not None:
                fault = self._learn(learner, action)
                if self.group.share(partial(self._publish, learner, "round", fault)):
                    self._report_to_train()

    def _next_action(self, is_first: bool) -> Lesson | Restart | None:
        return self._teacher.next_action(is_first)

    def _publish(self, learner: Learner, reason: str, fault: str = "") -> bool:
        return self._teacher.publish(learner, reason, fault)

    @property
    def _teacher(self) -> Teacher:
        if self.teacher is None:
            raise RuntimeError(f"worker {self.group.rank} does not read the stream")
        return self.teacher

    def _restart(self, restart: Restart) -> Learner:
        settings = self.settings
        first_texts = restart.growth.new_VD
        if restart.state is not None:
            first_texts = first_texts[:0].reshape(0, restart.state["raw.text_VD"].shape[1])
        learner = Learner(
            Recommender(settings.model, first_texts, seed=settings.seed),
            settings.training,
            seed=settings.seed,
            device=self.group.device,
            wrap=self.group.wrap,
            worker=self.group.rank,
            num_workers=self.group.size,
        )
        if restart.state is not None:
            learner.load_state(restart.state)
            _grow(learner, restart.growth)
            self._tune_texts(learner)
            return learner
        self._warm_up(learner)
        self._tune_texts(learner)
        self.group.share(partial(self._publish, learner, "warm-up"))
        self._report_to_train()
        return learner

    def _warm_up(self, learner: Learner) -> None:
        batches: deque[Windows] = deque()

        def next_windows(num_windows: int, rng: np.random.Generator) -> Windows:
            if not batches:
                step = learner.step_count
                batches.extend(self.group.share(lambda: self._teacher.warmup_batches(step)))
            return self.group.part(batches.popleft())

        num_events, popularity_MV, touched_V = self.group.share(
            lambda: self._teacher.warmup_state()
        )
        started = time.monotonic()
        learner.warm_up(next_windows, num_events, popularity_MV, touched_V)
        logger.info(
            "warmed up events=%d steps=%d seconds=%.1f",
            num_events,
            learner.step_count,
            time.monotonic() - started,
        )

    def _learn(self, learner: Learner, lesson: Lesson) -> str:
        """Take the steps of a lesson; what was wrong with a gradient, if anything.

        Gradients are averaged over the group, so all workers stop at the same step.
        """
        started = time.monotonic()
        if lesson.begin_from is not None:
            learner.load_state(lesson.begin_from)
        else:
            _grow(learner, lesson.growth)
        losses: list[float] = []
        fault = ""
        counters = lesson.popularity_MV, lesson.touched_V
        for batch in lesson.batches:
            part, rate = self.group.part(batch), lesson.learning_rate
            try:
                losses.append(learner.step(part, *counters, learning_rate=rate))
            except FloatingPointError as error:
                logger.warning("lesson stopped error=%s", error)
                fault = str(error)
                break
            if self.teacher is not None:
                self.teacher.texts.step_reference(batch, *counters, learning_rate=rate)
        if self.teacher is not None:
            self.teacher.learned(losses, time.monotonic() - started)
        return fault

    def _tune_texts(self, learner: Learner) -> None:
        """From now on BERT learns too, if it may: on the first worker, for all."""
        if self.settings.text_tuning.mode == "frozen":
            return

        def follow(learner: Learner) -> None:
            update = self.group.share(lambda: self._teacher.tune_text(learner))
            if update is not None:
                learner.replace_text(update.rows, update.text_VD)

        if self.teacher is not None:
            self.teacher.texts.begin(learner)
        learner.on_gradient = follow

    def _report_to_train(self) -> None:
        """Tell Ray Train where we are. Collective. The real checkpoint is the version itself."""
        metrics = self.group.share(lambda: self._teacher.checkpoint_metrics())
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.group.is_first:
                (Path(folder) / "version.txt").write_text(str(metrics["version"]))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)


def _grow(learner: Learner, growth: CatalogGrowth) -> None:
    if len(growth.new_VD):
        learner.grow(growth.new_VD)
    if len(growth.changed_rows):
        learner.replace_text(growth.changed_rows, growth.changed_VD)
