"""Models on this machine: llama.cpp inside the process, through xllamacpp (extra `local`).

The model "smollm2", SmolLM2-135M-Instruct, needs no settings: it is fetched once and loads in half a second. Other GGUF files are named
in the options. llama.cpp applies the model's chat template and holds answers to a schema while it writes them. Its work runs in threads
that release the interpreter; as many calls at a time as there are slots, the others wait in order. A cancelled call stops at its next
token, or after the piece of the prompt that is being read.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.errors import (
    ContextTooLong,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    MissingExtra,
    ModelNotFound,
    RequestRejected,
    SettingsError,
)
from ziggurat.inference import wire
from ziggurat.inference.backends import weights
from ziggurat.inference.interface import Capabilities, Endpoint, EndpointConfig
from ziggurat.records import Chunk, Completion, EmbeddingPrompt, Embeddings, Prompt

#: The model that needs no settings.
BUILT_IN = "smollm2"
#: llama.cpp gains little from more threads on small models, and loses much when they have to share cores.
THREADS_MAX = 8
#: Tokens of a prompt that are read in one piece; a cancelled call can stop between pieces.
PIECE_TOKENS = 256


class LocalOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of [inference.endpoints.NAME] with kind = "local"."""

    #: GGUF files beside the built-in model, by the name that routes use.
    models: dict[str, str] = {}
    #: Calls that are worked on at a time, in one batch.
    slots: int = 2
    #: Tokens that a call's prompt and answer may have together; memory for slots times this is taken when the model loads.
    context: int = 4096
    #: Threads that compute; 0 takes the cores that are idle when the model loads, at least 1 and at most 8.
    threads: int = 0
    #: Tokens of an answer where the prompt names no limit: a small model that repeats itself never ends on its own.
    max_tokens: int = 1024
    #: Where the prompt names none; 0 always takes the likeliest token, so that answers can be repeated.
    temperature: float = 0.0


def create(config: EndpointConfig, progress: weights.Progress | None = None) -> Endpoint:
    """Return the endpoint for models on this machine. Nothing is loaded or fetched before the first call.

    Args:
        config: its `options` are those of LocalOptions.
        progress: is told, in sentences, when the weights are fetched; called in a thread.

    Raises SettingsError.
    """
    try:
        options = msgspec.convert(config.options, LocalOptions)
    except msgspec.ValidationError as error:
        raise SettingsError(f"The options of the local endpoint {config.name!r} are wrong: {error}.") from error
    return LocalEndpoint(config, options, progress)


class LocalEndpoint(Endpoint):
    """llama.cpp in this process."""

    def __init__(self, config: EndpointConfig, options: LocalOptions, progress: weights.Progress | None = None) -> None:
        super().__init__(config)
        self.options = options
        self._progress = progress
        #: By model, and whether they embed: llama.cpp loads a model for one of the two.
        self._engines: dict[tuple[str, bool], _Engine] = {}
        self._lock = threading.Lock()

    def capabilities(self, upstream: str) -> Capabilities:
        # Tools by schema: llama.cpp offers tools through the chat template, and small models' templates drop them in silence.
        return Capabilities(structured="json_schema", tools="schema", vision=False, files=False, context=self.options.context)

    def free(self, upstream: str) -> bool:
        return True

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        engine = self._engine(upstream)
        job = _Job(self._body(prompt, upstream, stream=True))
        collected = _Collected()
        job.on_event = collected.take
        limit = self._limit(prompt)
        future = engine.submit(job)
        try:
            async with asyncio.timeout(limit):
                await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._late(limit, upstream) from None
        finally:
            job.stop(future)
        self._check(job, collected.error, upstream)
        return collected.completion()

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        engine = self._engine(upstream)
        job = _Job(self._body(prompt, upstream, stream=True))
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()

        def put(piece: Chunk | BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:
                job.stopped = True  # The loop is gone, and with it whoever reads.

        job.on_event = lambda event: _forward(event, put)
        limit = self._limit(prompt)
        timer = loop.call_later(limit, pieces.put_nowait, TimeoutError())
        future = engine.submit(job)
        future.add_done_callback(lambda done: put(None if done.cancelled() else done.exception()))
        try:
            finished = False
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, TimeoutError):
                    raise self._late(limit, upstream)
                if isinstance(piece, wire.ErrorBody):
                    self._check(job, piece, upstream)
                if isinstance(piece, BaseException):
                    raise piece
                finished = finished or piece.finish is not None
                yield piece
            self._check(job, None, upstream)
            if not finished:
                raise EndpointFailed("The local model stopped in the middle of its answer.", endpoint=self.name, model=upstream)
        finally:
            timer.cancel()
            job.stop(future)

    async def embed(self, prompt: EmbeddingPrompt, upstream: str) -> Embeddings:
        """Return the mean of the last layer over each text's tokens, of length 1: any model can, models made for it do better."""
        if prompt.dimensions is not None:
            text = f"The local model {upstream!r} has vectors of one length; leave dimensions out."
            raise RequestRejected(text, endpoint=self.name, model=upstream)
        limit = self.config.timeouts.total if prompt.timeout is None else min(prompt.timeout, self.config.timeouts.total)
        future = self._engine(upstream, embeds=True).embed(msgspec.json.decode(wire.embedding_body(prompt, upstream)))
        try:
            async with asyncio.timeout(limit):
                answer = await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._late(limit, upstream) from None
        finally:
            future.cancel()
        try:
            return wire.decode_embeddings(msgspec.json.encode(answer), len(prompt.inputs))
        except wire.ErrorBody as error:
            kind = ContextTooLong if "too large" in error.message or "context" in error.type else RequestRejected
            raise kind(f"llama.cpp refuses these texts: {error.message}", endpoint=self.name, model=upstream) from None

    async def models(self) -> list[str]:
        return [BUILT_IN, *self.options.models]

    async def check(self) -> str:
        _library(self.name)
        return await asyncio.to_thread(self._checked)

    async def load(self, upstream: str = BUILT_IN) -> None:
        """Fetch and load a model now rather than at its first call. Raises InferenceError."""
        await asyncio.wrap_future(self._engine(upstream).submit(None))

    async def close(self) -> None:
        with self._lock:
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            await asyncio.to_thread(engine.close)

    # --

    def _checked(self) -> str:
        for name, file in self.options.models.items():
            if not Path(file).expanduser().is_file():
                raise _unusable(self.name, name, f"there is no file {file}")
        if weights.find() is not None:
            return "llama.cpp is installed and the local model is on this machine."
        return f"llama.cpp is installed; the local model, {weights.SIZE_BYTES // 1_000_000} MB, is fetched at its first call."

    def _engine(self, upstream: str, *, embeds: bool = False) -> _Engine:
        if upstream != BUILT_IN and upstream not in self.options.models:
            known = ", ".join([BUILT_IN, *self.options.models])
            raise ModelNotFound(
                f"The local endpoint {self.name!r} has no model {upstream!r}; it has: {known}. Name a GGUF file in its options.models.",
                endpoint=self.name,
                model=upstream,
            )
        with self._lock:
            engine = self._engines.get((upstream, embeds))
            # llama.cpp's threads do not survive a fork, so a forked process loads its own.
            if engine is None or engine.process != os.getpid():
                engine = _Engine(self.name, upstream, self.options, self._progress, embeds=embeds)
                self._engines[upstream, embeds] = engine
            return engine

    def _body(self, prompt: Prompt, upstream: str, *, stream: bool) -> bytes:
        options = self.options
        prompt = replace(
            prompt,
            max_tokens=prompt.max_tokens if prompt.max_tokens is not None else options.max_tokens,
            temperature=prompt.temperature if prompt.temperature is not None else options.temperature,
            extra={"return_progress": True, **prompt.extra},
        )
        return wire.request_body(prompt, upstream, stream=stream)

    def _limit(self, prompt: Prompt) -> float:
        total = self.config.timeouts.total
        return total if prompt.timeout is None else min(prompt.timeout, total)

    def _late(self, limit: float, upstream: str) -> InferenceError:
        return EndpointUnreachable(f"The local model gave no answer within {limit:g} s.", endpoint=self.name, model=upstream)

    def _check(self, job: _Job, error: wire.ErrorBody | None, upstream: str) -> None:
        """Raise what llama.cpp said was wrong with the request."""
        if job.rejected:
            raise RequestRejected(f"llama.cpp refuses this request: {job.rejected}", endpoint=self.name, model=upstream)
        if error is not None:
            if "context" in error.type:
                raise ContextTooLong(
                    f"The request does not fit the local model: {error.message}. Its options.context can be raised.",
                    endpoint=self.name,
                    model=upstream,
                )
            kind = RequestRejected if error.code.startswith("4") else EndpointFailed
            raise kind(f"llama.cpp refuses this request: {error.message}", endpoint=self.name, model=upstream)


class _Job:
    """One call in a thread: its request, what to do with each event, and whether anybody still wants it."""

    __slots__ = ("body", "on_event", "rejected", "stopped")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.on_event: Callable[[bytes], bool] = lambda event: False
        self.stopped = False
        #: What llama.cpp could not make of the request.
        self.rejected = ""

    def event(self, event: bytes) -> bool:
        """Take in an event; True ends the call. llama.cpp swallows what a callback raises, so nothing here may."""
        return self.stopped or self.on_event(event)

    def stop(self, future: Future[None]) -> None:
        """Say that nobody waits any more."""
        self.stopped = True
        future.cancel()


class _Collected:
    """A streamed answer, put together."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.last = Completion()
        self.error: wire.ErrorBody | None = None

    def take(self, event: bytes) -> bool:
        try:
            chunk, _ = wire.decode_event(event)
        except wire.ErrorBody as error:
            self.error = error
            return True
        except wire.Nonsense as error:
            self.error = wire.ErrorBody(str(error), "500", "")
            return True
        if chunk is not None:
            self.text.append(chunk.text)
            self.last = replace(self.last, finish=chunk.finish or self.last.finish, usage=chunk.usage or self.last.usage)
        return False

    def completion(self) -> Completion:
        return replace(self.last, text="".join(self.text))


def _forward(event: bytes, put: Callable[[Chunk | BaseException | None], None]) -> bool:
    try:
        chunk, _ = wire.decode_event(event)
    except wire.ErrorBody as error:
        put(error)
        return True
    except wire.Nonsense as error:
        put(wire.ErrorBody(str(error), "500", ""))
        return True
    if chunk is not None:
        put(chunk)
    return False


class _Engine:
    """One loaded model and the threads that work for it. Loaded by its first job, so that a process that never calls it stays small."""

    def __init__(
        self, endpoint: str, upstream: str, options: LocalOptions, progress: weights.Progress | None, *, embeds: bool = False
    ) -> None:
        self.process = os.getpid()
        self._embeds = embeds
        self._endpoint, self._upstream, self._options, self._progress = endpoint, upstream, options, progress
        self._server: Any = None
        self._loading = threading.Lock()
        self._threads = ThreadPoolExecutor(max_workers=max(1, options.slots), thread_name_prefix=f"ziggurat-{upstream}")

    def submit(self, job: _Job | None) -> Future[None]:
        """Queue a job, or only the loading; its future ends with the job, and raises what kept the model from loading."""
        return self._threads.submit(self._run, job)

    def embed(self, body: dict[str, Any]) -> Future[dict[str, Any]]:
        """Queue a request for embeddings; its future holds llama.cpp's answer, be it an error."""
        return self._threads.submit(self._embed, body)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._server = None

    def _embed(self, body: dict[str, Any]) -> dict[str, Any]:
        self._ready()
        answer: dict[str, Any] = self._server.handle_embeddings(body)
        return answer

    def _ready(self) -> None:
        with self._loading:
            if self._server is None:
                self._server = self._load()

    def _run(self, job: _Job | None) -> None:
        self._ready()
        if job is None or job.stopped:
            return
        try:
            self._server.handle_chat_completions(job.body, job.event)
        except (ValueError, RuntimeError) as error:
            job.rejected = str(error).splitlines()[0] if str(error) else type(error).__name__

    def _load(self) -> Any:
        library = _library(self._endpoint)
        file = self._options.models.get(self._upstream)
        path = Path(file).expanduser() if file is not None else weights.fetch(self._progress)
        if not path.is_file():
            raise _unusable(self._endpoint, self._upstream, f"there is no file {path}")
        params = library.CommonParams()
        params.model.path = str(path)
        params.n_parallel = max(1, self._options.slots)
        params.n_ctx = self._options.context * params.n_parallel
        params.n_batch = params.n_ubatch = PIECE_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._options.threads or idle_cores()
        # The slots keep their last prompts, which is the prefix cache that matters; a cache in memory of up to 8 GiB is not wanted.
        params.cache_ram_mib = 0
        if self._embeds:
            params.embedding = True
            params.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
            # A text is embedded in one piece, and alone: of two in one batch, the second was measured to come out wrong.
            params.n_parallel = 1
            params.n_ctx = params.n_batch = params.n_ubatch = self._options.context
        params.verbosity = -1
        # The library also opens a port of llama.cpp's own server on loopback. Nobody needs it, so nobody is let in.
        params.api_keys = [secrets.token_hex(16)]
        params.ui = params.endpoint_slots = False
        try:
            return library.Server(params)
        except RuntimeError as error:
            raise _unusable(self._endpoint, self._upstream, f"llama.cpp cannot load {path} ({error})") from error


def idle_cores() -> int:
    """Return the cores that this process may use, by its affinity and its container's quota, less those that are busy now.

    llama.cpp's threads wait for each other at every layer. On a busy machine two of them were measured to be four times slower than one,
    at four times the CPU, since each waits for whichever was taken off its core.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass
    busy = round(os.getloadavg()[0])
    return max(1, min(cores - busy, THREADS_MAX))


def _library(endpoint: str) -> Any:
    """Return xllamacpp. Raises MissingExtra, or says which library of the system it lacks."""
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        raise MissingExtra("The local model", "local") from error
    except ImportError as error:
        hint = " On Debian: apt install libgomp1" if "libgomp" in str(error) else ""
        raise _unusable(endpoint, BUILT_IN, f"llama.cpp cannot be loaded ({error}).{hint}") from error


def _unusable(endpoint: str, upstream: str, why: str) -> InferenceError:
    error = EndpointUnreachable(f"The local model {upstream!r} cannot be used: {why}.", endpoint=endpoint, model=upstream)
    error.retryable = False
    return error
