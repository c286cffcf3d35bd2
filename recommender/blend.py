"""The blend: one ranking out of several, weighted by what predicted best, with a guard.

Axes: C components, V items, U items in the union of the components' best, G history-length buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.metrics import ndcg_at_k
from recommender.ranking import COMPONENTS, ranks_of, top_k
from recommender.settings import BlendSettings

BLEND = "blend"
BUCKET_STARTS = (0, 1, 5, 20)
"""Shortest history of each bucket: a newcomer's weights are not those of a regular."""

_GUARD_SLACK = 0.002
_GUARD_K = 10
_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Blended:
    """One fused ranking.

    Attributes:
        scores_V: Higher is better; meaningless where not eligible.
        shares: How much each component counts, summing to 1.
        served: `blend`, or the component that the guard put in its place.
    """

    scores_V: NDArray[np.float32]
    shares: dict[str, float]
    served: str


class Blend:
    """Weights of the components, learned online, one set for each bucket of history lengths.

    A component that is absent (the net before the first version) is left out and keeps its weight.
    Not safe for concurrent `observe`; `scores` reads only.
    """

    def __init__(self, settings: BlendSettings, components: tuple[str, ...] = COMPONENTS) -> None:
        self.settings = settings
        self.components = components
        shape = (len(BUCKET_STARTS), len(components))
        # softplus of this is 1 / C: at first all count alike.
        self._raw_GC = np.full(shape, np.log(np.expm1(1.0 / len(components))))
        self._gradient_GC = np.zeros(shape)
        self._mean_GC = np.zeros(shape)
        self._square_GC = np.zeros(shape)
        self._num_observed = 0
        self._num_steps = 0
        # The last column is the blend's own.
        self._ndcg_GC = np.zeros((shape[0], shape[1] + 1))
        self._weight_GC = np.zeros((shape[0], shape[1] + 1))
        self._num_events_G = np.zeros(shape[0], np.int64)

    def scores(
        self,
        components: Mapping[str, NDArray[np.float32]],
        eligible_V: NDArray[np.bool_],
        history_length: int,
    ) -> Blended:
        """Fuse the components' scores for one user.

        Args:
            components: Raw scores by name, each [V].
            eligible_V: Items that will be ranked; the scale of a component is taken over them.
            history_length: Items the user had, which chooses the bucket.
        """
        bucket = bucket_of(history_length)
        columns = self._columns(components)
        standard_CV = self._standardised(columns, components, eligible_V)
        weights_C = _softplus(self._raw_GC[bucket, columns])
        leader = self._leader(bucket, columns)
        if leader is not None:
            name = self.components[columns[leader]]
            return Blended(standard_CV[leader], {name: 1.0}, name)
        shares = weights_C / weights_C.sum()
        names = [self.components[column] for column in columns]
        scores_V = weights_C.astype(np.float32) @ standard_CV
        return Blended(scores_V, dict(zip(names, shares.tolist(), strict=True)), BLEND)

    def observe(
        self,
        components: Mapping[str, NDArray[np.float32]],
        eligible_V: NDArray[np.bool_],
        target: int,
        history_length: int,
    ) -> None:
        """Learn from what the user took, given the scores from before it was known.

        Raises:
            ValueError: If `target` is not eligible.
        """
        bucket = bucket_of(history_length)
        columns = self._columns(components)
        standard_CV = self._standardised(columns, components, eligible_V)
        weights_C = _softplus(self._raw_GC[bucket, columns])
        self._judge(bucket, columns, standard_CV, weights_C, eligible_V, target)
        self._gradient_GC[bucket, columns] += self._gradient(
            standard_CV, weights_C, eligible_V, target
        ) * -np.expm1(-weights_C)  # d softplus(w) / dw = sigmoid(w) = 1 - exp(-softplus(w))
        self._num_observed += 1
        if self._num_observed % self.settings.events_per_step == 0:
            self._step()

    def quality(self) -> dict[str, NDArray[np.float64]]:
        """The guard's discounted NDCG@10 by bucket, [G], of each component and of the blend."""
        ndcg_GC = self._ndcg_GC / np.maximum(self._weight_GC, 1e-12)
        return dict(zip((*self.components, BLEND), ndcg_GC.T, strict=True))

    def weights(self) -> dict[str, NDArray[np.float64]]:
        """Weight of each component by bucket, [G]."""
        return dict(zip(self.components, _softplus(self._raw_GC).T, strict=True))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of everything that was learned, for `from_state`."""
        return {
            "raw": self._raw_GC.copy(),
            "gradient": self._gradient_GC.copy(),
            "mean": self._mean_GC.copy(),
            "square": self._square_GC.copy(),
            "num_observed": np.array([self._num_observed, self._num_steps]),
            "ndcg": self._ndcg_GC.copy(),
            "weight": self._weight_GC.copy(),
            "num_events": self._num_events_G.copy(),
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, NDArray[np.generic]],
        settings: BlendSettings,
        components: tuple[str, ...] = COMPONENTS,
    ) -> Blend:
        """The blend that `state` was taken from.

        Raises:
            ValueError: If `state` belongs to other components.
        """
        blend = cls(settings, components)
        if state["raw"].shape != blend._raw_GC.shape:
            raise ValueError(
                f"blend state has shape {state['raw'].shape}, "
                f"components {components} need {blend._raw_GC.shape}"
            )
        blend._raw_GC = np.array(state["raw"], np.float64)
        blend._gradient_GC = np.array(state["gradient"], np.float64)
        blend._mean_GC = np.array(state["mean"], np.float64)
        blend._square_GC = np.array(state["square"], np.float64)
        blend._num_observed, blend._num_steps = (int(n) for n in state["num_observed"])
        blend._ndcg_GC = np.array(state["ndcg"], np.float64)
        blend._weight_GC = np.array(state["weight"], np.float64)
        blend._num_events_G = np.array(state["num_events"], np.int64)
        return blend

    def _columns(self, components: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        return np.array([i for i, name in enumerate(self.components) if name in components])

    def _standardised(
        self,
        columns: NDArray[np.int64],
        components: Mapping[str, NDArray[np.float32]],
        eligible_V: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        names = [self.components[column] for column in columns]
        return np.stack([standardise(name, components[name], eligible_V) for name in names])

    def _leader(self, bucket: int, columns: NDArray[np.int64]) -> int | None:
        """Position in `columns` of a component that beats the blend for certain."""
        if self._num_events_G[bucket] < self.settings.guard_min_events:
            return None
        ndcg_C = self._ndcg_GC[bucket] / np.maximum(self._weight_GC[bucket], 1e-12)
        best = int(np.argmax(ndcg_C[columns]))
        bar = ndcg_C[-1] * (1.0 + self.settings.guard_margin) + _GUARD_SLACK
        return best if ndcg_C[columns[best]] > bar else None

    def _judge(
        self,
        bucket: int,
        columns: NDArray[np.int64],
        standard_CV: NDArray[np.float32],
        weights_C: NDArray[np.float64],
        eligible_V: NDArray[np.bool_],
        target: int,
    ) -> None:
        """Count the event in the discounted NDCG of every component and of the blend."""
        blend_V = weights_C.astype(np.float32) @ standard_CV
        target_1 = np.array([target])
        ranks = [
            ranks_of(scores_V, eligible_V, target_1)[0] for scores_V in (*standard_CV, blend_V)
        ]
        keep = 0.5 ** (1.0 / self.settings.guard_half_life)
        judged = np.append(columns, len(self.components))
        self._ndcg_GC[bucket, judged] *= keep
        self._ndcg_GC[bucket, judged] += ndcg_at_k(np.array(ranks), _GUARD_K)
        self._weight_GC[bucket, judged] = self._weight_GC[bucket, judged] * keep + 1.0
        self._num_events_G[bucket] += 1

    def _gradient(
        self,
        standard_CV: NDArray[np.float32],
        weights_C: NDArray[np.float64],
        eligible_V: NDArray[np.bool_],
        target: int,
    ) -> NDArray[np.float64]:
        """Gradient in the weights of the cross-entropy over the union of the components' best.

        Over the whole catalogue the blend would fit the tail and lose to popularity. A target
        outside the union says nothing about the order inside it.
        """
        best = [top_k(scores_V, eligible_V, self.settings.top) for scores_V in standard_CV]
        union_U = np.unique(np.concatenate(best))
        if target not in union_U:
            return np.zeros(len(weights_C))
        standard_CU = standard_CV[:, union_U].astype(np.float64)
        logits_U = weights_C @ standard_CU
        chances_U = np.exp(logits_U - logits_U.max())
        chances_U /= chances_U.sum()
        return np.asarray(standard_CU @ (chances_U - (union_U == target)), np.float64)

    def _step(self) -> None:
        """One step of Adam (Kingma and Ba 2015, arXiv:1412.6980) on the summed gradients."""
        gradient_GC = self._gradient_GC / self.settings.events_per_step
        self._gradient_GC = np.zeros_like(gradient_GC)
        self._num_steps += 1
        first, second = _ADAM_BETAS
        self._mean_GC = first * self._mean_GC + (1 - first) * gradient_GC
        self._square_GC = second * self._square_GC + (1 - second) * gradient_GC**2
        mean_GC = self._mean_GC / (1 - first**self._num_steps)
        square_GC = self._square_GC / (1 - second**self._num_steps)
        self._raw_GC -= self.settings.learning_rate * mean_GC / (np.sqrt(square_GC) + _ADAM_EPSILON)


def bucket_of(history_length: int) -> int:
    """Index of the bucket of a history length."""
    return int(np.searchsorted(BUCKET_STARTS, history_length, side="right")) - 1


def standardise(
    name: str, scores_V: NDArray[np.float32], eligible_V: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A component's scores with mean 0 and deviation 1 over the eligible items.

    Counts are heavy-tailed, so `rules` and `popularity` go through a logarithm first. A component
    that tells no items apart gives zeros.
    """
    values_V = scores_V.astype(np.float64)
    if name == "rules":
        total = values_V[eligible_V].sum()
        values_V = np.log(values_V * (len(values_V) / total if total > 0 else 0.0) + 0.1)
    elif name == "popularity":
        values_V = np.log(values_V + 0.05)
    among = values_V[eligible_V]
    deviation = among.std() if among.size else 0.0
    if deviation < 1e-9:
        return np.zeros(len(values_V), np.float32)
    return np.asarray((values_V - among.mean()) / deviation, np.float32)


def _softplus(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.logaddexp(0.0, raw)
