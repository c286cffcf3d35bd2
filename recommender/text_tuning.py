"""The slow lane: the BERT that reads item texts learns from the same stream, on a budget.

The towers see an item's text as a vector T, and a step of theirs says how T should move: dLoss/dT.
That is gathered over a few steps; then the items it is largest for are read again with gradient
through the layers that train, and T of these items is replaced. Replicas have no BERT: a version
carries T of every item it knows, and an item that is newer is scored by its pretrained vector until
the lane reads it too.

Whether tuning loses cannot be seen by putting the pretrained vectors back: towers that learned with
tuned ones are lost without them. So a reference learns beside them, from the same batches with
pretrained texts, as if nothing had ever been tuned. If the tuned learner loses against it on newest
events, it becomes the reference again.

Axes: V items, D text dimensions, H model dimensions, B items of one step.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recommender.activation_cache import ActivationCache
from recommender.cpu_budget import CpuBudget
from recommender.model import Recommender
from recommender.named_arrays import put_under, tensors_under, under
from recommender.optimizer_state import MOMENTS, give_moments, moments_of
from recommender.probes import probe_ndcg
from recommender.promotion import Decision, Difference, Verdict
from recommender.scorer import Scorer
from recommender.settings import TextTuningSettings
from recommender.text_tower import TextTower
from recommender.training import Learner
from recommender.windows import Windows

logger = logging.getLogger(__name__)

STATE_PREFIX = "text_tuning."

_CHUNK = 256  # rows read again in one go: about 0.2 s of one CPU for MiniLM and short texts
_MIN_COMPARED = 200
_CLIP_NORM = 1.0
_TINY = 1e-6


@dataclass(frozen=True)
class TextUpdate:
    """Text vectors that change: `rows` int64, `text_VD` as an encoder gives them."""

    rows: NDArray[np.int64]
    text_VD: NDArray[np.float32]


@dataclass
class _Run:
    """What belongs to one tower from its pretrained state on; a tower thrown away takes it along.

    Attributes:
        optimizer: Of the tower.
        ndcg: NDCG@10 of the newest compared events with tuned and with pretrained text.
        num_steps: Steps of BERT.
        gradient_VD: Gathered since the last step.
        num_gathered: From how many steps of the towers.
        stale: Rows to read again, in this order.
    """

    optimizer: torch.optim.AdamW
    ndcg: deque[tuple[float, float]]
    num_steps: int = 0
    gradient_VD: Tensor | None = None
    num_gathered: int = 0
    stale: deque[int] = field(default_factory=deque)


class TextTuner:
    """Trains a text tower from the gradients of a learner, and says which vectors change.

    An update that it gives is for `Learner.replace_text`. A tower that loses is thrown away, and
    the learner that used it goes on from the reference. A restart from `state` keeps weights,
    optimiser, reference and comparison; it loses the gradient of the last few steps and the cache.
    The reference costs what the learner costs, in time, memory and disk; `cpu_share` is of the time
    that BERT takes beside both.

    Args:
        tower: Trained in place.
        settings: When and how much.
        name: Of the encoder, see `TextEncoder.name`; a state of another one is not taken over.
        seed: Of the items that are drawn.
        clock: CPU seconds of this process.
    """

    def __init__(
        self,
        tower: TextTower,
        settings: TextTuningSettings,
        *,
        name: str,
        seed: int = 0,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        shape = settings.model_dump(include={"mode", "num_layers", "lora_rank"}, mode="json")
        self._signature = np.frombuffer(f"{name} {shape}".encode(), np.uint8)
        self._settings = settings
        self._seed = seed
        self._tower = tower
        self._cache = ActivationCache(tower.states, settings.cache_mib * 2**20)
        self._budget = CpuBudget(settings.cpu_share, clock)
        self._digests_V = np.zeros(0, np.uint64)
        self._base_VD = np.zeros((0, tower.dim), np.float32)
        self.num_started_over = 0
        """How often a tower lost and was thrown away."""
        self._reference: Learner | None = None
        self._reference_state: Mapping[str, NDArray[Any]] | None = None
        self._has_lost = False
        self._run = self._new_run()

    @property
    def num_steps(self) -> int:
        """Steps since the tower was the pretrained one."""
        return self._run.num_steps

    @property
    def is_tuned(self) -> bool:
        """Whether the tower differs from the pretrained one."""
        return self._run.num_steps > 0

    @property
    def spent_s(self) -> float:
        """CPU seconds so far."""
        return self._budget.spent_s

    def add_items(self, texts: Sequence[str], text_VD: NDArray[np.float32]) -> None:
        """Items with the next rows; `text_VD` are their pretrained vectors."""
        first = len(self._base_VD)
        rows = np.arange(first, first + len(texts))
        self.change_items(rows, texts, text_VD)

    def change_items(
        self, rows: NDArray[np.int64], texts: Sequence[str], text_VD: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Texts of rows, known or new.

        Returns:
            Which of them have another text than this tuner, or the one whose state it loaded, saw
            last. Only those need their pretrained vector in the learner; the others keep theirs.
        """
        if not len(rows):
            return np.zeros(0, np.bool_)
        self._resize(max(len(self._base_VD), int(rows.max()) + 1))
        digests = np.array([_digest(text) for text in texts], np.uint64)
        changed: NDArray[np.bool_] = self._digests_V[rows] != digests
        self._digests_V[rows] = digests
        self._base_VD[rows] = text_VD
        self._cache.set_texts(rows.tolist(), texts)
        if self.is_tuned:
            # In front: until then they are ranked by a vector the tower has moved away from.
            self._run.stale.extendleft(reversed(rows[changed].tolist()))
        if self._reference is not None:
            old = rows[changed & (rows < self._reference.model.num_items)]
            if len(old):
                self._reference.replace_text(old, self._base_VD[old])
            self._grow_reference()
        return changed

    def begin(self, learner: Learner) -> None:
        """Start the reference, from the loaded state or as a copy of this untuned learner."""
        model = Recommender(learner.model.settings, self._base_VD[:0], seed=learner.seed)
        reference = Learner(model, learner.settings, seed=learner.seed, device=learner.device)
        reference.load_state(self._reference_state or learner.state())
        self._reference, self._reference_state = reference, None
        known = np.arange(model.num_items)
        reference.replace_text(known, self._base_VD[known])
        self._grow_reference()

    def step_reference(
        self,
        windows: Windows,
        popularity_MV: NDArray[np.float32],
        touched_V: NDArray[np.bool_],
        *,
        learning_rate: float | None = None,
    ) -> None:
        """The reference's part of a step of the learner: the whole batch of all workers."""
        if self._reference is not None:
            self._reference.step(windows, popularity_MV, touched_V, learning_rate=learning_rate)

    def lost_to(self) -> Mapping[str, NDArray[Any]] | None:
        """State of the reference, once after the learner has lost to it; it is to be loaded."""
        if not self._has_lost or self._reference is None:
            return None
        self._has_lost = False
        return self._reference.state()

    def gather(self, model: Recommender) -> None:
        """Add the text gradient of the learner's last backward pass.

        The item matrix is P(T) + R, so dLoss/dR is what reaches P's output, and P turns it into
        dLoss/dT: T itself need not be a leaf. Under DistributedDataParallel R's gradient is the
        group's mean already.
        """
        residual = model.residual_VH.grad
        if residual is None:
            return
        gradient_VD = residual.detach() @ model.projection.weight.detach()
        if self._run.gradient_VD is not None:
            new = len(gradient_VD) - len(self._run.gradient_VD)
            gradient_VD += F.pad(self._run.gradient_VD, (0, 0, 0, new))
        self._run.gradient_VD = gradient_VD
        self._run.num_gathered += 1

    def next_update(self, model: Recommender) -> TextUpdate | None:
        """Do what is due and the budget allows: one step of BERT, some rows read again.

        Raises:
            FloatingPointError: If the gradient is not finite; the tower is then unchanged.
        """
        is_due = self._run.num_gathered >= self._settings.gather_steps
        if not (is_due or self._run.stale) or not self._budget.allows():
            return None
        with self._budget.spending():
            drawn = self._step(model) if is_due else []
            chunk = [self._run.stale.popleft() for _ in range(min(_CHUNK, len(self._run.stale)))]
            rows = list(dict.fromkeys(drawn + chunk))
            if not rows:
                return None
            return TextUpdate(np.array(rows), self._tower.encode(self._cache.take(rows)))

    def follow(self, learner: Learner) -> None:
        """`Learner.on_gradient` of a learner without a group: gather, then apply what is due."""
        self.gather(learner.model)
        update = self.next_update(learner.model)
        if update is not None:
            learner.replace_text(update.rows, update.text_VD)

    def compare(
        self, scorer: Scorer, windows: Windows, popularity_MV: NDArray[np.float32]
    ) -> Decision:
        """Predict newest events as served and with the reference, and judge the tower by them.

        When the verdict is REJECT the tower is pretrained again, and `lost_to` says what the
        learner goes on from.

        Args:
            scorer: As served, over all items that this tuner knows.
            windows: End at events that neither has learned; none may be empty.
            popularity_MV: As of just before them.
        """
        if not self.is_tuned or self._reference is None or not len(windows):
            return Decision(Verdict.PROMOTE, "texts are read by the pretrained tower")
        reference = Scorer.from_state(self._reference.ema_state(), self._reference.model.settings)
        tuned_N = probe_ndcg(scorer, windows, popularity_MV)
        pretrained_N = probe_ndcg(reference, windows, popularity_MV)
        ndcg = self._run.ndcg
        ndcg.extend(zip(tuned_N.tolist(), pretrained_N.tolist(), strict=True))
        if len(ndcg) < _MIN_COMPARED:
            return Decision(Verdict.PROMOTE, f"{len(ndcg)} events compared, too few to tell")
        decision = self._judge(*np.array(ndcg).T)
        if decision.verdict is Verdict.REJECT:
            logger.warning(
                "text tower starts over steps=%d reason=%s", self._run.num_steps, decision.reason
            )
            self._tower.reset()
            self._run = self._new_run()
            self.num_started_over += 1
            self._has_lost = True
        return decision

    def state(self) -> dict[str, NDArray[Any]]:
        """What travels with the trainer state of a version; every name has `STATE_PREFIX`."""
        state: dict[str, NDArray[Any]] = {
            "signature": self._signature,
            "digests": self._digests_V.copy(),
            "num_steps": np.array(self._run.num_steps),
            "num_started_over": np.array(self.num_started_over),
            "ndcg": np.array(self._run.ndcg, np.float64).reshape(-1, 2),
        }
        if self.is_tuned:
            tensors: dict[str, Tensor] = {
                f"value.{name}": value for name, value in self._tower.trainable()
            }
            for name, moments in moments_of(self._run.optimizer, self._tower).items():
                tensors |= {f"{moment}.{name}": value for moment, value in moments.items()}
            state |= {n: t.detach().cpu().numpy().copy() for n, t in tensors.items()}
            if self._reference is not None:
                state |= put_under("reference.", self._reference.state())
        return put_under(STATE_PREFIX, state)

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on like the tuner whose state this is; pretrained if there is none that fits.

        The texts of all items must be given again, by `change_items`, and then `begin` called.
        """
        own = under(STATE_PREFIX, state)
        self._tower.reset()
        self._run = self._new_run()
        self._reference, self._reference_state, self._has_lost = None, None, False
        self._resize(0)
        if not np.array_equal(own.get("signature", ()), self._signature):
            logger.info("text tower starts as pretrained: no state of this encoder and shape")
            return
        self._resize(len(own["digests"]))
        self._digests_V[:] = own["digests"]
        self._run.num_steps = int(own["num_steps"])
        self.num_started_over = int(own["num_started_over"])
        self._run.ndcg.extend((tuned, pretrained) for tuned, pretrained in own["ndcg"].tolist())
        if self.is_tuned:
            self._reference_state = under("reference.", own) or None
            self._tower.load(tensors_under("value.", own))
            by_moment = {moment: tensors_under(f"{moment}.", own) for moment in MOMENTS}
            names = by_moment["step"]
            moments = {n: {m: by_moment[m][n] for m in MOMENTS} for n in names}
            give_moments(self._run.optimizer, self._tower, moments)
            self._run.stale.extend(range(len(self._digests_V)))

    def metrics(self) -> dict[str, float]:
        """Numbers for the manifest."""
        metrics = {
            "text_steps": float(self._run.num_steps),
            "text_cpu_s": self.spent_s,
            "text_started_over": float(self.num_started_over),
        }
        if self._run.ndcg:
            tuned, pretrained = np.mean(self._run.ndcg, axis=0).tolist()
            metrics |= {
                "text_ndcg_at_10_tuned": tuned,
                "text_ndcg_at_10_pretrained": pretrained,
            }
        return metrics

    def _step(self, model: Recommender) -> list[int]:
        """One step of BERT over the items whose vectors want to move most; returns their rows."""
        run = self._run
        gradient_VD, run.gradient_VD, run.num_gathered = run.gradient_VD, None, 0
        if gradient_VD is None:
            return []
        rows = self._draw(gradient_VD)
        if not rows:
            return []
        vectors_BD = self._tower.vectors(self._cache.take(rows))
        device = vectors_BD.device
        unit_BD = _unit(vectors_BD, model.text_mean_D.to(device), model.text_std_D.to(device))
        self._run.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(unit_BD, gradient_VD[rows].to(device))
        norm = nn.utils.clip_grad_norm_([p for _, p in self._tower.trainable()], _CLIP_NORM)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm.item()} of the text tower")
        self._run.optimizer.step()
        self._run.num_steps += 1
        if self._run.num_steps % self._settings.refresh_steps == 0:
            self._run.stale = deque(range(len(self._base_VD)))
        return rows

    def _draw(self, gradient_VD: Tensor) -> list[int]:
        norms_V: NDArray[np.float64] = gradient_VD.norm(dim=1).double().cpu().numpy()
        size = min(self._settings.items_per_step, int(np.count_nonzero(norms_V)))
        if not size:
            return []
        rng = np.random.default_rng((self._seed, self._run.num_steps))
        rows = rng.choice(len(norms_V), size, replace=False, p=norms_V / norms_V.sum())
        return [int(row) for row in rows]

    def _judge(self, tuned_N: NDArray[Any], pretrained_N: NDArray[Any]) -> Decision:
        difference = Difference.of(tuned_N, pretrained_N)
        is_worse = difference.is_loss(0.0, self._settings.max_loss_errors)
        reason = "tuned text loses" if is_worse else "tuned text does not lose"
        return Decision(
            Verdict.REJECT if is_worse else Verdict.PROMOTE,
            f"{reason}: NDCG@10 {difference.candidate:.4f}, reference {difference.head:.4f}, "
            f"{len(tuned_N)} events",
        )

    def _new_run(self) -> _Run:
        """Nothing learned: of a tower as pretrained."""
        settings = self._settings
        optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._tower.trainable()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        ndcg = deque[tuple[float, float]](maxlen=settings.compared_events)
        return _Run(optimizer, ndcg)

    def _grow_reference(self) -> None:
        if self._reference is not None:
            new_VD = self._base_VD[self._reference.model.num_items :]
            if len(new_VD):
                self._reference.grow(new_VD)

    def _resize(self, num_items: int) -> None:
        new = max(0, num_items - len(self._base_VD))
        self._base_VD = np.pad(self._base_VD[:num_items], ((0, new), (0, 0)))
        self._digests_V = np.pad(self._digests_V[:num_items], (0, new))


def _unit(vectors_BD: Tensor, mean_D: Tensor, std_D: Tensor) -> Tensor:
    """`model_inputs.unit_text`, with gradient."""
    centred_BD: Tensor = (vectors_BD - mean_D) / std_D
    norms_B1: Tensor = centred_BD.norm(dim=1, keepdim=True).clamp(min=_TINY)
    return centred_BD / norms_B1


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
