"""Typed values to JSON and back.

A codec is built once for each type and validates on both sides: `encode` refuses a value that does not fit, `decode` refuses JSON
that does not fit. pydantic does the work for pydantic models, dataclasses, TypedDicts, enums and plain JSON types; trees that hold a
msgspec Struct go through msgspec, with hooks for pydantic models inside. Never pickle: JSON can be read, diffed and trusted.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict, is_typeddict

from ziggurat.errors import DefinitionError, InvalidData, PayloadTooLarge

T = TypeVar("T")

#: Payloads above this many bytes of JSON are refused; the settings can move it.
PAYLOAD_LIMIT = 64 * 1024 * 1024


class Codec(Generic[T]):
    """Encodes and decodes values of one type. `what` names the value in error texts; `misfit` is how they begin."""

    def __init__(self, type_: Any, what: str, *, misfit: str = "") -> None:
        self.type = type_
        self.what = what
        self._misfit = misfit or f"{what} does not fit {_name(type_)}"
        self._msgspec = _needs_msgspec(type_)
        if self._msgspec:
            self._decoder = msgspec.json.Decoder(type_, dec_hook=_decode_model)
            self._encoder = msgspec.json.Encoder(enc_hook=_encode_model)
        else:
            try:
                self._adapter: TypeAdapter[T] = TypeAdapter(type_)
            except (PydanticSchemaGenerationError, PydanticUserError) as error:
                raise DefinitionError(
                    f"The type {_name(type_)} of {what} cannot travel as JSON: use a pydantic model, a dataclass, a TypedDict, a "
                    f"msgspec Struct or plain JSON types. ({str(error).splitlines()[0]})"
                ) from error

    def encode(self, value: Any) -> bytes:
        """Return the value's JSON. Raises InvalidData if it does not fit the type, PayloadTooLarge if it is over the limit."""
        try:
            if self._msgspec:
                data = self._encoder.encode(value)
                self._decoder.decode(data)
            else:
                fit = self._adapter.validate_python(value)
                data = self._adapter.dump_json(fit, warnings="error")
        except ValidationError as error:
            raise InvalidData(f"{self._misfit}: {_misfits(error)}.") from error
        except (PydanticSerializationError, msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            raise InvalidData(f"{self.what} cannot be written as JSON: {_first_line(error)}.") from error
        if len(data) > PAYLOAD_LIMIT:
            raise PayloadTooLarge(
                f"{self.what} is {len(data):,} bytes of JSON, over the limit of {PAYLOAD_LIMIT:,}; "
                "store the bulk as an artifact or a file and pass a reference."
            )
        return data

    def decode(self, data: bytes | memoryview | msgspec.Raw) -> T:
        """Return the value that the JSON holds. Raises InvalidData."""
        try:
            if self._msgspec:
                return typing.cast(T, self._decoder.decode(data))
            return self._adapter.validate_json(bytes(data) if not isinstance(data, bytes) else data)
        except ValidationError as error:
            raise InvalidData(f"{self._misfit}: {_misfits(error)}.") from error
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidData(f"{self._misfit}: {_first_line(error)}.") from error

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the type."""
        if self._msgspec:
            return msgspec.json.schema(self.type, schema_hook=_model_schema)
        return self._adapter.json_schema()


class ArgumentsCodec:
    """Encodes a call's arguments as a JSON object keyed by parameter name, and back, for one function.

    `*args` and `**kwargs` travel under their own names as a list and an object. Defaults are not sent: the side that runs the
    function fills them in.
    """

    def __init__(self, fn: Callable[..., Any], what: str, hints: dict[str, Any]) -> None:
        self.signature = inspect.signature(fn)
        self.what = what
        fields: dict[str, Any] = {}
        annotation: Any
        self._positional: list[str] = []
        self._var_positional = self._var_keyword = ""
        for name, parameter in self.signature.parameters.items():
            annotation = hints.get(name, Any)
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._var_positional, annotation = name, _list_of(annotation)
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._var_keyword, annotation = name, _dict_of(annotation)
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                raise DefinitionError(f"{what} has the positional-only parameter {name!r}; arguments travel by name.")
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            fields[name] = annotation if required else typing.NotRequired[annotation]
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                self._positional.append(name)
        self.fields = fields
        make: Any = TypedDict
        arguments = make(f"{fn.__name__}_arguments", fields)
        arguments.__pydantic_config__ = {"extra": "forbid"}
        self._codec: Codec[dict[str, Any]] = Codec(
            arguments, f"The arguments of {what}", misfit=f"The arguments do not fit {what}"
        )
        self._single_model = self._find_single_model(hints)

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the JSON object of a call. Raises InvalidData on a wrong number or type of arguments."""
        if len(args) == len(self._positional) and not kwargs and not self._var_positional:
            return self._codec.encode(dict(zip(self._positional, args, strict=True)))
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidData(f"The arguments do not fit {self.what}: {error}.") from error
        if self._var_positional in bound:
            bound[self._var_positional] = list(bound[self._var_positional])
        return self._codec.encode(bound)

    def encode_input(self, value: Any) -> bytes:
        """Return the JSON object for input that a person gave: an object keyed by parameter, or one model's own fields."""
        if not isinstance(value, dict):
            raise InvalidData(
                f"The input of {self.what} must be a JSON object whose keys are its parameters: {', '.join(self.fields)}."
            )
        name = self._single_model
        if name and name not in value:
            value = {name: value}
        elif not self._var_keyword and (unknown := value.keys() - self.fields.keys()):
            known = ", ".join(self.fields) or "none"
            raise InvalidData(
                f"{self.what[0].upper()}{self.what[1:]} has no parameter {min(unknown)!r}; its parameters: {known}."
            )
        return self._codec.encode(self._codec.decode(msgspec.json.encode(value)))

    def decode(self, data: bytes | msgspec.Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments. Raises InvalidData."""
        values = self._codec.decode(data)
        args: tuple[Any, ...] = ()
        if self._var_positional and values.get(self._var_positional):
            # Positional parameters before *args must be passed by position, and so must have a value.
            args = tuple(values.pop(name, self.signature.parameters[name].default) for name in self._positional) + tuple(
                values.pop(self._var_positional)
            )
        else:
            values.pop(self._var_positional, None)
        if self._var_keyword:
            values.update(values.pop(self._var_keyword, {}))
        return args, values

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments object."""
        schema = self._codec.json_schema()
        schema.pop("title", None)
        return schema

    def _find_single_model(self, hints: dict[str, Any]) -> str:
        """Return the name of the only parameter if it is typed by a model, else "": its fields may then be given directly."""
        if len(self.fields) != 1:
            return ""
        (name,) = self.fields
        type_ = hints.get(name)
        is_model = isinstance(type_, type) and (
            issubclass(type_, (BaseModel, msgspec.Struct)) or dataclasses.is_dataclass(type_) or is_typeddict(type_)
        )
        return name if is_model else ""


def type_hints(fn: Callable[..., Any]) -> dict[str, Any] | None:
    """Return a function's resolved annotations, or None while they name something that is not defined yet.

    Names local to the calling functions count, as in tests that define a model beside the task that takes it; so call this while
    those frames are alive, at decoration.
    """
    try:
        return typing.get_type_hints(fn, include_extras=True)
    except NameError:
        frame = inspect.currentframe()
        while frame is not None:
            try:
                return typing.get_type_hints(fn, localns=dict(frame.f_locals), include_extras=True)
            except NameError:
                frame = frame.f_back
        return None


def _list_of(type_: Any) -> Any:
    return list[type_]


def _dict_of(type_: Any) -> Any:
    return dict[str, type_]


def _needs_msgspec(type_: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Say whether a type's tree holds what pydantic does not take; `seen` holds the ids of the types on the way, for recursive ones.

    That is a msgspec Struct anywhere, and before Python 3.12 a TypedDict of the standard library, which lacks what pydantic reads.
    """
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return True
    if sys.version_info < (3, 12) and typing.is_typeddict(type_):
        return True
    if id(type_) in seen:
        return False
    seen |= {id(type_)}
    if is_typeddict(type_) or dataclasses.is_dataclass(type_):
        return any(_needs_msgspec(hint, seen) for hint in typing.get_type_hints(type_).values())
    return any(_needs_msgspec(argument, seen) for argument in typing.get_args(type_))


def _encode_model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{_name(type(value))} is not a JSON type")


def _model_schema(type_: Any) -> dict[str, Any]:
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        return type_.model_json_schema()
    raise TypeError(f"{_name(type_)} has no JSON schema")


def _decode_model(type_: Any, value: Any) -> Any:
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        try:
            return type_.model_validate(value)
        except ValidationError as error:
            raise ValueError(_misfits(error)) from error
    raise TypeError(f"{_name(type_)} is not a JSON type")


def _misfits(error: ValidationError) -> str:
    """Return the first three misfits as "path: what is wrong"."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(str(part) for part in e['loc']) or 'value'}: {e['msg'].rstrip('.').lower()}" for e in errors[:3]]
    more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
    return "; ".join(shown) + more


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_).replace("typing.", "")
