"""The blend: one ranking out of several, weighted by what predicted best, with a guard.

Axes: C components, V items, U items in the union of the components' best, G history-length buckets,
R = G + 1 rows of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.blend_guard import BlendGuard
from recommender.metrics import ndcg_at_k
from recommender.ranking import COMPONENTS, ranks_of, top_k
from recommender.settings import BlendSettings

BLEND = "blend"
BUCKET_STARTS = (0, 1, 5, 20)
"""Shortest history of each bucket: a newcomer's weights are not those of a regular."""

_SHARED = -1
_GUARD_K = 10
_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8
_SMALLEST_STEP_SHARE = 0.1


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

    The sets have a part in common that learns from every event, so that no bucket starts from
    nothing. A component that is absent (the net before the first version) is left out and keeps its
    weight. Not safe for concurrent `observe`; `scores` reads only.
    """

    def __init__(self, settings: BlendSettings, components: tuple[str, ...] = COMPONENTS) -> None:
        self.settings = settings
        self.components = components
        num_buckets, num_components = len(BUCKET_STARTS), len(components)
        # Row `_SHARED` is added to that of the bucket. The softplus of both is 1 / C: at first all
        # count alike.
        shape = (num_buckets + 1, num_components)
        self._raw_RC = np.full(shape, np.log(np.expm1(1.0 / num_components)))
        self._raw_RC[_SHARED] = 0.0
        self._gradient_RC = np.zeros(shape)
        self._mean_RC = np.zeros(shape)
        self._square_RC = np.zeros(shape)
        self._num_observed = 0
        self._num_steps = 0
        self._guard = BlendGuard(num_buckets, num_components, settings)

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
        columns = self._columns(components)
        standard_CV = self._standardised(columns, components, eligible_V)
        return self._fused(bucket_of(history_length), columns, standard_CV)

    def observe(
        self,
        components: Mapping[str, NDArray[np.float32]],
        eligible_V: NDArray[np.bool_],
        target: int,
        history_length: int,
    ) -> Blended:
        """Learn from what the user took, given the scores from before it was known.

        Returns:
            What `scores` would have given before.

        Raises:
            ValueError: If `target` is not eligible.
        """
        bucket = bucket_of(history_length)
        columns = self._columns(components)
        standard_CV = self._standardised(columns, components, eligible_V)
        before = self._fused(bucket, columns, standard_CV)
        weights_C = self._weights(bucket)[columns]
        blend_V = weights_C.astype(np.float32) @ standard_CV
        target_1 = np.array([target])
        ranks = [ranks_of(each_V, eligible_V, target_1)[0] for each_V in (*standard_CV, blend_V)]
        self._guard.judge(bucket, columns, ndcg_at_k(np.array(ranks), _GUARD_K))
        gradient_C = self._gradient(standard_CV, weights_C, eligible_V, target)
        gradient_C *= -np.expm1(-weights_C)  # d softplus(w) / dw = sigmoid(w) = 1 - e^-softplus(w)
        self._gradient_RC[bucket, columns] += gradient_C
        self._gradient_RC[_SHARED, columns] += gradient_C
        self._num_observed += 1
        if self._num_observed % self.settings.events_per_step == 0:
            self._step()
        return before

    def quality(self) -> dict[str, NDArray[np.float64]]:
        """The guard's discounted NDCG@10 by bucket, [G], of each component and of the blend."""
        return dict(zip((*self.components, BLEND), self._guard.ndcg_GC().T, strict=True))

    def weights(self) -> dict[str, NDArray[np.float64]]:
        """Weight of each component by bucket, [G]."""
        weights_GC = np.stack([self._weights(bucket) for bucket in range(len(BUCKET_STARTS))])
        return dict(zip(self.components, weights_GC.T, strict=True))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of everything that was learned, for `from_state`."""
        return {
            "num_observed": np.array([self._num_observed, self._num_steps]),
            "num_events": self._guard.num_events_G.copy(),
            **{name: array.copy() for name, array in self._arrays().items()},
        }

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, NDArray[np.generic]],
        settings: BlendSettings,
        components: tuple[str, ...] = COMPONENTS,
    ) -> Blend:
        """The blend that `state` was taken from; components it did not know start afresh.

        Raises:
            ValueError: If `state` has more components than there are, or other buckets.
        """
        blend = cls(settings, components)
        num_rows, num_known = state["raw"].shape
        if num_rows != len(blend._raw_RC) or num_known > len(components):
            raise ValueError(
                f"blend state has shape {state['raw'].shape}, "
                f"components {components} need {blend._raw_RC.shape}"
            )
        for name, array in blend._arrays().items():
            array[:, :num_known] = state[name][:, :num_known]
            array[:, len(components) :] = state[name][:, num_known:]  # the blend's own
        blend._num_observed, blend._num_steps = (int(n) for n in state["num_observed"])
        blend._guard.num_events_G[:] = state["num_events"]
        return blend

    def _arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything that has a column for each component, and perhaps one for the blend."""
        return {
            "raw": self._raw_RC,
            "gradient": self._gradient_RC,
            "mean": self._mean_RC,
            "square": self._square_RC,
            **self._guard.arrays(),
        }

    def _weights(self, bucket: int) -> NDArray[np.float64]:
        return _softplus(self._raw_RC[bucket] + self._raw_RC[_SHARED])

    def _fused(
        self, bucket: int, columns: NDArray[np.int64], standard_CV: NDArray[np.float32]
    ) -> Blended:
        weights_C = self._weights(bucket)[columns]
        leader = self._guard.leader(bucket, columns)
        if leader is not None:
            name = self.components[columns[leader]]
            return Blended(standard_CV[leader], {name: 1.0}, name)
        shares = weights_C / weights_C.sum()
        names = [self.components[column] for column in columns]
        scores_V = weights_C.astype(np.float32) @ standard_CV
        return Blended(scores_V, dict(zip(names, shares.tolist(), strict=True)), BLEND)

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
        gradient_RC = self._gradient_RC / self.settings.events_per_step
        self._gradient_RC[:] = 0.0
        self._num_steps += 1
        first, second = _ADAM_BETAS
        self._mean_RC[:] = first * self._mean_RC + (1 - first) * gradient_RC
        self._square_RC[:] = second * self._square_RC + (1 - second) * gradient_RC**2
        mean_RC = self._mean_RC / (1 - first**self._num_steps)
        square_RC = self._square_RC / (1 - second**self._num_steps)
        self._raw_RC -= self._step_size() * mean_RC / (np.sqrt(square_RC) + _ADAM_EPSILON)

    def _step_size(self) -> float:
        """Large while everything is to be learned, small once there is only noise to follow."""
        share = 1.0 / (1.0 + self._num_observed / self.settings.settle_events)
        return self.settings.learning_rate * max(_SMALLEST_STEP_SHARE, share)


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
