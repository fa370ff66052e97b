"""Endpoints that speak OpenAI's chat completions over HTTP: GMI Cloud, OpenAI, DeepSeek, OpenRouter, vLLM, SGLang, Ollama, and others.

Built on aiohttp alone; `docs/decisions/http-client.md` has the measurements. One session for each event loop, made by the first call in
it and closed with it. Time limits look at data events, not at bytes: a provider that sends keep-alives for minutes has not answered.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import aiohttp
import msgspec

from ziggurat.errors import EndpointFailed, EndpointUnreachable, ModelNotFound, OutputRefused, SettingsError
from ziggurat.inference import capabilities as table
from ziggurat.inference import wire
from ziggurat.inference.failures import Failures, reported
from ziggurat.inference.interface import Capabilities, Endpoint, EndpointConfig, Reported, is_loopback, require_network, shown_url
from ziggurat.inference.sessions import session_of
from ziggurat.inference.sse import Events, EventTooLong
from ziggurat.records import Chunk, Completion, EmbeddingPrompt, Embeddings, Prompt

#: The longest answer, streamed or not, and the longest error body that is read.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
ERROR_BYTES_MAX = 256 * 1024
#: The longest file of answers: those of 50,000 calls.
FILE_BYTES_MAX = 1024 * 1024 * 1024
#: Seconds for which an idle connection is kept. Shorter than the servers' usual 60 to 75, so that we rarely write into a closed one.
KEEP_ALIVE = 30.0
#: Seconds to wait for the end of a stream after its last event, so that its connection can be used again.
LINGER = 0.5


def create(config: EndpointConfig) -> Endpoint:
    """Return an endpoint for a base URL.

    Options: `session_header` names a header that carries the call's session (what it names, its run, or its conversation), for routers that
    keep sessions on one replica; `proxy` is a proxy's URL, taken from HTTPS_PROXY and NO_PROXY by default. Raises SettingsError.
    """
    return OpenAICompatible(config)


class OpenAICompatible(Endpoint):
    """One base URL."""

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config)
        parts = urlsplit(config.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                f"The endpoint {config.name!r} has the base_url {config.base_url!r}; write a URL such as https://api.example.com/v1."
            )
        self._host = parts.hostname
        self._shown = shown_url(config.base_url)
        self._headers = {"Content-Type": "application/json", "User-Agent": "ziggurat", "Accept-Encoding": "identity"}
        if config.api_key and "authorization" not in {name.lower() for name in config.headers}:
            self._headers["Authorization"] = f"Bearer {config.api_key}"
        self._headers |= config.headers
        # HTTP has one way to authenticate: a name and password in the URL yield to a key.
        keyed = "authorization" in {name.lower() for name in self._headers}
        place = parts.netloc.rpartition("@")[2] if keyed else parts.netloc
        path = parts.path.rstrip("/")
        self._place = parts.scheme, place, path, parts.query
        self._url, self._embeddings_url = self.url("/chat/completions"), self.url("/embeddings")
        self._models_url = self.url("/models")
        values = (value for _, value in parse_qsl(parts.query))
        secrets = (config.api_key, *config.headers.values(), parts.password or "", *values)
        self._failures = Failures(config.name, self._shown, secrets)
        self._session_header = str(config.options.get("session_header", ""))
        self._session_of = session_of if self._session_header else (lambda prompt: "")
        self._proxy = config.options.get("proxy") or _proxy_of(parts.scheme, parts.hostname)
        # Of a new connection; a timer for taking a kept one would cost every call.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.timeouts.connect)
        self._is_here = is_loopback(parts.hostname)
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._lock = threading.Lock()
        #: What was said of the limits of each model since the router last asked.
        self._said: dict[str, Reported] = {}

    @property
    def failures(self) -> Failures:
        """What turns this endpoint's answers into errors that name it."""
        return self._failures

    def url(self, path: str, query: str = "") -> str:
        """Return the URL of a path below the base URL."""
        scheme, place, base, own = self._place
        return urlunsplit((scheme, place, base + path, "&".join(part for part in (own, query) if part), ""))

    async def ask(
        self, method: str, url: str, body: bytes | None, seconds: float, content_type: str = "application/json"
    ) -> bytes:
        """Make a request of another kind than a call, and return the body of a 2xx. Raises InferenceError."""
        return await self._fetch(method, url, body, "", seconds, content_type=content_type, most=FILE_BYTES_MAX)

    def capabilities(self, upstream: str) -> Capabilities:
        return table.of(self._host, upstream)

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        body = wire.request_body(prompt, upstream, stream=False)
        seconds = self.config.timeouts.total if prompt.timeout is None else min(prompt.timeout, self.config.timeouts.total)
        data = await self._fetch("POST", self._url, body, upstream, seconds, self._session_of(prompt))
        return self._completion(data, upstream)

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        body = wire.request_body(prompt, upstream, stream=True)
        watch = _Watch(prompt, self.config)
        try:
            with self._translated(upstream, watch.until_first, watch):
                # The headers may come with the first token, so waiting for them is part of waiting for it.
                async with asyncio.timeout(watch.until_first):
                    response = await self._send("POST", self._url, body, upstream, self._session_of(prompt))
                try:
                    watch.start(response)
                    async for chunk in self._chunks(response, upstream, watch):
                        watch.pause()
                        yield chunk
                        watch.resume()
                finally:
                    # Closing an answer that was not read to its end closes the connection, and so the upstream call.
                    watch.stop()
                    response.release()
                    await response.wait_for_close()
        finally:
            watch.stop()

    async def embed(self, prompt: EmbeddingPrompt, upstream: str) -> Embeddings:
        body = wire.embedding_body(prompt, upstream)
        seconds = self.config.timeouts.total if prompt.timeout is None else min(prompt.timeout, self.config.timeouts.total)
        data = await self._fetch("POST", self._embeddings_url, body, upstream, seconds)
        with self._understood(data, upstream):
            return wire.decode_embeddings(data, len(prompt.inputs))

    async def models(self) -> list[str]:
        seconds = self.config.timeouts.connect + 20.0
        data = await self._fetch("GET", self._models_url, None, "", seconds)
        try:
            listed = msgspec.json.decode(data)
            entries = listed["data"] if isinstance(listed, dict) else listed
            return sorted(str(entry["id"]) for entry in entries)
        except (msgspec.MsgspecError, KeyError, TypeError):
            raise self._failures.make(EndpointFailed, "answered GET /models with something that is no list of models.") from None

    async def check(self) -> str:
        started = time.perf_counter()
        try:
            listed = f"lists {len(await self.models())} models"
        except ModelNotFound:
            listed = "does not list its models"
        return f"{self._shown} answers in {(time.perf_counter() - started) * 1000:.0f} ms and {listed}."

    async def close(self) -> None:
        with self._lock:
            sessions = list(self._sessions.items())
            self._sessions.clear()
        here = asyncio.get_running_loop()
        for loop, session in sessions:
            if loop is here:
                await session.close()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(session.close(), loop)

    # -- HTTP --------------------------------------------------------------------------------------------------------

    async def _fetch(
        self,
        method: str,
        url: str,
        body: bytes | None,
        upstream: str,
        seconds: float,
        session: str = "",
        content_type: str = "",
        most: int = 0,
    ) -> bytes:
        """Return the whole body of a 2xx. Raises InferenceError."""
        with self._translated(upstream, seconds):
            async with asyncio.timeout(seconds):
                response = await self._send(method, url, body, upstream, session, content_type)
                try:
                    return await self._read(response, upstream, most=most)
                finally:
                    # Closes the connection, and so the upstream call, unless the answer was read to its end.
                    response.release()

    async def _send(
        self, method: str, url: str, body: bytes | None, upstream: str, session: str = "", content_type: str = ""
    ) -> aiohttp.ClientResponse:
        """Send a request and return its answer, if that is a 2xx; release it. Raises the error that the answer means otherwise.

        Straight calls, where context managers would read better: they cost as much as the JSON of a call.
        """
        if not self._is_here:
            require_network(self.name, self._shown)
        loop = asyncio.get_running_loop()
        pool = self._sessions.get(loop) or await self._open(loop)
        headers = self._headers
        if session and self._session_header:
            headers = headers | {self._session_header: session}
        if content_type:
            headers = headers | {"Content-Type": content_type}
        response = await pool.http.request(
            method, url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False, proxy=self._proxy
        )
        if 200 <= response.status < 300:
            if upstream and (said := reported(response.headers)) is not None:
                self._said[upstream] = said
            return response
        try:
            error = await self._read(response, upstream, cut=True)
        finally:
            response.release()
        raise self._failures.of_status(response.status, response.headers, error, upstream, time.time())

    def reported(self, upstream: str) -> Reported | None:
        return self._said.pop(upstream, None)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> _Session:
        session = _Session()
        await session.open()
        with self._lock:
            # A session refers to its loop, so it is let go once its loop has ended.
            for ended in [other for other in self._sessions if other.is_closed()]:
                del self._sessions[ended]
            known = self._sessions.setdefault(loop, session)
        if known is not session:
            await session.close()
        return known

    async def _read(self, response: aiohttp.ClientResponse, upstream: str, *, cut: bool = False, most: int = 0) -> bytes:
        """Return a body of bounded size; a longer one raises EndpointFailed, or is cut if it is an error's."""
        pieces: list[bytes] = []
        size, most = 0, ERROR_BYTES_MAX if cut else most or ANSWER_BYTES_MAX
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                if cut:
                    break
                response.close()
                raise self._failures.make(EndpointFailed, f"sent more than {most:,} bytes in one answer.", model=upstream)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _completion(self, data: bytes, upstream: str) -> Completion:
        with self._understood(data, upstream):
            return wire.decode_completion(data)

    @contextmanager
    def _understood(self, data: bytes, upstream: str) -> Iterator[None]:
        """Turn what the decoder says of an answer into errors of ours."""
        try:
            yield
        except wire.ErrorBody as error:
            raise self._failures.of_error(error, upstream, time.time()) from None
        except wire.Nonsense as error:
            self._nonsense(data, error, upstream)

    def _nonsense(self, data: bytes, error: Exception, upstream: str) -> NoReturn:
        if data.lstrip()[:1] == b"<":
            what = "sent an HTML page where JSON was due; check that base_url is that of the API, not of a website."
        elif not data.strip():
            what = "sent an empty answer."
        else:
            what = f"sent something that is no answer: {error}."
        raise self._failures.make(EndpointFailed, what, model=upstream) from None

    async def _chunks(self, response: aiohttp.ClientResponse, upstream: str, watch: _Watch) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of a stream. Raises EndpointFailed if it ends before its finish."""
        if response.content_type in ("application/json", "text/html"):
            # Some servers do not know how to stream and answer in one piece.
            async for chunk in self._as_stream(await self._read(response, upstream), upstream):
                yield chunk
            return
        events, reading = Events(), _Reading()
        async for data in response.content.iter_any():
            reading.size += len(data)
            if reading.size > ANSWER_BYTES_MAX:
                raise self._failures.make(EndpointFailed, f"streamed more than {ANSWER_BYTES_MAX:,} bytes.", model=upstream)
            try:
                found = events.feed(data)
            except EventTooLong as error:
                raise self._failures.make(EndpointFailed, f"sent nonsense: {error}.", model=upstream) from None
            if found:
                watch.data()
            for event in found:
                if event == b"[DONE]":
                    reading.done = True
                    break
                piece = self._event(event, reading, upstream)
                if piece is not None:
                    yield piece
            if reading.done:
                break
        for event in () if reading.done else events.end():
            piece = self._event(event, reading, upstream) if event != b"[DONE]" else None
            if piece is not None:
                yield piece
        self._check_end(reading, upstream)
        await self._drain(response, watch)

    async def _drain(self, response: aiohttp.ClientResponse, watch: _Watch) -> None:
        """Read what follows the end mark, which is nothing, so that the connection can be used again."""
        watch.linger()
        try:
            while await response.content.readany():
                pass
        except aiohttp.ClientError:
            return

    def _event(self, event: bytes, reading: _Reading, upstream: str) -> Chunk | None:
        try:
            chunk, refusal = wire.decode_event(event)
        except wire.ErrorBody as error:
            failure = self._failures.of_error(error, upstream, time.time())
            failure.sent = True
            raise failure from None
        except wire.Nonsense as error:
            self._nonsense(event, error, upstream)
        reading.refusal += refusal
        if chunk is not None:
            reading.pieces += 1
            reading.finished = reading.finished or chunk.finish is not None
        return chunk

    def _check_end(self, reading: _Reading, upstream: str) -> None:
        if reading.refusal:
            raise OutputRefused(
                f"The model {upstream!r} declined to answer: {reading.refusal[:300]}", endpoint=self.name, model=upstream
            )
        if not reading.finished and not (reading.done and reading.pieces):
            what = f"cut the stream after {reading.pieces} pieces, before its end."
            raise self._failures.make(EndpointFailed, what, model=upstream, sent=True)

    async def _as_stream(self, data: bytes, upstream: str) -> AsyncGenerator[Chunk, None]:
        whole = self._completion(data, upstream)
        if whole.refusal:
            raise OutputRefused(
                f"The model {upstream!r} declined to answer: {whole.refusal[:300]}", endpoint=self.name, model=upstream
            )
        calls = [(number, c.id, c.name, c.arguments) for number, c in enumerate(whole.tool_calls)]
        yield Chunk(text=whole.text, reasoning=whole.reasoning, tool_calls=calls)
        yield Chunk(finish=whole.finish, usage=whole.usage if whole.usage.calls else None)

    @contextmanager
    def _translated(self, upstream: str, seconds: float, watch: _Watch | None = None) -> Iterator[None]:
        """Turn what aiohttp raises in this block into errors of ours."""
        say = self._failures.make
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            what = f"did not take a connection within {self.config.timeouts.connect:g} s."
            raise say(EndpointUnreachable, what, model=upstream) from error
        except aiohttp.ClientConnectorError as error:
            what = f"cannot be reached: {_reason(error)}. Is it running, and is base_url right?"
            raise say(EndpointUnreachable, what, model=upstream) from None
        except aiohttp.InvalidURL as error:
            raise SettingsError(f"The endpoint {self.name!r} has a base_url that is no URL: {self._shown}.") from error
        except TimeoutError:
            raise say(EndpointUnreachable, f"gave no answer within {seconds:g} s.", model=upstream, sent=True) from None
        except aiohttp.ClientError as error:
            if watch is not None and watch.expired:
                raise say(EndpointUnreachable, f"{watch.expired}.", model=upstream, sent=True) from None
            if isinstance(error, aiohttp.ClientPayloadError):
                raise say(EndpointFailed, "cut its answer before the end.", model=upstream, sent=True) from None
            if isinstance(error, aiohttp.ClientResponseError):
                what = f"sent something that is no HTTP: {type(error).__name__}."
                raise say(EndpointFailed, what, model=upstream, sent=True) from None
            what = f"closed the connection without an answer ({type(error).__name__})."
            raise say(EndpointUnreachable, what, model=upstream, sent=True) from None


class _Reading:
    """How far a stream has come."""

    __slots__ = ("done", "finished", "pieces", "refusal", "size")

    def __init__(self) -> None:
        self.size = self.pieces = 0
        self.refusal = ""
        #: A finish reason came; the provider's end mark came.
        self.finished = self.done = False


class _Watch:
    """Closes a stream that has gone silent. One timer that looks again, rather than one for every event: events are many."""

    __slots__ = ("_first", "_idle", "_limit", "_loop", "_response", "_timer", "_total", "_what", "expired", "until_first")

    def __init__(self, prompt: Prompt, config: EndpointConfig) -> None:
        self._loop = asyncio.get_running_loop()
        total = config.timeouts.total if prompt.timeout is None else min(prompt.timeout, config.timeouts.total)
        now = self._loop.time()
        self._idle = config.timeouts.idle
        self._total = now + total
        self._first = now + config.timeouts.first_token
        #: Seconds from now to the latest moment of the first data.
        self.until_first = min(config.timeouts.first_token, total)
        self._limit, self._what = math.inf, ""
        self._response: aiohttp.ClientResponse | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: What was waited for in vain, or "".
        self.expired = ""

    def start(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._set(self._first, "sent no data, whatever keep-alives came, within the time for the first token")
        self._arm()

    def data(self) -> None:
        """Take in that data came."""
        self._set(self._loop.time() + self._idle, f"fell silent for {self._idle:g} s in the middle of its answer")

    def pause(self) -> None:
        """Do not count the reader's own time."""
        self._limit = math.inf

    def resume(self) -> None:
        self.data()

    def linger(self) -> None:
        self._limit = self._loop.time() + LINGER
        self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, limit: float, what: str) -> None:
        if limit <= self._total:
            self._limit, self._what = limit, what
        else:
            self._limit, self._what = self._total, "did not end its answer within the time for the whole call"

    def _arm(self) -> None:
        self.stop()
        # While the reader pauses there is no limit; the timer then looks again after an idle time.
        self._timer = self._loop.call_at(min(self._limit, self._loop.time() + self._idle), self._look)

    def _look(self) -> None:
        if self._loop.time() < self._limit:
            self._arm()
        elif self._response is not None:
            self.expired = self._what
            self._response.close()


class _Session:
    """aiohttp's session for one event loop, closed by the loop's own end if nobody closes it before."""

    __slots__ = ("_keeper", "http")

    http: aiohttp.ClientSession

    async def open(self) -> None:
        # No limit on connections: the gate in front of the endpoint is the limit. No cookies: nobody asked for state.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=60)
        self.http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        # A loop's runner closes the asynchronous generators that are open in it, so one that holds the session closes it too: a script
        # that never says close() ends without a warning. It is kept here meanwhile: one that the collector finds at the very end of its
        # loop is closed by a task, which that end cancels.
        self._keeper = _keep(self.http)
        await self._keeper.__anext__()
        _keepers.difference_update([k for k in list(_keepers) if getattr(k, "ag_frame", None) is None])
        _keepers.add(self._keeper)

    async def close(self) -> None:
        _keepers.discard(self._keeper)
        await self._keeper.aclose()


_keepers: set[AsyncGenerator[None, None]] = set()


async def _keep(http: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await http.close()


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Return why there is no connection: the system's words, or those of TLS."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    return str(getattr(cause, "strerror", None) or cause).rstrip(".")


def _proxy_of(scheme: str, host: str) -> Any:
    """Return the proxy that the environment names for a host, or None. Asked once: aiohttp's trust_env would ask at every call."""
    return None if is_loopback(host) or urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
