"""Prompts shaped to what models can do, the answers shaped back, and values drawn from schemas."""

from __future__ import annotations

import enum
import json
import random
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from ziggurat.errors import ContextTooLong, EndpointFailed, RequestRejected
from ziggurat.inference import capabilities as table
from ziggurat.inference.backends.sample_json import sample
from ziggurat.inference.interface import Capabilities, CapabilityOverrides
from ziggurat.inference.shaping import shape, strict_schema
from ziggurat.inference.tokens import TokenEstimator, raw_tokens
from ziggurat.records import ChatMessage, Chunk, Completion, Prompt, Tool, ToolCall

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = Tool(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})


def user(content: str = "hi", **more: Any) -> Prompt:
    return Prompt(messages=[ChatMessage(role="user", content=content)], **more)


def system(prompt: Prompt) -> str:
    first = prompt.messages[0]
    assert first.role == "system" and isinstance(first.content, str)
    return first.content


def test_a_plain_prompt_is_left_alone() -> None:
    prompt = user(temperature=0.5, max_tokens=5)
    assert shape(prompt, Capabilities()) == (prompt, None)


def test_fields_that_a_model_does_not_take_are_moved_or_left_out() -> None:
    limited = Capabilities(sampling=False, max_tokens_field="max_completion_tokens", session_field="prompt_cache_key")
    shaped, _ = shape(user(temperature=0.5, top_p=1.0, max_tokens=5, session="s", extra={"x": 1}), limited)
    assert (shaped.temperature, shaped.top_p, shaped.max_tokens) == (None, None, None)
    assert shaped.extra == {"max_completion_tokens": 5, "prompt_cache_key": "s", "x": 1}


def test_a_schema_is_left_to_an_endpoint_that_knows_schemas() -> None:
    shaped, back = shape(user(schema=SCHEMA), Capabilities(structured="json_schema"))
    assert shaped.schema == SCHEMA and back is None


def test_strict_mode_gets_a_strict_schema_or_none_at_all() -> None:
    shaped, _ = shape(user(schema=SCHEMA), Capabilities(strict=True))
    form = shaped.extra["response_format"]["json_schema"]
    assert shaped.schema is None and form["strict"] and form["schema"]["additionalProperties"] is False
    free = {"type": "object", "properties": {"d": {"type": "object", "additionalProperties": {"type": "string"}}}}
    shaped, _ = shape(user(schema=free), Capabilities(strict=True))
    assert shaped.extra["response_format"]["json_schema"]["strict"] is False


def test_a_tool_that_must_be_called_carries_the_answer() -> None:
    shaped, back = shape(user(schema=SCHEMA, schema_name="Label"), Capabilities(structured="tool"))
    assert (shaped.schema, shaped.tool_choice, shaped.tools[0].parameters) == (None, "Label", SCHEMA)
    assert back is not None
    called = Completion(tool_calls=[ToolCall("c", "Label", '{"a":1}')], finish="tool_calls")
    assert back.completion(called) == Completion(text='{"a":1}', finish="stop")
    assert back.completion(Completion(text="I would rather talk")).text == "I would rather talk"
    pieces = [Chunk(tool_calls=[(0, "c", "Label", "")]), Chunk(tool_calls=[(0, "", "", '{"a":1}')]), Chunk(finish="tool_calls")]
    out = [back.chunk(piece) for piece in pieces]
    assert "".join(c.text for c in out) == '{"a":1}' and out[-1].finish == "stop"


@pytest.mark.parametrize(("structured", "form"), [("json_object", {"response_format": {"type": "json_object"}}), ("prompt", {})])
def test_a_schema_in_the_prompt_joins_the_system_message(structured: Any, form: dict[str, Any]) -> None:
    prompt = user(schema=SCHEMA)
    told = Prompt(messages=[ChatMessage(role="system", content="Be brief."), *prompt.messages], schema=SCHEMA)
    for given_prompt in (prompt, told):
        shaped, back = shape(given_prompt, Capabilities(structured=structured))
        assert back is None and shaped.schema is None and shaped.extra == form
        assert "JSON" in system(shaped) and json.dumps(SCHEMA, separators=(",", ":")) in system(shaped)
        assert len(shaped.messages) == 2


def test_tools_by_schema_offer_a_call_or_an_answer() -> None:
    shaped, back = shape(user(tools=[ADD]), Capabilities(tools="schema"))
    assert shaped.tools == [] and shaped.schema is not None and back is not None
    assert [list(form["properties"]) for form in shaped.schema["anyOf"]] == [["tool", "arguments"], ["answer"]]
    assert "add(a: integer): Adds." in system(shaped)
    called = back.completion(Completion(text='{"tool": "add", "arguments": {"a": 1}}'))
    assert (called.text, called.finish, called.tool_calls) == ("", "tool_calls", [ToolCall("call_1", "add", '{"a":1}')])
    assert back.completion(Completion(text='{"answer": "42"}')).text == "42"
    assert back.completion(Completion(text="no JSON at all")).text == "no JSON at all"
    cut = back.completion(Completion(text='{"answer": "forty-t\\u00', finish="length"))
    assert (cut.text, cut.finish) == ("forty-t", "length")


def test_tools_by_schema_are_turned_back_in_a_stream() -> None:
    _, back = shape(user(tools=[ADD]), Capabilities(tools="schema"))
    assert back is not None
    out = [back.chunk(c) for c in (Chunk(text='{"tool": "add", '), Chunk(text='"arguments": {}}'), Chunk(finish="stop"))]
    assert [c.text for c in out] == ["", "", ""]
    assert out[-1].tool_calls == [(0, "call_1", "add", "{}")] and out[-1].finish == "tool_calls"


@pytest.mark.parametrize(("choice", "forms"), [("required", ["tool"]), ("add", ["tool"]), ("none", [])])
def test_tools_by_schema_heed_the_choice(choice: str, forms: list[str]) -> None:
    shaped, back = shape(user(tools=[ADD], tool_choice=choice), Capabilities(tools="schema"))
    assert (shaped.schema is not None) == bool(forms) == (back is not None)
    if shaped.schema is not None:
        assert "anyOf" not in shaped.schema and next(iter(shaped.schema["properties"])) == "tool"


def test_a_conversation_with_tools_becomes_one_that_any_model_reads_and_new_calls_get_new_ids() -> None:
    messages = [
        ChatMessage(role="user", content="1+1?"),
        ChatMessage(role="assistant", tool_calls=[ToolCall("call_1", "add", '{"a":1}')]),
        ChatMessage(role="tool", content="2", tool_call_id="call_1", name="add"),
    ]
    shaped, back = shape(Prompt(messages=messages, tools=[ADD]), Capabilities(tools="schema"))
    assert [m.role for m in shaped.messages] == ["system", "user", "assistant", "user"]
    assert shaped.messages[2].content == '{"tool": "add", "arguments": {"a":1}}'
    assert shaped.messages[3].content == "Result of add: 2"
    assert back is not None
    assert back.completion(Completion(text='{"tool": "add", "arguments": {}}')).tool_calls[0].id == "call_2"


def test_definitions_of_several_tools_do_not_collide() -> None:
    def tool(name: str, type_: str) -> Tool:
        parameters = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"type": type_}}}
        return Tool(name=name, parameters=parameters)

    shaped, _ = shape(
        user(tools=[tool("a", "string"), tool("b", "integer")], tool_choice="required"), Capabilities(tools="schema")
    )
    assert shaped.schema is not None
    assert shaped.schema["$defs"] == {"a.P": {"type": "string"}, "b.P": {"type": "integer"}}
    for seed in range(20):
        said = sample(shaped.schema, random.Random(seed))
        assert isinstance(said["arguments"]["p"], str if said["tool"] == "a" else int)


def test_a_refusal_weakens_what_it_names_and_repeated_it_ends() -> None:
    def refused(text: str, capabilities: Capabilities) -> Capabilities | None:
        return table.weakened(capabilities, RequestRejected(text))

    start = Capabilities()
    weaker = refused("This response_format type is unavailable now", start)
    assert weaker is not None and weaker.structured == "json_object"
    weakest = refused("response_format is not supported", weaker)
    assert weakest is not None and weakest.structured == "prompt"
    assert refused("response_format is not supported", weakest) is None
    cold = refused("Unsupported value: 'temperature' does not support 0.5 with this model.", start)
    assert cold is not None and not cold.sampling
    assert refused("Unsupported value: 'temperature'", cold) is None
    other = refused("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", start)
    assert other is not None and other.max_tokens_field == "max_completion_tokens"
    assert refused("messages must not be empty", start) is None
    assert table.weakened(start, ContextTooLong("response_format")) is None
    assert table.weakened(start, EndpointFailed("response_format")) is None


def test_the_table_knows_hosts_and_people_correct_it() -> None:
    assert table.of("api.openai.com", "gpt-4o-mini").strict
    assert table.of("api.deepseek.com", "deepseek-chat").structured == "json_object"
    assert not table.of("api.gmi-serving.com", "openai/gpt-5-mini").sampling
    assert table.of("127.0.0.1", "Qwen/Qwen3-8B") == Capabilities()
    corrected = table.corrected(table.of("api.deepseek.com", "x"), CapabilityOverrides(json_schema=True, tools=False, context=10))
    assert (corrected.structured, corrected.tools, corrected.context) == ("json_schema", "schema", 10)


# -- values that fit a schema ----------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    name: Annotated[str, Field(min_length=3, max_length=12)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3,5}$")]
    share: Annotated[float, Field(gt=0, lt=1)]
    count: Annotated[int, Field(ge=-5, le=-1)]
    colour: Colour
    kind: Literal["leaf"] = "leaf"


class Tree(BaseModel):
    leaves: Annotated[list[Leaf], Field(min_length=1, max_length=4)]
    children: list[Tree] = []
    notes: dict[str, int] = {}
    pair: tuple[int, str] = (1, "x")
    tags: Annotated[set[Literal["a", "b", "c"]], Field(min_length=2)] = {"a", "b"}
    maybe: Leaf | None = None


@given(st.integers(0, 2**32))
def test_a_drawn_value_fits_its_schema_and_is_drawn_again_from_the_same_seed(seed: int) -> None:
    schema = Tree.model_json_schema()
    value = sample(schema, random.Random(seed))
    assert Tree.model_validate_json(json.dumps(value)).leaves
    assert sample(schema, random.Random(seed)) == value


@pytest.mark.parametrize("type_", [int, float, str, bool, list[int], dict[str, float], Literal["x"], int | None, Colour])
def test_plain_types_are_drawn(type_: Any) -> None:
    adapter = TypeAdapter[Any](type_)
    for seed in range(30):
        drawn = sample(adapter.json_schema(), random.Random(seed))
        assert json.loads(adapter.dump_json(adapter.validate_python(drawn))) == drawn


@given(st.integers(0, 2**32))
def test_a_strict_schema_allows_nothing_that_the_schema_does_not(seed: int) -> None:
    schema = Leaf.model_json_schema()
    strict = strict_schema(schema)
    assert strict is not None and set(strict["required"]) == set(schema["properties"])
    Leaf.model_validate_json(json.dumps(sample(strict, random.Random(seed))))


def test_what_strict_mode_cannot_say_is_found() -> None:
    assert strict_schema(Tree.model_json_schema()) is None
    assert strict_schema({"type": "object", "properties": {"any": {}}}) is None


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_the_estimate_learns_a_models_ratio() -> None:
    tokens = TokenEstimator()
    prompt = user("word " * 1000)
    raw = raw_tokens(prompt)
    assert tokens.prompt(prompt, "m") == int(raw)
    for _ in range(100):
        tokens.learn(raw, "m", int(raw * 1.5))
    assert tokens.prompt(prompt, "m") == pytest.approx(raw * 1.5, rel=0.02)
    assert tokens.prompt(prompt, "other") == int(raw)


def test_a_chat_template_around_a_short_prompt_teaches_little() -> None:
    tokens = TokenEstimator()
    tokens.learn(2.0, "m", 31)
    assert tokens.prompt(user("word " * 1000), "m") < 1.01 * raw_tokens(user("word " * 1000))
