"""What a replica answers is what offline evaluation scores, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from serving_fakes import text_vectors

from actors.messages import CatalogChanges, CounterUpdates, Head, Manifest
from recommender.blend import Blend
from recommender.counters import Counters, previous_items
from recommender.datasets import Dataset
from recommender.fresh_scoring import LEARNING, ScoredEvents, score_fresh
from recommender.fresh_scoring import LiveState as OfflineState
from recommender.implicit_factors import FactorLearner
from recommender.model import Recommender
from recommender.ranking import BLEND_HALF_LIFE, History, nearest_half_life
from recommender.replay import ReplayMemory
from recommender.scorer import Scorer
from recommender.settings import BlendSettings, FactorSettings, ModelSettings
from recommender.simulator import SimulatorSettings, simulate
from serve_app.live_state import LiveState
from serve_app.ranker import Query, Ranking, rank

MODEL = ModelSettings(dim=8, num_layers=2, num_heads=2, intermediate=16, window=20)
FACTORS = FactorSettings(factors=6, regularisation=1.0, refit_events=70)
NUM_BEFORE = 600


@dataclass(frozen=True)
class Moment:
    """One event, what the replica said just before it, and what offline scoring says."""

    item_id: str
    offline: ScoredEvents
    online: Ranking


def _model(dataset: Dataset) -> Recommender:
    """As if it had learned: every parameter somewhere."""
    model = Recommender(MODEL, text_vectors(dataset.items), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _replica(
    dataset: Dataset, model: Recommender, blend: Blend, factors: FactorLearner | None
) -> LiveState:
    state = LiveState(MODEL, BlendSettings(), num_shards=1)
    rows = np.arange(len(dataset.items))
    vectors = text_vectors(dataset.items)
    state.apply_catalog(CatalogChanges(1, len(rows), rows, dataset.items, vectors))
    _serve(state, model, blend, factors)
    return state


def _serve(
    state: LiveState, model: Recommender, blend: Blend, factors: FactorLearner | None
) -> None:
    manifest = Manifest(
        version=state.model_version + 1,
        parent=state.model_version,
        created_ms=0,
        trained_through=(-1,),
        num_items=model.num_items,
        step=0,
        reason="round",
        settings={"model": MODEL.model_dump(mode="json")},
        metrics={},
    )
    payload = {f"model.{name}": array for name, array in model.export_state().items()}
    payload |= {f"blend.{name}": array for name, array in blend.state().items()}
    if factors is not None:
        payload |= {f"ials.{name}": array for name, array in factors.state().items()}
    state.apply_model(state.build_model(Head(manifest.version, manifest, "published"), payload))


def _moments(dataset: Dataset, num_scored: int, factors: FactorLearner | None) -> Iterator[Moment]:
    model = _model(dataset)
    scorer = Scorer.from_state(model.export_state(), MODEL)
    blend = Blend(BlendSettings(guard_min_events=20))
    offline = OfflineState(Counters(MODEL.half_lives, len(dataset.items)), factors=factors)
    replica = _replica(dataset, model, blend, factors)
    memory = ReplayMemory(window=MODEL.window)
    for index in range(NUM_BEFORE + num_scored):
        user, row = int(dataset.users_N[index]), int(dataset.rows_N[index])
        history = History(*memory.history(user))
        memory.append(
            user, row, int(dataset.feedback_N[index]), int(dataset.timestamps_ms_N[index])
        )
        fresh = memory.fresh(index - 1, 1)
        item_id = dataset.items[row].item_id
        online = rank(replica, history, Query(k=5, rank_of=[item_id]))
        scored = score_fresh(
            fresh,
            np.ones(1, np.bool_),
            offline,
            scorer=scorer,
            blend=blend,
            half_life_index=nearest_half_life(MODEL.half_lives, BLEND_HALF_LIFE),
            num_items=len(dataset.items),
        )
        if index >= NUM_BEFORE:
            yield Moment(item_id, scored, online)
        _serve(replica, model, blend, factors)
        previous = previous_items(fresh.windows)
        replica.apply_updates(
            CounterUpdates("boot", index + 1, fresh.items_N, previous, (index,), (0,))
        )


@pytest.fixture(scope="module", params=["without iALS", "with iALS"])
def moments(request: pytest.FixtureRequest) -> list[Moment]:
    factors = None
    if request.param == "with iALS":
        pytest.importorskip("implicit")
        factors = FactorLearner(0, FACTORS)
    dataset = simulate(
        SimulatorSettings(num_events=800, num_items=120, num_users=60, initial_share=0.5, seed=1)
    )
    moments = list(_moments(dataset, num_scored=100, factors=factors))
    assert all(("ials" in m.offline.ranks) == (factors is not None) for m in moments)
    return moments


def test_the_ranks_of_100_events_are_equal_online_and_offline(moments: list[Moment]) -> None:
    for moment in moments:
        online = moment.online.ranks[moment.item_id]
        assert online is not None
        offline = {
            "net" if name == LEARNING else name: float(ranks_K[0])
            for name, ranks_K in moment.offline.ranks.items()
        }
        assert dict(online) == offline
    assert len(moments) == 100


def test_the_guard_serves_the_same_online_and_offline(moments: list[Moment]) -> None:
    assert [(m.online.served,) for m in moments] == [m.offline.served_K for m in moments]


def test_the_moments_are_telling(moments: list[Moment]) -> None:
    ranks = np.array([[ranks[0] for ranks in m.offline.ranks.values()] for m in moments])
    assert len(np.unique(ranks[:, 0])) > 20
    assert (ranks.std(axis=1) > 0).mean() > 0.9, "components agree on everything"
    assert len({m.online.served for m in moments}) > 1
