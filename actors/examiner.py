"""Progressive validation in the loop: fresh events are predicted before anything learns them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from actors.factor_lane import FactorLane
from actors.lineage import Lineage
from actors.stream_feed import FreshPart
from recommender.blend import Blend
from recommender.counters import Counters
from recommender.fresh_scoring import LEARNING, Ranking, score_fresh
from recommender.guarded_learning import TRUSTED
from recommender.metrics import ndcg_at_k
from recommender.promotion import Decision, Verdict
from recommender.ranking import BLEND_HALF_LIFE, nearest_half_life
from recommender.settings import BlendSettings

_METRIC_ROUNDS = 50


class Examiner:
    """Scores some events of each round by what is served, and lets the blend and the guard see.

    Attributes:
        blend: Learns from every scored event.
    """

    def __init__(self, blend: BlendSettings, num_scored: int, num_shards: int) -> None:
        """Begin with a blend that knows nothing.

        Args:
            blend: How rankings are fused.
            num_scored: Events of a round to score, on average.
            num_shards: Shards that number their own users.
        """
        self.blend = Blend(blend)
        self._num_scored = num_scored
        self._num_shards = num_shards
        self._recent: deque[Mapping[str, float]] = deque(maxlen=_METRIC_ROUNDS)

    def examine(
        self,
        parts: list[FreshPart],
        counters: Counters,
        lineage: Lineage,
        num_items: int,
        factors: FactorLane,
        rng: np.random.Generator,
    ) -> Decision:
        """Predict some of the fresh events, chosen with `rng`; what the guard makes of it.

        The counters and the factors count all events on the way.
        """
        share = min(1.0, self._num_scored / max(1, sum(len(part.events) for part in parts)))
        ndcg: dict[str, list[float]] = {}
        users: list[int] = []
        for part in parts:
            scored = score_fresh(
                factors.known_users(part.shard, part.events),
                rng.random(len(part.events)) < share,
                factors.live(counters),
                scorer=lineage.scorer,
                blend=self.blend,
                half_life_index=nearest_half_life(counters.half_lives, BLEND_HALF_LIFE),
                num_items=num_items,
                others=_trusted_ranking(lineage, counters),
            )
            for name, ranks_K in scored.ranks.items():
                ndcg.setdefault(name, []).extend(ndcg_at_k(ranks_K, 10).tolist())
            users.extend(part.users_among(self._num_shards)[scored.indices_K].tolist())
        self._recent.append({f"{name}_ndcg_at_10": float(np.mean(v)) for name, v in ndcg.items()})
        if LEARNING not in ndcg:
            return Decision(Verdict.KEEP, "nothing was scored")
        trusted_K = np.array(ndcg[TRUSTED]) if TRUSTED in ndcg else None
        return lineage.guard.observe(np.array(users), np.array(ndcg[LEARNING]), trusted_K)

    def metrics(self) -> dict[str, float]:
        """Mean NDCG@10 of each ranking over the last rounds."""
        names = {name for metrics in self._recent for name in metrics}
        return {
            f"progressive_{name}": float(np.mean([m[name] for m in self._recent if name in m]))
            for name in sorted(names)
        }


def _trusted_ranking(lineage: Lineage, counters: Counters) -> dict[str, Ranking]:
    trusted = lineage.trusted_scorer
    if trusted is None:
        return {}
    return {TRUSTED: lambda request: trusted.net_scores(request.window, counters.popularity())[0]}
