"""Continual learning of the two towers: warm-up, online steps, growth, exact resume.

Axes: B windows, V items, M popularity half-lives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from recommender.adversarial import adversary_of
from recommender.model import Recommender, TrainingBatch
from recommender.model_inputs import popularity_features
from recommender.named_arrays import tensors_under
from recommender.optimizer_state import MOMENTS, give_moments, moments_of
from recommender.ranking_loss import competing_logits, draw_candidates, draw_targets
from recommender.settings import TrainingSettings
from recommender.windows import Windows

SampleWindows = Callable[[int, np.random.Generator], Windows]
"""Gives that many windows, drawn with that generator."""

_WARMUP_DECAY_TO = 0.2
_TARGET_SHARE = 0.4  # half of the used positions are trained; windows are about 4/5 full


class Learner:
    """Trains the raw weights and keeps the moving average of them that is served.

    All randomness of a step (positions, sampled items, dropout) comes from `(seed, worker, step)`.
    So a learner that loads the state of another goes on exactly as that one would have, on any
    number of workers, and no generator needs to be saved. The global generator is left alone.

    With several workers each gives its own `worker`, the same `num_workers`, and a `wrap` that puts
    DistributedDataParallel around the model; all must make the same calls in the same order, `grow`
    included, because wrapping is a collective operation.

    Args:
        model: Trained in place, moved to `device`.
        settings: Optimiser, batches and replay.
        seed: The same on all workers.
        device: Any torch device.
        wrap: Takes the model, returns the module whose call gives the loss.
        worker: Rank of this worker.
        num_workers: How many share one batch of `settings.batch_windows`.
    """

    def __init__(
        self,
        model: Recommender,
        settings: TrainingSettings,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        worker: int = 0,
        num_workers: int = 1,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.step_count = 0
        self.device = torch.device(device)
        self.worker = worker
        self.num_workers = num_workers
        self.on_gradient: Callable[[Learner], None] | None = None
        """Called in each step between the backward pass and the optimiser's step."""
        self._wrap = wrap
        self._average_into = get_ema_multi_avg_fn(settings.ema_decay)
        self.model = model.to(self.device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._anchor: Recommender | None = None  # what was served some time ago, to stay near to
        self._loss_module = self._wrapped()
        self._optimizer = self._new_optimizer()

    @property
    def windows_per_step(self) -> int:
        """Windows this worker gives to one step: its share of the batch, rounded up."""
        return -(-self.settings.batch_windows // self.num_workers)

    def online_steps(self, num_fresh: int) -> int:
        """Steps to take after that many fresh events, at least one."""
        return max(1, -(-self.settings.steps_per_500_events * num_fresh // 500))

    def warmup_steps(self, num_events: int) -> int:
        """Steps of the whole warm-up; in one epoch each event is a target about once."""
        targets_per_window = _TARGET_SHARE * self.model.settings.window
        targets_per_step = self.settings.batch_windows * targets_per_window
        return round(self.settings.warmup_epochs * num_events / targets_per_step)

    def warm_up(
        self,
        sample_windows: SampleWindows,
        num_events: int,
        popularity_MV: NDArray[np.float32],
        touched_V: NDArray[np.bool_],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Learn the first events before anything is served.

        Args:
            sample_windows: Windows anchored at events drawn evenly.
            num_events: How many events there are to learn.
            popularity_MV: Decayed counts after those events.
            touched_V: Items that had an event.
            progress: Called after each step with the steps done and the steps in all.
        """
        num_steps = self.warmup_steps(num_events)
        for step in range(num_steps):
            windows = sample_windows(self.windows_per_step, self._generator(purpose=1))
            rate = self.settings.learning_rate * self._warmup_rate(step, num_steps)
            self.step(windows, popularity_MV, touched_V, learning_rate=rate)
            if progress is not None:
                progress(step + 1, num_steps)
        self._move_anchor()

    def step(
        self,
        windows: Windows,
        popularity_MV: NDArray[np.float32],
        touched_V: NDArray[np.bool_],
        *,
        learning_rate: float | None = None,
    ) -> float:
        """One optimiser step, then one step of the moving average.

        Args:
            windows: This worker's share of the batch, over catalogue rows.
            popularity_MV: Decayed counts as of now; missing columns count zero.
            touched_V: Items that ever had an event; missing rows count as not touched.
            learning_rate: Default `settings.learning_rate`.

        Returns:
            Mean loss of this worker's targets before the step.

        Raises:
            ValueError: If the windows are empty or name an item the model does not have.
            FloatingPointError: If the gradient is not finite; the weights are then unchanged.
        """
        batch = self._anchored(self._batch(windows, popularity_MV, touched_V))
        with self._dropout_generator(), self._autocast():
            loss: Tensor = self._loss_module(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm.item()} at step {self.step_count}")
        rate = self.settings.learning_rate if learning_rate is None else learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self.on_gradient is not None:
            self.on_gradient(self)
        self._optimizer.step()
        self._move_average()
        self.step_count += 1
        if self._anchor is not None and self.step_count % self.settings.anchor_steps == 0:
            self._move_anchor()
        return loss.item()

    def grow(self, text_VD: NDArray[np.float32]) -> None:
        """Append items to the catalogue; what was learned of the others stays, moments included."""
        moments = moments_of(self._optimizer, self.model)
        self.model.grow(text_VD)
        for frozen in self._frozen_models():
            frozen.grow(text_VD)
            frozen.requires_grad_(False)
        self._rebuild(moments)

    def replace_text(self, rows: NDArray[np.int64], text_VD: NDArray[np.float32]) -> None:
        """New text vectors for items whose text changed."""
        for model in (self.model, *self._frozen_models()):
            model.replace_text(rows, text_VD)

    def ema_state(self) -> dict[str, NDArray[Any]]:
        """The averaged weights in the form that `Scorer.from_state` takes."""
        return self.average.export_state()

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything a learner with the same settings needs to go on exactly like this one."""
        tensors = {f"raw.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.named_parameters()}
        if self._anchor is not None:
            tensors |= {f"anchor.{name}": v for name, v in self._anchor.named_parameters()}
        for name, moments in moments_of(self._optimizer, self.model).items():
            tensors |= {f"{moment}.{name}": value for moment, value in moments.items()}
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
        return arrays | {"step_count": np.array(self.step_count), "seed": np.array(self.seed)}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the learner whose `state` this is, its catalogue included.

        Raises:
            RuntimeError: If it belongs to a model of another shape.
        """
        raw = tensors_under("raw.", state)
        average = tensors_under("average.", state)
        _become(self.model, raw)
        _become(self.average, raw | average)
        # A state that was made without an anchor goes on with what it served.
        self._move_anchor()
        if self._anchor is not None:
            _become(self._anchor, raw | average | tensors_under("anchor.", state))
        for frozen in self._frozen_models():
            frozen.requires_grad_(False)
        by_moment = {moment: tensors_under(f"{moment}.", state) for moment in MOMENTS}
        names = by_moment["step"]
        self._rebuild({n: {m: by_moment[m][n] for m in MOMENTS} for n in names})
        self.step_count = int(state["step_count"])
        self.seed = int(state["seed"])

    def _frozen_models(self) -> list[Recommender]:
        return [self.average] if self._anchor is None else [self.average, self._anchor]

    def _rebuild(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """A new optimiser and wrapper over the model's present parameters; new rows start at 0."""
        self._loss_module = self._wrapped()
        self._optimizer = self._new_optimizer()
        give_moments(self._optimizer, self.model, moments)

    def _wrapped(self) -> nn.Module:
        # The old wrapper's gradient hooks must be gone before a new one puts its own.
        self._loss_module = self.model
        return self.model if self._wrap is None else self._wrap(self.model)

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.model.parameters(),
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def _batch(
        self,
        windows: Windows,
        popularity_MV: NDArray[np.float32],
        touched_V: NDArray[np.bool_],
    ) -> TrainingBatch:
        num_items = self.model.num_items
        if windows.items_BT.max(initial=-1) >= num_items:
            raise ValueError(f"item row {windows.items_BT.max()} in a model of {num_items} items")
        rng = self._generator(purpose=0)
        candidates = draw_candidates(
            touched_V[:num_items],
            popularity_MV[-1],
            all_up_to=self.settings.sampled_softmax_above,
            num_sampled=self.settings.num_sampled,
            rng=rng,
        )
        features_MV = popularity_features(popularity_MV, num_items)
        return TrainingBatch(
            items_BS=self._inputs(windows.items_BT),
            feedback_BS=self._inputs(windows.feedback_BT),
            gaps_BS=self._inputs(windows.gaps_BT),
            popularity_MV=torch.from_numpy(features_MV).to(self.device),
            targets=draw_targets(windows, candidates, num_items, rng, self.device),
            adversary=adversary_of(self.settings),
        )

    def _anchored(self, batch: TrainingBatch) -> TrainingBatch:
        """The batch with what an earlier version says of it, if there is one to stay near to.

        The warm-up has none: the first one is what the warm-up ends at.
        """
        if self._anchor is None:
            return batch
        with torch.no_grad(), self._autocast():
            logits_NJ = competing_logits(*self._anchor.queries_and_keys(batch), batch.targets)
        targets = replace(
            batch.targets, anchor_NJ=logits_NJ, anchor_weight=self.settings.anchor_weight
        )
        return replace(batch, targets=targets)

    def _move_anchor(self) -> None:
        self._anchor = copy.deepcopy(self.average) if self.settings.anchor_weight else None

    def _inputs(self, columns_BT: NDArray[np.integer[Any]]) -> Tensor:
        """All columns but the last, which is only ever a target."""
        return torch.from_numpy(columns_BT[:, :-1].astype(np.int64)).to(self.device)

    def _generator(self, *, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.worker, self.step_count, purpose))

    @contextmanager
    def _dropout_generator(self) -> Iterator[None]:
        seed = int(self._generator(purpose=2).integers(2**62))
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if on_gpu else []):
            if on_gpu:
                torch.cuda.manual_seed(seed)
            else:
                torch.default_generator.manual_seed(seed)
            yield

    def _autocast(self) -> torch.autocast:
        wanted = self.settings.precision
        is_on = wanted == "bfloat16" or (wanted == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_on)

    def _move_average(self) -> None:
        self._average_into(
            list(self.average.parameters()), [p.detach() for p in self.model.parameters()], None
        )

    def _warmup_rate(self, step: int, num_steps: int) -> float:
        """Share of the peak rate: a linear rise, a plateau, a linear fall over the second half."""
        rise = min(1.0, (step + 1) / max(1, self.settings.ramp_steps))
        fall = max(0.0, 2 * step / num_steps - 1)
        return rise * (1 - (1 - _WARMUP_DECAY_TO) * fall)


def _become(model: Recommender, state: Mapping[str, Tensor]) -> None:
    model.resize(len(state["text_VD"]))
    model.load_state_dict(state)
