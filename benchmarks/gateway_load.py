"""The load of the gateway's benchmark: a client as cheap as the stand-in upstream, so that both fit beside the gateway on two cores.

    saturate  so many connections that ask again at once: requests/s and latencies
    steady    requests at a fixed rate, whatever becomes of those before: latencies of a gateway with nobody in line
    bursts    bursts of requests with a pause between: latencies of a gateway that is not saturated
    streams   streams side by side, each at the upstream's pace: how long the last byte of each took

`python -m benchmarks.gateway_load saturate URL '{"requests": 2000, "connections": 32}'` prints one line with the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from typing import Any
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_FILLER = "Describe the building in plain words and keep to what is known of it. " * 11


class Connection(asyncio.Protocol):
    """One kept connection that makes one request at a time. `ask` returns the status and the number of stream events."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._answer: asyncio.Future[tuple[int, int]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the connection was closed"))

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, int]]:
        assert self._transport is not None
        self._data = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = self._data[:end]
        match = _LENGTH.search(head)
        done = len(self._data) >= end + 4 + int(match.group(1)) if match is not None else self._data.endswith(b"0\r\n\r\n")
        if done:
            self._answer.set_result((int(head[9:12]), self._data.count(b"data: {")))


def request(url: str, sizes: dict[str, Any], steer: str, stream: bool) -> bytes:
    """Return a whole request of about 1 kB as bytes."""
    parts = urlsplit(url)
    body: dict[str, Any] = {
        "model": sizes.get("model", "mock"),
        "messages": [{"role": "user", "content": steer + _FILLER}],
        "max_tokens": 256,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    payload = json.dumps(body).encode()
    headers = {
        "Host": parts.netloc,
        "Authorization": f"Bearer {sizes.get('key', 'none')}",
        "Content-Type": "application/json",
        "Content-Length": str(len(payload)),
        **sizes.get("headers", {}),
    }
    head = f"POST {parts.path}/chat/completions HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return head.encode() + b"\r\n" + payload


async def connect(url: str, count: int) -> list[Connection]:
    """Open so many connections."""
    parts = urlsplit(url)
    host, port, loop = parts.hostname or "", parts.port or 80, asyncio.get_running_loop()
    made = await asyncio.gather(*(loop.create_connection(Connection, host, port) for _ in range(count)))
    return [protocol for _, protocol in made]


async def saturate(url: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Keep every connection busy until so many requests are answered."""
    wanted, latencies, wrong = int(sizes["requests"]), [], 0
    sent = request(url, sizes, "", False)
    left = wanted

    async def work(connection: Connection) -> None:
        nonlocal left, wrong
        while left > 0:
            left -= 1
            began = time.perf_counter()
            status, _ = await connection.ask(sent)
            latencies.append(time.perf_counter() - began)
            wrong += status != 200

    connections = await connect(url, int(sizes["connections"]))
    began = time.perf_counter()
    await asyncio.gather(*(work(c) for c in connections))
    seconds = time.perf_counter() - began
    return {"requests_per_s": wanted / seconds, "wrong": wrong, **quantiles(latencies)}


async def steady(url: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Send requests at a fixed rate, each over a connection that is free; the latency counts from the moment that it was due."""
    wanted, latencies, wrong, pause = int(sizes["requests"]), [], 0, 1.0 / float(sizes["rate"])
    sent = request(url, sizes, "", False)
    free = asyncio.Queue[Connection]()
    for connection in await connect(url, int(sizes["connections"])):
        free.put_nowait(connection)

    async def one(due: float) -> None:
        nonlocal wrong
        connection = await free.get()
        status, _ = await connection.ask(sent)
        latencies.append(time.perf_counter() - due)
        wrong += status != 200
        free.put_nowait(connection)

    async with asyncio.TaskGroup() as group:
        due = time.perf_counter()
        for _ in range(wanted):
            due = max(due + pause, time.perf_counter())  # A client that overslept must not lay that at the gateway's door.
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(one(time.perf_counter()))
    return {"wrong": wrong, **quantiles(latencies)}


async def bursts(url: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Send bursts of requests to an upstream with a delay; what the delay does not explain was added."""
    latencies, wrong, delay = [], 0, float(sizes["delay"])
    sent = request(url, sizes, f"delay={delay} ", False)
    connections = await connect(url, int(sizes["burst"]))

    async def one(connection: Connection) -> None:
        nonlocal wrong
        began = time.perf_counter()
        status, _ = await connection.ask(sent)
        latencies.append(time.perf_counter() - began - delay)
        wrong += status != 200

    for _ in range(int(sizes["bursts"])):
        await asyncio.gather(*(one(c) for c in connections))
        await asyncio.sleep(0.05)
    return {"wrong": wrong, **quantiles(latencies)}


async def streams(url: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Read streams side by side, again and again."""
    count, chunks, pace = int(sizes["streams"]), int(sizes["chunks"]), float(sizes["pace"])
    sent = request(url, sizes, f"chunks={chunks} pace={pace} ", True)
    connections = await connect(url, count)
    events, wrong, latencies = 0, 0, []

    async def one(connection: Connection) -> None:
        nonlocal events, wrong
        for _ in range(int(sizes["rounds"])):
            began = time.perf_counter()
            status, seen = await connection.ask(sent)
            latencies.append(time.perf_counter() - began - chunks * pace)
            events += seen
            wrong += status != 200 or seen < chunks

    began = time.perf_counter()
    await asyncio.gather(*(one(c) for c in connections))
    seconds = time.perf_counter() - began
    return {"events": events, "events_per_s": events / seconds, "wrong": wrong, **quantiles(latencies)}


def quantiles(latencies: list[float]) -> dict[str, float]:
    """Return p50 and p99 in milliseconds."""
    found = sorted(latencies)
    return {"p50_ms": found[len(found) // 2] * 1e3, "p99_ms": found[min(len(found) - 1, len(found) * 99 // 100)] * 1e3}


def main() -> None:
    workload, url, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if "core" in sizes and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {sizes["core"]})
    work = {"saturate": saturate, "steady": steady, "bursts": bursts, "streams": streams}[workload]
    print("RESULT " + json.dumps(asyncio.run(work(url, sizes))), flush=True)


if __name__ == "__main__":
    main()
