"""What the inference layer says of itself: the metrics of its calls, limits and breakers, and calls as spans.

chat some/model         the call as the program sees it, with the attributes of the convention (`ziggurat.telemetry.genai`)
  call gmi              one attempt at an endpoint: its status, tokens, cost; several where the router retried or fell back
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Protocol
from weakref import WeakSet

from ziggurat.clock import Clock
from ziggurat.records import CallRecord, Chunk, Completion, Prompt, ToolCall
from ziggurat.telemetry import catalogue, genai, tracing

_STATES = {"closed": 0.0, "half-open": 1.0, "open": 2.0}


class Shown(Protocol):
    """What the gauges read of a router."""

    def standing(self) -> tuple[Mapping[str, tuple[int, int]], Mapping[tuple[str, str], str]]:
        """Return calls under way and waiting by endpoint, and the breaker's state by endpoint and upstream model."""


_routers: WeakSet[Shown] = WeakSet()


def show(router: Shown) -> None:
    """Let the gauges show a router for as long as it is there."""
    _routers.add(router)


def called(record: CallRecord, told: Told | None) -> None:
    """Count one attempt at an endpoint, and tell of it as a span of its call if that is told of."""
    if told is not None:
        told.tried(record)
    endpoint, model = record.endpoint, record.upstream
    catalogue.CALL_SECONDS.labels(endpoint, model).observe(record.latency)
    if record.first_token is not None:
        catalogue.FIRST_TOKEN.labels(endpoint, model).observe(record.first_token)
    counted(record)


def counted(record: CallRecord) -> None:
    """Count a call, its tokens and its cost."""
    endpoint, model, usage = record.endpoint, record.upstream, record.usage
    catalogue.CALLS.labels(endpoint, model, record.status).inc()
    for kind, tokens in (
        ("input", usage.input_tokens),
        ("output", usage.output_tokens),
        ("cached", usage.cached_tokens),
        ("reasoning", usage.reasoning_tokens),
    ):
        if tokens:
            catalogue.TOKENS.labels(endpoint, model, kind).inc(tokens)
    if usage.cost_usd:
        catalogue.COST.labels(endpoint, model).inc(usage.cost_usd)


def _endpoints() -> Iterable[tuple[str, tuple[int, int]]]:
    for router in list(_routers):
        yield from router.standing()[0].items()


def _breakers() -> dict[tuple[str, ...], float]:
    # Two routers over one endpoint: the worse state is shown.
    found: dict[tuple[str, ...], float] = {}
    for router in list(_routers):
        for key, state in router.standing()[1].items():
            found[key] = max(found.get(key, 0.0), _STATES[state])
    return found


def _summed(place: int) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for endpoint, counts in _endpoints():
        found[(endpoint,)] = found.get((endpoint,), 0.0) + counts[place]
    return found


catalogue.MODEL_IN_FLIGHT.watch(lambda: _summed(0))
catalogue.MODEL_WAITING.watch(lambda: _summed(1))
catalogue.BREAKER.watch(_breakers)


class Told:
    """One call as a span, told while tracing is on. As a context manager it is the current span of the code inside."""

    def __init__(self, current: tracing.Tracing, prompt: Prompt, clock: Clock, operation: genai.Operation, stream: bool) -> None:
        self._current, self._prompt, self._clock, self._operation = current, prompt, clock, operation
        self._call: CallRecord | None = None
        self._finish = ""
        self._tries = 0
        attributes = genai.of_prompt(prompt, operation, stream=stream) | {"ziggurat.model": prompt.model}
        name = genai.span_name(operation, prompt.model)
        self._span = current.begin(name, parent=None, start=clock.time(), attributes=attributes, kind="client")
        if self._content:
            self._span.set(genai.asked(prompt))

    @property
    def _content(self) -> bool:
        return self._current.content and self._operation == "chat" and self._span.place.sampled

    def __enter__(self) -> Told:
        self._token = self._span.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._span.leave(self._token)
        self.end(error)

    def tried(self, record: CallRecord) -> None:
        """Take in an attempt at an endpoint."""
        self._tries += 1
        if record.status == "ok":
            self._call = record
        usage = record.usage
        attributes: dict[str, tracing.Attribute] = {
            "ziggurat.endpoint": record.endpoint,
            "ziggurat.upstream": record.upstream,
            "ziggurat.status": record.status,
            "ziggurat.call": record.id,
            "ziggurat.try": self._tries,
        }
        if record.replica:
            attributes["ziggurat.replica"] = record.replica
        if record.hedge:
            attributes["ziggurat.hedge"] = True
        if usage.calls:
            attributes |= {
                "ziggurat.input_tokens": usage.input_tokens,
                "ziggurat.output_tokens": usage.output_tokens,
                "ziggurat.cost_usd": usage.cost_usd,
            }
        self._current.emit(
            f"call {record.endpoint}",
            place=self._span.place._replace(span=0),
            parent=self._span.place,
            start=record.started_at,
            end=record.started_at + record.latency,
            attributes=attributes,
            kind="client",
            error=None if record.status in ("ok", "stopped") else record.status,
        )

    def answered(self, answer: Any) -> None:
        """Take in a whole answer."""
        if isinstance(answer, Completion):
            self._said(answer.text, answer.tool_calls, answer.finish)

    def _said(self, text: str, calls: list[ToolCall], finish: str) -> None:
        self._finish = finish
        if self._content:
            self._span.set(genai.answered(text, calls, finish))

    def end(self, error: BaseException | None) -> None:
        """End the span with what became of the call. A reader that leaves a stream is no failure."""
        call = self._call
        if call is not None:
            self._span.name(genai.span_name(self._operation, call.upstream))
            self._span.set(genai.of_call(call, self._finish or None) | {"ziggurat.cost_usd": call.usage.cost_usd})
        why = None
        if error is not None and not isinstance(error, GeneratorExit):
            why = tracing.reason(type(error).__name__, str(error))
            self._span.set(genai.of_error(type(error).__name__))
        self._span.end(self._clock.time(), why)

    async def through(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
        """Pass a stream on. The span is not the current one meanwhile: a reader's code runs between two chunks."""
        text: list[str] = []
        calls: dict[int, list[str]] = {}
        finish, failure = "", None
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if self._content:
                        text.append(chunk.text)
                        for at, id_, name, arguments in chunk.tool_calls:
                            parts = calls.setdefault(at, ["", "", ""])
                            parts[0], parts[1], parts[2] = parts[0] or id_, parts[1] or name, parts[2] + arguments
                    finish = chunk.finish or finish
                    yield chunk
        except BaseException as error:
            failure = error
            raise
        finally:
            self._said("".join(text), [ToolCall(*calls[at]) for at in sorted(calls)], finish)
            self.end(failure)


def begin(prompt: Prompt, clock: Clock, operation: genai.Operation = "chat", *, stream: bool = False) -> Told | None:
    """Begin to tell of a call; None while tracing is off."""
    current = tracing.current
    return Told(current, prompt, clock, operation, stream) if current is not None else None


async def told_stream(
    prompt: Prompt, clock: Clock, stream: Callable[[Prompt, Told | None], AsyncGenerator[Chunk, None]]
) -> AsyncGenerator[Chunk, None]:
    """Pass a stream on that is told of, from its first reading to its end."""
    told = begin(prompt, clock, stream=True)
    passing = stream(prompt, told) if told is None else told.through(stream(prompt, told))
    async with aclosing(passing):
        async for chunk in passing:
            yield chunk
