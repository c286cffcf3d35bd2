"""Why an item is recommended: what each component lifts it by, and which history items do.

- `net`: leave one out. The history is read again without an item; what the target then loses is
  what the item gave. Later items close the gap, as if it had never been there.
- `rules` and `content` are sums over the last 20 items, so their parts are exact: of `content`
  as they are, of `rules`, whose sum goes through a logarithm, in proportion.
- `ials` is a sum over all that the user ever had: exact parts, of which those of the last 20
  places are shown. An item that the user had several times speaks from its latest place.
- `popularity` knows no history.

All in standard deviations over the items that may be recommended, times the component's weight:
a target's lifts add up to its blend score, but for the scale of the weights.

Axes: C components, S latest history items, K targets, V items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recommender.blend import standardise
from recommender.counters import Counters
from recommender.implicit_factors import IALS, ItemFactors
from recommender.ranking import History, NetScorer, content_contributions
from recommender.replay import UserSequence, windows_of

METHODS: Mapping[str, str] = {
    "net": "leave-one-out",
    "rules": "exact",
    "content": "exact",
    IALS: "exact",
    "popularity": "no history",
}
"""How the pulls of history items are found, by component."""

EXPLAINED_ITEMS = 20
"""Latest history items that are looked at."""

_LONGEST_WINDOW = 512

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Influence:
    """A history item that pulled a target up, and by how much through each component."""

    row: int
    pull: float
    by_component: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of one target: `lifts` by component; the strongest pulls of the history, greatest first."""

    lifts: Mapping[str, float]
    because: tuple[Influence, ...]


@dataclass(frozen=True)
class Ranked:
    """What a ranking was made of.

    Attributes:
        scorer: The served version; None before the first.
        counters: As they were for the ranking.
        text_unit_VD: Standardised text vectors of unit length.
        history: Of the user.
        components: Raw scores by name, each [V].
        weights: Weight of each component that the blend used, summing to 1.
        eligible_V: Items that could be recommended.
        factors: Those that `ials` scored with; None without it.
    """

    scorer: NetScorer | None
    counters: Counters
    text_unit_VD: NDArray[np.float32]
    history: History
    components: Mapping[str, NDArray[np.float32]]
    weights: Mapping[str, float]
    eligible_V: NDArray[np.bool_]
    factors: ItemFactors | None = None

    def lifts(self, targets_K: NDArray[np.integer]) -> dict[str, Floats]:
        """Weight times standardised score of the targets, [K] for each component."""
        return {
            name: weight
            * standardise(name, self.components[name], self.eligible_V)[targets_K].astype(float)
            for name, weight in self.weights.items()
        }


def explain(
    ranked: Ranked, targets_K: NDArray[np.integer], *, num_influences: int = 3
) -> list[Explanation]:
    """Explanations of some items of a ranking.

    Costs one forward pass of the net for each of the last 20 history items.

    Args:
        ranked: What the ranking was made of.
        targets_K: Rows that were recommended.
        num_influences: Most history items to name for each; only those that pull up are named.
    """
    lifts = ranked.lifts(targets_K)
    pulls = _pulls(ranked, targets_K, lifts)
    sources_S = ranked.history.rows_H[-EXPLAINED_ITEMS:]
    total_SK = sum(pulls.values(), np.zeros((len(sources_S), len(targets_K))))
    explanations = []
    for place in range(len(targets_K)):
        strongest = np.argsort(-total_SK[:, place], kind="stable")[:num_influences]
        because = tuple(
            Influence(
                int(sources_S[source]),
                float(total_SK[source, place]),
                {name: float(pull_SK[source, place]) for name, pull_SK in pulls.items()},
            )
            for source in strongest.tolist()
            if total_SK[source, place] > 0
        )
        explanations.append(
            Explanation({name: float(lift_K[place]) for name, lift_K in lifts.items()}, because)
        )
    return explanations


def _pulls(
    ranked: Ranked, targets_K: NDArray[np.integer], lifts: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Pull of each of the last history items on each target, [S, K] for each component."""
    pulls: dict[str, Floats] = {}
    if not len(ranked.history):
        return pulls
    if "net" in lifts and ranked.scorer is not None:
        without_SK = _net_without_each(ranked, ranked.scorer, targets_K)
        pulls["net"] = lifts["net"] - ranked.weights["net"] * without_SK
    if "rules" in lifts:
        parts_SK = ranked.counters.rule_contributions(ranked.history.rows_H, targets_K)
        totals_K = parts_SK.sum(axis=0)
        shares_SK = parts_SK / np.where(totals_K > 0, totals_K, 1.0)
        pulls["rules"] = shares_SK * np.maximum(lifts["rules"], 0.0)
    if "content" in lifts:
        pulls["content"] = ranked.weights["content"] * _content_parts(ranked, targets_K)
    if IALS in lifts and ranked.factors is not None:
        pulls[IALS] = ranked.weights[IALS] * _factor_parts(ranked, ranked.factors, targets_K)
    return pulls


def _net_without_each(ranked: Ranked, scorer: NetScorer, targets_K: NDArray[np.integer]) -> Floats:
    """Standardised net scores of the targets as if one history item had not been, [S, K]."""
    history = ranked.history
    places = range(max(0, len(history) - EXPLAINED_ITEMS), len(history))
    shortened = [
        UserSequence(
            np.delete(history.rows_H, place),
            np.delete(history.feedback_H, place),
            np.delete(history.timestamps_ms_H, place),
        )
        for place in places
    ]
    scores_SV = scorer.net_scores(
        windows_of(shortened, _LONGEST_WINDOW), ranked.counters.popularity()
    )
    return np.array(
        [standardise("net", scores_V, ranked.eligible_V)[targets_K] for scores_V in scores_SV],
        np.float64,
    )


def _content_parts(ranked: Ranked, targets_K: NDArray[np.integer]) -> Floats:
    """What each history item adds to the targets' standardised content scores, [S, K]."""
    text_VD = ranked.text_unit_VD
    centred_KD = text_VD[targets_K] - _mean(text_VD, ranked.eligible_V)
    parts_SK = content_contributions(text_VD, ranked.history.rows_H, centred_KD)
    return parts_SK.astype(np.float64) * _per_deviation(ranked, "content")


def _factor_parts(ranked: Ranked, factors: ItemFactors, targets_K: NDArray[np.integer]) -> Floats:
    """What each history item adds to the targets' standardised iALS scores, [S, K]."""
    vectors_VF = factors.vectors(len(ranked.eligible_V))
    centred_KF = vectors_VF[targets_K] - _mean(vectors_VF, ranked.eligible_V)
    parts_HK = factors.contributions(ranked.history.rows_H, centred_KF)
    return parts_HK[-EXPLAINED_ITEMS:].astype(np.float64) * _per_deviation(ranked, IALS)


def _mean(vectors_VD: NDArray[np.float32], eligible_V: NDArray[np.bool_]) -> NDArray[np.float32]:
    mean_D: NDArray[np.float32] = eligible_V.astype(np.float32) @ vectors_VD
    return mean_D / np.float32(eligible_V.sum())


def _per_deviation(ranked: Ranked, name: str) -> float:
    """1 / deviation of a component over the items that could be recommended; 0 if it has none."""
    deviation = float(ranked.components[name][ranked.eligible_V].std(dtype=np.float64))
    return 1.0 / deviation if deviation >= 1e-9 else 0.0
