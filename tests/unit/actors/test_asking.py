import asyncio
import pickle
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from actors import messages
from actors.asking import ask
from actors.event_buffer_client import EventBufferClient
from actors.messages import ActorsError, AppendResult, BufferFull, Recovering, ShardUnavailable
from recommender.events import Event


class FakeActor:
    """A handle whose one method does what the test says, call after call."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def __getattr__(self, method: str) -> Any:
        return self

    async def remote(self, *args: Any) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer == "hang":
            await asyncio.Event().wait()
        return answer


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("method", "traceback", cause)


def unavailable() -> ActorUnavailableError:
    return ActorUnavailableError("restarting", None)


def all_errors(base: type[ActorsError]) -> list[type[ActorsError]]:
    return [base, *(e for sub in base.__subclasses__() for e in all_errors(sub))]


@pytest.mark.parametrize("error", all_errors(messages.ActorsError))
def test_an_error_that_crosses_an_actor_pickles(error: type[ActorsError]) -> None:
    copy = pickle.loads(pickle.dumps(error("what happened")))
    assert (type(copy), str(copy)) == (error, "what happened")


async def test_a_late_answer_is_unavailable() -> None:
    with pytest.raises(ShardUnavailable, match=r"0\.01 s"):
        await ask(FakeActor("hang"), "status", timeout_s=0.01)


async def test_an_error_of_ours_comes_out_as_itself() -> None:
    with pytest.raises(BufferFull, match="too many") as caught:
        await ask(FakeActor(task_error(BufferFull("too many"))), "append", timeout_s=1.0)
    assert type(caught.value) is BufferFull


async def test_a_bug_in_the_actor_is_not_dressed_up() -> None:
    with pytest.raises(RayTaskError):
        await ask(FakeActor(task_error(KeyError("bug"))), "append", timeout_s=1.0)


async def test_a_dead_actor_is_unavailable() -> None:
    with pytest.raises(ShardUnavailable):
        await ask(FakeActor(ActorDiedError()), "append", timeout_s=1.0)


async def test_only_calls_that_may_run_twice_are_asked_again() -> None:
    assert await ask(FakeActor(unavailable(), "yes"), "get", timeout_s=5.0, retry=True) == "yes"
    with pytest.raises(ShardUnavailable):
        await ask(FakeActor(unavailable(), "yes"), "append", timeout_s=5.0)


async def test_an_actor_that_still_reads_its_folder_is_asked_again() -> None:
    recovering = task_error(Recovering("reading"))
    assert await ask(FakeActor(recovering, "yes"), "get", timeout_s=5.0, retry=True) == "yes"
    with pytest.raises(ShardUnavailable, match="reading"):
        await ask(FakeActor(recovering, "yes"), "append", timeout_s=5.0)
    failed = task_error(ShardUnavailable("failed"))
    with pytest.raises(ShardUnavailable, match="failed"):
        await ask(FakeActor(failed, "yes"), "get", timeout_s=5.0, retry=True)


async def test_a_batch_over_shards_names_the_shard_that_failed() -> None:
    good = FakeActor(AppendResult(1, 0, {0: 4}))
    bad = FakeActor(task_error(BufferFull("too many")))
    client = EventBufferClient([good, bad], timeout_s=1.0)
    users = {client.shard_of(user): user for user in map(str, range(20))}
    events = [Event(user, user, "i", "click", 1.0, 1) for user in users.values()]
    result = await client.append(events)
    assert (result.accepted, result.offsets) == (1, {0: 4})
    assert result.failed_shards == {1: "BufferFull: too many"}


async def test_a_batch_that_no_shard_took_raises_the_shards_error() -> None:
    client = EventBufferClient([FakeActor(task_error(BufferFull("too many")))], timeout_s=1.0)
    with pytest.raises(BufferFull):
        await client.append([Event("e", "u", "i", "click", 1.0, 1)])


def test_the_shard_of_a_user_is_the_same_in_every_process() -> None:
    client = EventBufferClient([None] * 16)
    assert [client.shard_of(user) for user in ("", "a", "user-1", "ü")] == [4, 15, 8, 7]
