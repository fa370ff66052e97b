"""A stand-in for a provider that costs next to nothing, so that what is measured is the gateway in front of it.

`python -m benchmarks.gateway_upstream` prints its base URL and answers until it is ended. It speaks just enough HTTP/1.1 for the clients
of the benchmark: requests with a Content-Length, kept connections, whole answers of about 1 kB, and streams at a fixed pace. The request
steers it: the first message's content may begin with "delay=0.1 chunks=50 pace=0.01 ".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_STEER = re.compile(rb"(delay|chunks|pace)=([0-9.]+)")
_WORDS = "a ziggurat rises in terraces each smaller than the one below and is climbed by stairs".split()
#: Of about 1 kB.
_TEXT = " ".join(_WORDS * 9)[:640]
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": _TEXT}, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 210,
            "completion_tokens": 120,
            "total_tokens": 330,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": "fp_0123456789",
    }
).encode()
_WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_ANSWER), _ANSWER)
_MODELS = b'{"object":"list","data":[{"id":"mock","object":"model"}]}'
_LISTED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_MODELS), _MODELS)


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end]
            match = _LENGTH.search(head)
            whole = end + 4 + (int(match.group(1)) if match else 0)
            if len(self._rest) < whole:
                return
            body, self._rest = self._rest[end + 4 : whole], self._rest[whole:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        if head.startswith(b"GET"):
            self._transport.write(_LISTED)
            return
        steer = {key.decode(): float(value) for key, value in _STEER.findall(body[:4000])}
        stream = b'"stream":true' in body or b'"stream": true' in body
        if not stream and not steer.get("delay"):
            self._transport.write(_WHOLE)
            return
        answer = self._stream(steer) if stream else self._late(steer)
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _late(self, steer: dict[str, float]) -> None:
        await asyncio.sleep(steer["delay"])
        if self._transport is not None:
            self._transport.write(_WHOLE)

    async def _stream(self, steer: dict[str, float]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(steer.get("delay", 0.0))
        self._write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        count, pace = int(steer.get("chunks", 50)), steer.get("pace", 0.0)
        due = loop.time()
        for number in range(count):
            self._event({"content": f" {_WORDS[number % len(_WORDS)]}{number}"}, None)
            due += pace
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
        self._event({}, "stop")
        usage = {"prompt_tokens": 210, "completion_tokens": count, "total_tokens": 210 + count}
        self._chunk(
            b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage}).encode()
        )
        self._chunk(b"data: [DONE]")
        self._write(b"0\r\n\r\n")

    def _event(self, delta: dict[str, str], finish: str | None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        event = {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1790000000,
            "model": "mock",
            "choices": [choice],
        }
        self._chunk(b"data: " + json.dumps(event).encode())

    def _chunk(self, data: bytes) -> None:
        data += b"\n\n"
        self._write(b"%x\r\n%s\r\n" % (len(data), data))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(port: int, connection: type[Upstream] = Upstream) -> None:
    """Answer until cancelled; the first line printed is the base URL."""
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, help="the core to run on")
    given = parser.parse_args()
    if given.core is not None and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {given.core})
    asyncio.run(serve(given.port))
