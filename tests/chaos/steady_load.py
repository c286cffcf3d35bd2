"""Requests at a steady rate, answered or not: single clicks and recommendations in turn.

Every other request has a connection of its own; the others share connections that are kept alive. A
server may close a kept connection at any time on which nothing is asked (RFC 9112, 9.5), and a
client learns of it only when it sends: so such a request, if not one byte of an answer came, goes
out once more on a new connection. All that this client sends may be sent twice: a click has its
`event_id`. That is all the forbearance there is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from background import Background
from http_wire import NoAnswer, Wire
from ledger import Ledger

REFUSED = "refused"
_NUM_USERS = 50
_CLICKS_BEHIND = 5
"""A user is asked for so many clicks of others after the own one: it is acknowledged by then."""


@dataclass(frozen=True)
class Outcome:
    """What came of one request. Times are `time.monotonic()`, in seconds.

    Attributes:
        path: What was asked.
        sent_s: When it had been sent; when its connection was refused if it was.
        took_s: From then until it was over.
        result: A status, `REFUSED`, or why no answer came.
        problem: What the service says is wrong, if it does.
        num_bytes: Bytes of the answer that came, if it is not a whole one.
        is_second_try: Whether a kept connection had ended under the first one.
    """

    path: str
    sent_s: float
    took_s: float
    result: str
    problem: str = ""
    num_bytes: int = 0
    is_second_try: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether a whole answer came, good or not."""
        return self.result.isdecimal()

    @property
    def is_good(self) -> bool:
        """Whether the client got what it asked for."""
        return self.result in ("200", "202")


@dataclass
class SteadyLoad(Background):
    """Sends `rate` requests a second until the block is left.

    Attributes:
        prefix: Of its events' and users' ids, which no other load may have.
        outcomes: One for each request that is over.
        first_answers: By replica, the version of its first recommendation, and the newest version
            that any recommendation had shown before this one was asked for.
        num_resent: Requests that were sent again because a kept connection had ended.
    """

    port: int
    items: Sequence[str]
    ledger: Ledger
    prefix: str
    rate: float = 50.0
    outcomes: list[Outcome] = field(default_factory=list)
    first_answers: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_resent: int = 0
    _kept: list[Wire] = field(default_factory=list)
    _newest: int = 0

    def __post_init__(self) -> None:
        load = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        super().__init__([load], wait_s=60.0)

    def _never_ended(self, names: list[str]) -> None:
        raise AssertionError("a request never ended")

    def results(self) -> dict[str, int]:
        """Requests by result."""
        return dict(Counter(outcome.result for outcome in self.outcomes))

    @property
    def longest_s(self) -> float:
        """How long the slowest answer took."""
        return max(outcome.took_s for outcome in self.outcomes)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start_s, number = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            while not self._stopped.is_set():
                send = self._click if number % 2 == 0 else self._recommend
                group.create_task(send(number // 2))
                number += 1
                await asyncio.sleep(start_s + number / self.rate - loop.time())
        for wire in self._kept:
            wire.close()

    async def _click(self, number: int) -> None:
        event = {
            "event_id": f"steady-{self.prefix}-{number}",
            "user_id": self._user(number),
            "item_id": self.items[(number // _NUM_USERS) % len(self.items)],
            "event_type": "click",
            "timestamp_ms": time.time_ns() // 1_000_000,
        }
        self.ledger.send([event])
        answer = await self._ask("/v1/events", event, keep=number % 4 < 2)
        if answer is not None:
            now_s = time.monotonic()
            self.ledger.acknowledge([event], answer, now_s, now_s)

    async def _recommend(self, number: int) -> None:
        user_id = self._user(number - _CLICKS_BEHIND)
        num_acknowledged, newest = self.ledger.num_acknowledged(user_id), self._newest
        body = {"user_id": user_id, "exclude_seen": False}
        answer = await self._ask("/v1/recommend", body, keep=number % 4 < 2)
        if answer is None:
            return
        if answer["degraded"] or answer["history_length"] < num_acknowledged:
            self.ledger.violated(
                f"{user_id} has {num_acknowledged} acknowledged clicks and is served with "
                f"{answer['history_length']}, degraded: {answer['degraded']}"
            )
        self._newest = max(self._newest, answer["model_version"])
        self.first_answers.setdefault(answer["replica"], (answer["model_version"], newest))

    def _user(self, number: int) -> str:
        return f"steady-{self.prefix}-{number % _NUM_USERS}"

    async def _ask(self, path: str, body: Any, *, keep: bool) -> Mapping[str, Any] | None:
        """The document of a good answer; whatever comes is an outcome."""
        wire = self._kept.pop(0) if keep and self._kept else None
        if wire is not None:
            outcome, answer = await self._exchange(wire, path, body, keep=True)
            if outcome.is_answered or outcome.num_bytes or "Timeout" in outcome.result:
                self.outcomes.append(outcome)
                return answer
            self.num_resent += 1
        is_second_try = wire is not None
        try:
            wire = await Wire.open(self.port)
        except OSError:
            self.outcomes.append(
                Outcome(path, time.monotonic(), 0.0, REFUSED, is_second_try=is_second_try)
            )
            return None
        outcome, answer = await self._exchange(wire, path, body, keep=keep, again=is_second_try)
        self.outcomes.append(outcome)
        return answer

    async def _exchange(
        self, wire: Wire, path: str, body: Any, *, keep: bool, again: bool = False
    ) -> tuple[Outcome, Mapping[str, Any] | None]:
        wire.send("POST", path, body, keep=keep)
        sent_s = time.monotonic()
        try:
            status, answer = await wire.answer()
        except NoAnswer as error:
            wire.close()
            reason, num_bytes = error.args
            took_s = time.monotonic() - sent_s
            return Outcome(path, sent_s, took_s, reason, "", num_bytes, again), None
        if keep and wire.is_kept:
            self._kept.append(wire)
        else:
            wire.close()
        took_s, problem = time.monotonic() - sent_s, str(answer.get("detail", ""))
        outcome = Outcome(path, sent_s, took_s, str(status), problem, 0, again)
        return outcome, answer if outcome.is_good else None
