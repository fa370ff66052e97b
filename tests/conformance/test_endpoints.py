"""The endpoint suite over every endpoint of this project: scripted, OpenAI-compatible over real HTTP, and the real local model."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("ziggurat.testing.endpoint_suite")

from tests.conftest import missing_service  # noqa: E402
from ziggurat.errors import ContextTooLong, InferenceError, RequestRejected  # noqa: E402
from ziggurat.inference.backends import local, openai_compatible, scripted, weights  # noqa: E402
from ziggurat.inference.interface import Endpoint, EndpointConfig, Timeouts  # noqa: E402
from ziggurat.records import Prompt  # noqa: E402
from ziggurat.testing.endpoint_suite import EndpointFaultSuite, EndpointSuite, prompt  # noqa: E402
from ziggurat.testing.models import FaultyUpstream, Reply  # noqa: E402


def slow(prompt: Prompt, asked: int) -> Reply | None:
    """Take long over long prompts only, so that the suite can see that the endpoint is well afterwards."""
    long = "very long" in str(prompt.messages[0].content)
    return Reply(text="once upon a time " * 20, first_token=0.0, per_token=0.1) if long else None


class TestScripted(EndpointFaultSuite):
    async def make_endpoint(self) -> Endpoint:
        return scripted.create(EndpointConfig(name="scripted", kind="scripted", options={"models": ["m"]}))

    async def make_slow(self) -> Endpoint:
        return scripted.create(EndpointConfig(name="scripted", kind="scripted"), slow)

    async def make_faulty(self, fault: str) -> Endpoint:
        return scripted.create(EndpointConfig(name="scripted", kind="scripted", options={"faults": {fault: 1.0}}))


class TestOpenAICompatible(EndpointFaultSuite):
    @pytest.fixture(autouse=True)
    async def _upstreams(self) -> AsyncIterator[None]:
        self.running: list[FaultyUpstream] = []
        yield
        for upstream in self.running:
            await upstream.stop()

    async def endpoint_for(self, upstream: FaultyUpstream) -> Endpoint:
        await upstream.start()
        self.running.append(upstream)
        return openai_compatible.create(EndpointConfig(name="up", base_url=upstream.base_url, timeouts=Timeouts(first_token=5.0)))

    async def make_endpoint(self) -> Endpoint:
        return await self.endpoint_for(FaultyUpstream(models=["m"]))

    async def make_slow(self) -> Endpoint:
        return await self.endpoint_for(FaultyUpstream(slow))

    async def make_faulty(self, fault: str) -> Endpoint:
        return await self.endpoint_for(FaultyUpstream(faults={fault: 1.0}))


@pytest.fixture(scope="module")
def local_model() -> Path:
    """The weights of the local model, fetched if they are not here."""
    if importlib.util.find_spec("xllamacpp") is None:
        missing_service("llama.cpp", "pip install 'ziggurat-agents[local]'")
    try:
        return weights.fetch()
    except InferenceError:
        missing_service("The local model", weights.INSTALL)


@pytest.mark.usefixtures("local_model")
class TestLocal(EndpointSuite):
    """The real model. Its weights are fetched once; without them the suite says how to get them."""

    upstream, unknown = local.BUILT_IN, "nope"

    async def make_endpoint(self) -> Endpoint:
        return local.create(EndpointConfig(name="local", kind="local", options={"context": 1024}))

    async def test_a_prompt_beyond_the_context_is_refused_before_anything_is_computed(self) -> None:
        endpoint = await self.make_endpoint()
        with pytest.raises(ContextTooLong, match=r"options\.context"):
            await endpoint.complete(prompt_of(5000), self.upstream)
        with pytest.raises(ContextTooLong):
            await anext(endpoint.stream(prompt_of(5000), self.upstream))
        await endpoint.close()

    async def test_a_schema_that_llama_cpp_cannot_hold_is_refused(self) -> None:
        endpoint = await self.make_endpoint()
        with pytest.raises(RequestRejected, match="schema"):
            await endpoint.complete(prompt_of(5, schema={"type": "nonsense"}), self.upstream)
        await endpoint.close()

    async def test_a_file_that_is_not_there_or_no_model_is_one_sentence(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(b"GGUF but not really")
        options = {"models": {"missing": str(tmp_path / "none.gguf"), "broken": str(broken)}}
        endpoint = local.create(EndpointConfig(name="local", kind="local", options=options))
        for name in ("missing", "broken"):
            with pytest.raises(InferenceError, match=f"{name!r} cannot be used"):
                await endpoint.complete(prompt_of(5), name)
        await endpoint.close()


def prompt_of(words: int, **more: Any) -> Prompt:
    return prompt("word " * words, **more)
