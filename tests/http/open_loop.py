"""Requests at a fixed rate, whether or not those before are answered: a process of its own.

`python open_loop.py PORT RATE SECONDS` prints, for each status, how long answers took from when the
request was due; status 0 is a connection that ended without an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict

BODY = b'{"user_id": "anna"}'
REQUEST = (
    b"POST /v1/recommend HTTP/1.1\r\nHost: rheos\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
_TIMEOUT_S = 10.0


async def ask(port: int, due_s: float, answers: dict[str, list[float]]) -> None:
    """One request, at its time."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, due_s - loop.time()))
    received = b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            received = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        pass
    status = received[9:12].decode("latin-1") or "0"
    if status in ("429", "503") and b"\r\nretry-after:" not in received.lower():
        status += " without Retry-After"
    answers[status].append(loop.time() - due_s)


async def main(port: int, rate: float, seconds: float) -> None:
    """All requests, each a task that waits for its time."""
    answers: dict[str, list[float]] = defaultdict(list)
    start_s = asyncio.get_running_loop().time() + 0.2
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            group.create_task(ask(port, start_s + number / rate, answers))
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
