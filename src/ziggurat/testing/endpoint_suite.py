"""The conformance suite of endpoints: every promise of `ziggurat.inference.interface.Endpoint`, one test each.

It needs pytest with pytest-asyncio in its auto mode. To run it over an endpoint, fill the hooks:

    from ziggurat.testing.endpoint_suite import EndpointSuite

    class TestMyEndpoint(EndpointSuite):
        upstream = "my-model"

        async def make_endpoint(self, **config): return create(EndpointConfig(name="mine", **config))

An endpoint whose failures can be staged subclasses `EndpointFaultSuite` instead. No test looks at how good an answer is: small models are
endpoints too.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
from pydantic import BaseModel, Field

from ziggurat.errors import (
    AuthenticationFailed,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    RateLimited,
    RequestRejected,
)
from ziggurat.inference.interface import Endpoint, ModelConfig
from ziggurat.inference.retrying import RetryOptions
from ziggurat.inference.router import Router
from ziggurat.program import llm
from ziggurat.records import ChatMessage, Chunk, EmbeddingPrompt, Prompt, Tool

#: What each staged fault must be, and whether the call may have been billed.
FAULTS: dict[str, tuple[type[InferenceError], bool]] = {
    "rate_limited": (RateLimited, False),
    "failed": (EndpointFailed, False),
    "nonsense": (EndpointFailed, False),
    "timeout": (EndpointUnreachable, True),
    "cut": (EndpointFailed, True),
    "unauthorized": (AuthenticationFailed, False),
    "not_found": (ModelNotFound, False),
    "rejected": (RequestRejected, False),
}


class Label(BaseModel):
    """What the structured tests ask for."""

    kind: Literal["invoice", "letter", "report"]
    pages: Annotated[int, Field(ge=1, le=99)]
    urgent: bool


def prompt(text: str = "Name a colour.", **more: Any) -> Prompt:
    """Return a prompt of one user message, with a short answer."""
    more.setdefault("max_tokens", 12)
    return Prompt(messages=[ChatMessage(role="user", content=text)], **more)


class EndpointSuite(ABC):
    """Every promise of an endpoint. Subclass it and fill the hooks."""

    #: A model that the endpoint serves, and one that it does not; None if it serves whatever is named.
    upstream = "m"
    unknown: str | None = None
    #: The endpoint has embeddings of the model.
    embeds = True
    #: A prompt that takes the endpoint seconds, so that it can be cancelled in the middle.
    long = prompt("Write a very long story.", max_tokens=400)

    @abstractmethod
    async def make_endpoint(self) -> Endpoint:
        """Return an endpoint that works."""

    async def make_slow(self) -> Endpoint:
        """Return an endpoint that takes seconds over `long`."""
        return await self.make_endpoint()

    @pytest.fixture
    async def endpoint(self) -> AsyncIterator[Endpoint]:
        made = await self.make_endpoint()
        yield made
        await made.close()

    def router(self, endpoint: Endpoint) -> Router:
        """Return a router with this endpoint alone, which does not retry."""
        model = ModelConfig(routes=[f"{endpoint.name}:{self.upstream}"])
        return Router({endpoint.name: endpoint}, {"default": model}, options=RetryOptions(attempts=1, limited_attempts=1))

    async def collected(self, endpoint: Endpoint, asked: Prompt) -> list[Chunk]:
        return [chunk async for chunk in endpoint.stream(asked, self.upstream)]

    # -- answers -----------------------------------------------------------------------------------------------------

    async def test_a_whole_answer_has_text_a_finish_and_a_usage(self, endpoint: Endpoint) -> None:
        answer = await endpoint.complete(prompt(), self.upstream)
        assert answer.text
        assert answer.finish in ("stop", "length")
        assert answer.usage.calls == 1
        assert answer.usage.input_tokens > 0
        assert answer.usage.output_tokens > 0

    async def test_a_stream_has_text_one_finish_and_a_usage(self, endpoint: Endpoint) -> None:
        chunks = await self.collected(endpoint, prompt())
        assert "".join(c.text for c in chunks)
        assert len([c for c in chunks if c.finish is not None]) == 1
        ended = next(number for number, c in enumerate(chunks) if c.finish is not None)
        assert not any(c.text or c.tool_calls for c in chunks[ended + 1 :])
        usages = [c.usage for c in chunks if c.usage is not None]
        assert usages
        assert usages[-1].calls == 1
        assert usages[-1].output_tokens > 0

    async def test_a_stream_and_a_whole_answer_say_the_same(self, endpoint: Endpoint) -> None:
        asked = prompt("Count to three.", temperature=0.0, seed=7)
        first = await endpoint.complete(asked, self.upstream)
        other = await self.make_endpoint()
        try:
            chunks = await self.collected(other, asked)
        finally:
            await other.close()
        assert "".join(c.text for c in chunks) == first.text

    async def test_embeddings_are_one_vector_a_text_in_order(self, endpoint: Endpoint) -> None:
        asked = EmbeddingPrompt(inputs=["a red fox", "stock prices", "a red fox"])
        if not self.embeds:
            with pytest.raises(ModelNotFound):
                await endpoint.embed(asked, self.upstream)
            return
        found = await endpoint.embed(asked, self.upstream)
        first, second, third = found.vectors
        assert first == pytest.approx(third, abs=1e-3)
        assert first != pytest.approx(second, abs=1e-3)
        assert len(first) == len(second) > 1
        assert (found.usage.calls, found.usage.output_tokens) == (1, 0)
        assert found.usage.input_tokens > 0

    async def test_max_tokens_ends_an_answer_with_length(self, endpoint: Endpoint) -> None:
        asked = prompt("Write a long story about the sea.", max_tokens=3)
        assert (await endpoint.complete(asked, self.upstream)).finish == "length"
        assert [c.finish for c in await self.collected(endpoint, asked) if c.finish] == ["length"]

    async def test_a_conversation_is_understood(self, endpoint: Endpoint) -> None:
        messages = [
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content="Hello."),
            ChatMessage(role="assistant", content="Hello!"),
            ChatMessage(role="user", content=[{"type": "text", "text": "How are you? Ä€🙂"}]),
        ]
        assert (await endpoint.complete(Prompt(messages=messages, max_tokens=8), self.upstream)).text

    # -- structure, through the router and the program's own door ----------------------------------------------------

    async def test_an_answer_is_held_to_a_schema(self, endpoint: Endpoint) -> None:
        llm.use_models(self.router(endpoint))
        try:
            label = await llm.parse(Label, "A letter of two pages, urgent.", max_tokens=200)
            plain = await llm.parse(bool, "Is water wet?", max_tokens=200)
        finally:
            llm.use_models(None)
        assert isinstance(label, Label)
        assert isinstance(plain, bool)

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_a_tool_that_is_required_is_called_with_arguments_that_fit(self, endpoint: Endpoint, streamed: bool) -> None:
        arguments = {
            "type": "object",
            "properties": {"kind": {"enum": ["rain", "snow"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["kind", "days"],
            "additionalProperties": False,
        }
        tool = Tool(name="forecast", description="Forecasts the weather.", parameters=arguments)
        asked = prompt("Will it rain in the next two days?", tools=[tool], tool_choice="required", max_tokens=80)
        router = self.router(endpoint)
        if streamed:
            pieces = [piece async for chunk in router.stream(asked) for piece in chunk.tool_calls]
            name, written = "".join(p[2] for p in pieces if p[0] == 0), "".join(p[3] for p in pieces if p[0] == 0)
        else:
            call = (await router.complete(asked)).tool_calls[0]
            name, written = call.name, call.arguments
        given = msgspec.json.decode(written)
        assert name == "forecast"
        assert given["kind"] in ("rain", "snow")
        assert 1 <= given["days"] <= 9

    async def test_a_tools_result_is_answered(self, endpoint: Endpoint) -> None:
        tool = Tool(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
        router = self.router(endpoint)
        first = prompt("Add 1.", tools=[tool], tool_choice="required", max_tokens=80)
        call = (await router.complete(first)).tool_calls[0]
        said = [
            *first.messages,
            ChatMessage(role="assistant", tool_calls=[call]),
            ChatMessage(role="tool", content="2", tool_call_id=call.id, name=call.name),
        ]
        answer = await router.complete(Prompt(messages=said, tools=[tool], tool_choice="none", max_tokens=16))
        assert answer.text
        assert not answer.tool_calls

    # -- ends --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_the_prompts_time_is_kept(self, streamed: bool) -> None:
        slow = await self.make_slow()
        asked = msgspec.structs.replace(self.long, timeout=0.05)
        with pytest.raises(EndpointUnreachable) as caught:
            await (self.collected(slow, asked) if streamed else slow.complete(asked, self.upstream))
        assert caught.value.retryable
        await self.works(slow)

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_a_cancelled_call_ends_and_leaves_the_endpoint_well(self, streamed: bool) -> None:
        slow = await self.make_slow()
        call = asyncio.ensure_future(self.collected(slow, self.long) if streamed else slow.complete(self.long, self.upstream))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await self.works(slow)

    async def test_a_stream_that_nobody_reads_on_ends_and_leaves_the_endpoint_well(self) -> None:
        slow = await self.make_slow()
        stream = slow.stream(msgspec.structs.replace(self.long, timeout=60.0), self.upstream)
        await anext(stream)
        await stream.aclose()
        await self.works(slow)

    async def works(self, endpoint: Endpoint) -> None:
        assert (await endpoint.complete(prompt(max_tokens=3), self.upstream)).usage.calls == 1
        await endpoint.close()

    async def test_many_calls_at_once_are_all_answered(self, endpoint: Endpoint) -> None:
        answers = await asyncio.gather(
            *(endpoint.complete(prompt(f"Say {number}.", max_tokens=4), self.upstream) for number in range(6)),
            *(self.collected(endpoint, prompt(f"Say {number}.", max_tokens=4)) for number in range(3)),
        )
        assert len(answers) == 9

    async def test_loops_in_other_threads_use_the_same_endpoint(self, endpoint: Endpoint) -> None:
        texts: list[str] = []

        async def call() -> None:
            texts.append((await endpoint.complete(prompt(max_tokens=4), self.upstream)).text)

        threads = [threading.Thread(target=lambda: asyncio.run(call())) for _ in range(3)]
        for thread in threads:
            thread.start()
        await call()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert len(texts) == 4
        assert all(texts)

    async def test_a_closed_endpoint_opens_anew(self, endpoint: Endpoint) -> None:
        for _ in range(2):
            assert (await endpoint.complete(prompt(max_tokens=3), self.upstream)).usage.calls == 1
            await endpoint.close()

    # -- what it says of itself --------------------------------------------------------------------------------------

    async def test_it_lists_its_models_and_tells_its_health_in_a_sentence(self, endpoint: Endpoint) -> None:
        assert self.upstream in await endpoint.models()
        health = await endpoint.check()
        assert health.endswith(".")
        assert "\n" not in health

    def test_its_capabilities_are_known_without_asking(self) -> None:
        async def ask() -> bool:
            made = await self.make_endpoint()
            try:
                return made.capabilities(self.upstream) == made.capabilities(self.upstream)
            finally:
                await made.close()

        assert asyncio.run(ask())

    async def test_a_model_that_it_does_not_serve_is_not_found(self, endpoint: Endpoint) -> None:
        if self.unknown is None:
            assert (await endpoint.complete(prompt(), "whatever")).text
            return
        with pytest.raises(ModelNotFound, match=self.unknown):
            await endpoint.complete(prompt(), self.unknown)
        with pytest.raises(ModelNotFound, match=self.unknown):
            await anext(endpoint.stream(prompt(), self.unknown))


class EndpointFaultSuite(EndpointSuite):
    """The same, and that failures are errors of their kinds, for endpoints whose failures can be staged."""

    @abstractmethod
    async def make_faulty(self, fault: str) -> Endpoint:
        """Return an endpoint whose every call meets the fault."""

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize("fault", list(FAULTS))
    async def test_every_fault_is_an_error_of_its_kind(self, fault: str, streamed: bool) -> None:
        faulty = await self.make_faulty(fault)
        kind, sent = FAULTS[fault]
        # Short where time itself is the fault, and long enough elsewhere that it is not.
        asked = prompt(timeout=0.3 if fault == "timeout" else 60.0)
        with pytest.raises(InferenceError) as caught:
            await (self.collected(faulty, asked) if streamed else faulty.complete(asked, self.upstream))
        await faulty.close()
        assert isinstance(caught.value, kind)
        assert caught.value.sent == sent
        assert caught.value.endpoint == faulty.name
        assert "\n" not in str(caught.value)
        assert str(caught.value)[-1] in ".!?…"
