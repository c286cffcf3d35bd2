"""Clients that keep connections busy and never finish a request: a process of its own.

`python slow_clients.py PORT SOURCE NUMBER SECONDS` opens NUMBER connections from the address
SOURCE, a third of each kind, opens each again when it is closed, and prints what became of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: rheos\r\nContent-Type: application/json\r\n"
_PAUSE_S = 0.2
_DRIP_S = 0.5


async def half_open(writer: asyncio.StreamWriter) -> None:
    """The first line of a request, and then nothing."""
    writer.write(HEAD[:40])
    await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Headers, one after the other, without an end."""
    writer.write(HEAD)
    while not writer.is_closing():
        writer.write(b"X-Slow: 1\r\n")
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def slow_body(writer: asyncio.StreamWriter) -> None:
    """A body that is announced, begun with more than HAProxy buffers, and then drips."""
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 20_000)
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def keep_busy(kind: str, port: int, source: str, outcomes: Counter[str]) -> None:
    """One connection at a time, for ever."""
    while True:
        outcome = "refused"
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(source, 0)
            )
            sending = asyncio.create_task(KINDS[kind](writer))
            try:
                status_line = await reader.readline()
                outcome = status_line.decode("latin-1")[9:12] or "closed"
            finally:
                sending.cancel()
                await asyncio.wait([sending])
                writer.close()
        except OSError:
            pass
        outcomes[f"{kind} {outcome}"] += 1
        await asyncio.sleep(_PAUSE_S)


KINDS = {"half-open": half_open, "drip": drip, "slow-body": slow_body}


async def main(port: int, source: str, number: int, seconds: float) -> None:
    """Keep all connections busy for a while."""
    outcomes: Counter[str] = Counter()
    kinds = list(KINDS)
    tasks = [
        asyncio.create_task(keep_busy(kinds[n % len(kinds)], port, source, outcomes))
        for n in range(number)
    ]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
