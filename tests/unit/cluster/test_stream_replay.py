import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cluster.http_client import ServiceClient, ServiceError
from cluster.stream_replay import FrozenModel, StreamReplay
from recommender.counters import Counters
from recommender.datasets import Dataset
from recommender.events import Event
from recommender.model import Recommender
from recommender.ranking import History, eligible_items, ranks_of
from recommender.scorer import Scorer
from recommender.settings import ModelSettings
from recommender.simulator import SimulatorSettings, simulate

HALF_LIVES = (5.0, 50.0)
SETTINGS = ModelSettings(dim=8, num_layers=1, intermediate=8, window=6, half_lives=HALF_LIVES)
START = 60
STOP = 260
NUM_SHARDS = 2


class FakeService(ServiceClient):
    """A service in memory that answers as the real one would; subclasses get something wrong."""

    def __init__(self, dataset: Dataset, num_known: int) -> None:
        self.item_ids = [item.item_id for item in dataset.items]
        self.log: list[Event] = list(dataset.events(0, num_known))
        self.ids = {event.event_id for event in self.log}
        self.histories: dict[str, list[str]] = defaultdict(list)
        for event in self.log:
            self.histories[event.user_id].append(event.item_id)
        self.asked: list[tuple[str, str, list[str]]] = []

    async def post_events(self, events: Sequence[Event]) -> dict[str, Any]:
        await asyncio.sleep(0)  # other lanes go on while this one waits
        new = [event for event in events if event.event_id not in self.ids]
        for event in new:
            self.ids.add(event.event_id)
            self.log.append(event)
            self.histories[event.user_id].append(event.item_id)
        return {
            "accepted": len(new),
            "duplicates": len(events) - len(new),
            "offsets": {"0": len(self.log) - 1},
            **self.provenance(),
        }

    async def recommend(self, **body: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        user, [target] = body["user_id"], body["rank_of"]
        history = self.known_history(user)
        self.asked.append((user, target, list(self.histories[user])))
        ranked = [item_id for item_id in self.item_ids if item_id not in history]
        rank = None if target in history else 1.0 + ranked.index(target)
        names = ("blend", "rules", "popularity", "net", "content")
        return {
            "items": [{"item_id": item_id} for item_id in ranked[: body["k"]]],
            "ranks": {target: None if rank is None else dict.fromkeys(names, rank)},
            "history_length": len(history),
            "degraded": False,
            "request_id": f"request-{len(self.asked)}",
            **self.provenance(),
        }

    def known_history(self, user: str) -> list[str]:
        return self.histories[user]

    def provenance(self) -> dict[str, Any]:
        through = [len(self.log) - 1] * NUM_SHARDS
        return {
            "replica": "r",
            "model_version": 3,
            "trained_through": through,
            "counters_through": through,
        }


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return simulate(SimulatorSettings(num_users=15, num_items=40, num_events=STOP, seed=3))


def frozen_model(dataset: Dataset, num_warm: int = START) -> FrozenModel:
    num_items = len(dataset.items)
    texts_VD = np.random.default_rng(0).normal(size=(num_items, 6)).astype(np.float32)
    state = Recommender(SETTINGS, texts_VD, seed=0).export_state()
    scorer = Scorer.from_state(state, SETTINGS)
    return FrozenModel(scorer, dataset, num_warm, window=SETTINGS.window, half_lives=HALF_LIVES)


async def replayed(
    dataset: Dataset, service: FakeService, *, resend_every: int = 7, rate: float = 1e6
) -> StreamReplay:
    replay = StreamReplay(
        service,
        dataset,
        frozen_model(dataset),
        start=START,
        events_per_s=rate,
        resend_every=resend_every,
    )
    await asyncio.wait_for(replay.run(STOP), 20.0)
    return replay


async def test_every_event_is_sent_and_the_counts_add_up(dataset: Dataset) -> None:
    service = FakeService(dataset, START)
    replay = await replayed(dataset, service)
    counts = replay.counts
    assert sorted(e.event_id for e in service.log) == sorted(e.event_id for e in dataset.events())
    assert counts.acknowledged == replay.num_done == STOP - START == len(service.log) - START
    assert counts.duplicates > 0
    assert counts.sent == counts.acknowledged + counts.duplicates
    assert (counts.failed, counts.errors) == (0, [])
    assert counts.ok == len(counts.latencies_ms)
    assert replay.model_version == 3
    assert replay.freshness.percentiles("learning")["p99"] is not None


async def test_nothing_is_sent_twice_unless_asked_for(dataset: Dataset) -> None:
    replay = await replayed(dataset, FakeService(dataset, START), resend_every=10_000)
    assert (replay.counts.sent, replay.counts.duplicates) == (STOP - START, 0)


async def test_a_user_is_asked_for_after_all_that_user_did_and_before_what_comes(
    dataset: Dataset,
) -> None:
    service = FakeService(dataset, START)
    await replayed(dataset, service)
    all_of: dict[str, list[str]] = defaultdict(list)
    for event in dataset.events():
        all_of[event.user_id].append(event.item_id)
    assert len(service.asked) == (STOP - START) // 5
    for user, target, history in service.asked:  # nobody has two events on one item
        assert history == all_of[user][: all_of[user].index(target)]


async def test_every_fifth_event_is_scored_by_every_ranking(dataset: Dataset) -> None:
    replay = await replayed(dataset, FakeService(dataset, START))
    assert sorted(replay.scored.offsets) == list(range(2, STOP - START, 5))
    assert set(replay.scored.ranks) == {"popularity", "rules", "learning", "blend", "frozen"}
    num_scored = {len(ranks) for ranks in replay.scored.ranks.values()}
    assert num_scored == {len(replay.scored.offsets)}
    assert replay.counts.skew_checked == replay.counts.reads_checked == len(replay.scored.offsets)
    assert (replay.counts.reads_violated, replay.counts.skew_violated) == (0, 0)


class Forgetful(FakeService):
    """Answers without the user's last event."""

    def known_history(self, user: str) -> list[str]:
        return self.histories[user][:-1]


class Repeating(FakeService):
    """Recommends what the user had last."""

    async def recommend(self, **body: Any) -> dict[str, Any]:
        answer = await super().recommend(**body)
        had = self.histories[body["user_id"]]
        answer["items"][:1] = [{"item_id": item_id} for item_id in had[-1:]]
        return answer


@pytest.mark.parametrize("kind", [Forgetful, Repeating])
async def test_an_answer_that_does_not_know_an_own_event_is_a_violation(
    dataset: Dataset, kind: type[FakeService]
) -> None:
    service = kind(dataset, START)
    replay = await replayed(dataset, service)
    with_history = sum(bool(history) for _, _, history in service.asked)
    assert replay.counts.reads_violated == with_history > 0
    assert len(replay.counts.violations) == with_history


class Degraded(Forgetful):
    """Forgets, and says so."""

    async def recommend(self, **body: Any) -> dict[str, Any]:
        return {**await super().recommend(**body), "degraded": True}


async def test_a_degraded_answer_claims_nothing_and_is_counted_by_itself(dataset: Dataset) -> None:
    service = Degraded(dataset, START)
    replay = await replayed(dataset, service)
    assert replay.counts.reads_degraded == len(service.asked) > 0
    assert (replay.counts.reads_checked, replay.counts.reads_violated) == (0, 0)


class Skewed(FakeService):
    """Says rank 1 of everything, whatever it recommends."""

    async def recommend(self, **body: Any) -> dict[str, Any]:
        answer = await super().recommend(**body)
        for ranks in answer["ranks"].values():
            ranks["blend"] = 1.0
        return answer


async def test_a_rank_that_is_not_the_place_in_the_list_is_a_violation(dataset: Dataset) -> None:
    service = Skewed(dataset, START)
    replay = await replayed(dataset, service)
    beyond = sum(rank > 10 for rank in replay.scored.ranks["rules"])
    assert replay.counts.skew_violated == beyond > 0


async def test_a_target_that_the_user_had_already_is_skipped(dataset: Dataset) -> None:
    class Knowing(FakeService):
        """Knows each target before it is posted."""

        async def recommend(self, **body: Any) -> dict[str, Any]:
            answer = await super().recommend(**body)
            return {**answer, "ranks": dict.fromkeys(answer["ranks"])}

    replay = await replayed(dataset, Knowing(dataset, START))
    assert replay.counts.skipped == replay.counts.reads_checked > 0
    assert replay.scored.offsets == []


class Refusing(FakeService):
    """Refuses every third batch and every fourth question."""

    num_posts = 0
    num_questions = 0

    async def post_events(self, events: Sequence[Event]) -> dict[str, Any]:
        self.num_posts += 1
        if self.num_posts % 3 == 0:
            raise ServiceError(507, "disk full")
        return await super().post_events(events)

    async def recommend(self, **body: Any) -> dict[str, Any]:
        self.num_questions += 1
        if self.num_questions % 4 == 0:
            raise ServiceError(503, "overloaded")
        return await super().recommend(**body)


async def test_what_is_refused_is_counted_and_the_rest_goes_on(dataset: Dataset) -> None:
    service = Refusing(dataset, START)
    replay = await replayed(dataset, service, resend_every=10_000)
    counts = replay.counts
    refused = service.num_posts // 3 + service.num_questions // 4
    assert counts.failed == len(counts.errors) == refused > 0
    assert set(counts.errors) == {"HTTP 507: disk full", "HTTP 503: overloaded"}
    assert counts.sent == STOP - START
    assert counts.acknowledged == replay.num_done == len(service.log) - START < counts.sent
    assert counts.reads_violated == 0, "only what was acknowledged has to be known"


class Losing(FakeService):
    """Stores each batch with a try whose answer is lost; the client's second try gets through."""

    async def post_events(self, events: Sequence[Event]) -> dict[str, Any]:
        await super().post_events(events)
        return await super().post_events(events)


async def test_events_whose_first_answer_was_lost_are_acknowledged_once(dataset: Dataset) -> None:
    service = Losing(dataset, START)
    replay = await replayed(dataset, service, resend_every=10_000)
    assert replay.counts.acknowledged == STOP - START == len(service.log) - START
    assert replay.counts.sent == replay.counts.acknowledged + replay.counts.duplicates


class Doubling(FakeService):
    """Has forgotten which events it has."""

    async def post_events(self, events: Sequence[Event]) -> dict[str, Any]:
        self.ids.clear()
        return await super().post_events(events)


async def test_a_service_that_accepts_an_event_twice_does_not_add_up(dataset: Dataset) -> None:
    service = Doubling(dataset, START)
    counts = (await replayed(dataset, service)).counts
    assert counts.sent != counts.acknowledged + counts.duplicates
    assert counts.acknowledged < len(service.log) - START


async def test_the_stream_takes_the_time_that_its_rate_says(dataset: Dataset) -> None:
    started_s = time.monotonic()
    await replayed(dataset, FakeService(dataset, START), rate=1_000.0)
    assert time.monotonic() - started_s >= 0.9 * (STOP - START) / 1_000.0


def test_the_frozen_model_ranks_with_live_histories_and_live_popularity(dataset: Dataset) -> None:
    frozen = frozen_model(dataset, num_warm=100)
    frozen.observe([100, 101])
    frozen.observe(range(102, 110))
    user, target = int(dataset.users_N[110]), int(dataset.rows_N[110])
    is_own_N = dataset.users_N[:110] == user
    rows_H = dataset.rows_N[:110][is_own_N]
    assert rows_H.tolist() == frozen.seen(user).tolist() != []
    history = History(
        rows_H, dataset.feedback_N[:110][is_own_N], dataset.timestamps_ms_N[:110][is_own_N]
    )
    counters = Counters(HALF_LIVES)
    counters.update(dataset.rows_N[:110], np.empty((110, 0), np.int32))
    scorer = frozen._scorer
    scores_V = scorer.net_scores(history.window(SETTINGS.window), counters.popularity())[0]
    eligible_V = eligible_items(scorer.num_items, rows_H)
    assert frozen.rank(user, target) == ranks_of(scores_V, eligible_V, np.array([target]))[0]


async def test_after_a_replay_the_frozen_model_has_seen_what_the_service_has(
    dataset: Dataset,
) -> None:
    service = FakeService(dataset, START)
    replay = await replayed(dataset, service)
    for user, user_id in enumerate(dataset.user_ids):
        seen = [dataset.items[row].item_id for row in replay._frozen.seen(user).tolist()]
        assert seen == service.histories[user_id]
