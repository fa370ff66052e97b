"""Workflows that only the server knows: their input is checked there."""

from __future__ import annotations

from typing import Any

import msgspec

from ziggurat.assembly.modules import AppRegistry
from ziggurat.codec import Codec
from ziggurat.errors import InvalidData
from ziggurat.program.options import RunOptions


class ServedWorkflow:
    """Stands for a workflow by its name, where its module is not at hand."""

    kind = "workflow"

    def __init__(self, name: str) -> None:
        self.name = name
        #: Of no module here; the server knows where it is.
        self.entry = ""
        self.options_ = RunOptions()
        self.what = f"the workflow {name!r}"
        self.arguments = ServedArguments(self.what)
        self.result: Codec[Any] = Codec(Any, f"The result of {self.what}")


class ServedRegistry(AppRegistry):
    """Knows every workflow by its name."""

    def workflow(self, name: str, entry: str = "") -> Any:
        return ServedWorkflow(name)


class ServedArguments:
    """Passes arguments on as they are."""

    def __init__(self, what: str) -> None:
        self._what = what
        #: The parameters and their types: only the server knows them.
        self.fields: dict[str, Any] = {}

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the JSON object of a call. Raises InvalidData for arguments without names."""
        if args:
            raise InvalidData(f"The arguments of {self._what} must be named: only the server knows its parameters.")
        return self.encode_input(kwargs)

    def encode_input(self, value: Any) -> bytes:
        """Return input that a person gave as JSON. Raises InvalidData if it is none."""
        if not isinstance(value, dict):
            raise InvalidData(f"The input of {self._what} must be a JSON object whose keys are its parameters.")
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidData(f"The input of {self._what} cannot be written as JSON: {error}.") from error
