"""Values to JSON and back: what fits travels, what does not is one sentence."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ziggurat import codec as codec_module
from ziggurat.codec import ArgumentsCodec, Codec, type_hints
from ziggurat.errors import DefinitionError, InvalidData, PayloadTooLarge


class Colour(enum.Enum):
    RED = "red"


class Model(BaseModel):
    name: str
    colour: Colour = Colour.RED


@dataclass
class Plain:
    x: int
    tags: list[str]


class Shape(TypedDict):
    sides: int


class Native(msgspec.Struct):
    id: int
    model: Model


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, 3),
        (str, "é\u2028"),
        (None, None),
        (list[int], [1, 2]),
        (dict[str, float], {"a": 0.5}),
        (Model, Model(name="n")),
        (Plain, Plain(1, ["a"])),
        (Shape, {"sides": 3}),
        (Native, Native(1, Model(name="n"))),
        (list[Native], [Native(1, Model(name="n"))]),
        (Colour, Colour.RED),
        (Model | None, None),
        (Any, {"free": [1, None, "x"]}),
    ],
)
def test_what_fits_comes_back_equal(type_: Any, value: Any) -> None:
    codec: Codec[Any] = Codec(type_, "It")
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("type_", "value", "says"),
    [
        (int, "three", "It does not fit int: value"),
        (Model, {"name": 3}, "name: "),
        (Native, {"id": "x"}, "It"),
        (Any, object(), "cannot be written as JSON"),
        (dict[str, int], {"a": "b"}, "a: "),
    ],
)
def test_what_does_not_fit_is_one_sentence(type_: Any, value: Any, says: str) -> None:
    with pytest.raises(InvalidData) as caught:
        Codec(type_, "It").encode(value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_that_does_not_fit_is_refused() -> None:
    for type_ in (int, Native):
        with pytest.raises(InvalidData, match="It does not fit"):
            Codec(type_, "It").decode(b'{"nope": 1}')


def test_a_type_that_is_no_json_is_refused_at_the_definition() -> None:
    with pytest.raises(DefinitionError, match="cannot travel as JSON"):
        Codec(type("Socket", (), {}), "The result of the task 'x'")


def test_a_value_over_the_limit_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "PAYLOAD_LIMIT", 10)
    Codec(str, "It").encode("12345678")
    with pytest.raises(PayloadTooLarge, match="store the bulk"):
        Codec(str, "It").encode("123456789")


def arguments(fn: Any) -> ArgumentsCodec:
    return ArgumentsCodec(fn, "the task 'f'", type_hints(fn) or {})


def test_arguments_travel_by_name_and_defaults_stay_home() -> None:
    def f(a: int, b: str = "x", *, c: float = 1.0) -> None: ...

    codec = arguments(f)
    assert codec.encode((1,), {}) == b'{"a":1}'
    assert codec.decode(codec.encode((1, "y"), {"c": 2})) == ((), {"a": 1, "b": "y", "c": 2.0})


def test_variable_arguments_travel_too() -> None:
    def f(a: int, *rest: int, **named: str) -> None: ...

    codec = arguments(f)
    args, kwargs = codec.decode(codec.encode((1, 2, 3), {"k": "v"}))
    assert (args, kwargs) == ((1, 2, 3), {"k": "v"})


@given(
    st.lists(st.integers(-(2**53), 2**53), max_size=5), st.dictionaries(st.from_regex(r"[xyz]{1,3}", fullmatch=True), st.text())
)
def test_any_call_is_decoded_as_it_was_made(rest: list[int], named: dict[str, str]) -> None:
    def f(a: int = 7, *rest: int, **named: str) -> Any:
        return a, rest, named

    codec = arguments(f)
    args, kwargs = codec.decode(codec.encode((7, *rest), named))
    assert f(*args, **kwargs) == f(7, *rest, **named)


@pytest.mark.parametrize("args", [(), (1, 2, 3), ("x", "y")])
def test_a_call_that_does_not_fit_is_refused(args: tuple[Any, ...]) -> None:
    def f(a: int, b: str) -> None: ...

    with pytest.raises(InvalidData, match="do not fit the task 'f'"):
        arguments(f).encode(args, {})


def test_input_of_a_person_is_an_object_of_parameters_or_of_the_one_models_fields() -> None:
    def f(model: Model) -> None: ...

    codec = arguments(f)
    assert codec.encode_input({"name": "n"}) == codec.encode_input({"model": {"name": "n"}})
    with pytest.raises(InvalidData, match="must be a JSON object"):
        codec.encode_input([1])


def test_an_unknown_parameter_is_named() -> None:
    def f(model: Model, count: int = 1) -> None: ...

    with pytest.raises(InvalidData, match="no parameter 'cuont'; its parameters: model, count"):
        arguments(f).encode_input({"model": {"name": "n"}, "cuont": 2})


def test_positional_only_parameters_are_refused_at_the_definition() -> None:
    def f(a: int, /) -> None: ...

    with pytest.raises(DefinitionError, match="positional-only parameter 'a'"):
        arguments(f)


def test_schemas_describe_what_is_accepted() -> None:
    def f(a: int, b: Model) -> None: ...

    schema = arguments(f).json_schema()
    assert set(schema["required"]) == {"a", "b"}
    assert Codec(Native, "It").json_schema()["$ref"] == "#/$defs/Native"
