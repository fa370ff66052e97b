"""The reference of the settings, made from the models that read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from ziggurat.settings.table import FILE_NAME, FILE_VARIABLE, PREFIX, Settings, leaves, model_of, value_type
from ziggurat.settings.types import Shown

_PLACEHOLDERS = {"models": "ALIAS", "prices": "MODEL"}


def settings_reference() -> str:
    """Return the reference of all settings as Markdown: a table for each section, with name, type, default and meaning."""
    lines = [
        "# Settings",
        "",
        "This page is made from the models that read the settings.",
        "",
        f"Settings are read from `{FILE_NAME}` in the current folder, or from the file that `--config` or `{FILE_VARIABLE}` names.",
        f"Every setting can also be given as a variable, which wins: `{PREFIX}SECTION__KEY`, for example",
        f"`{PREFIX}QUEUE__BACKEND=sqlite` or `{PREFIX}WORKERS__DEFAULT__MAX=8`. Lists are separated by commas there.",
        'Durations are written like `"30s"`, `"2m"`, `"1h30m"`, `"3d"`; sizes like `"20mb"` or `"1gib"`; relative paths are relative',
        'to the file. A secret is never written: put it into a variable and write `"env:NAME"`.',
        "",
    ]
    for name, field in Settings.model_fields.items():
        lines += _section_reference(name, field.annotation)
    return "\n".join(lines).rstrip() + "\n"


def _section_reference(prefix: str, annotation: Any) -> Iterator[str]:
    inner_type = value_type(annotation)
    if inner_type is not None:
        prefix += f".{_PLACEHOLDERS.get(prefix.rpartition('.')[2], 'NAME')}"
    model = model_of(inner_type if inner_type is not None else annotation)
    if model is None:
        return
    yield from (f"## `[{prefix}]`", "", " ".join((model.__doc__ or "").split()), "")
    inner: list[str] = []
    rows: list[str] = []
    for name, field in model.model_fields.items():
        nested = model_of(field.annotation) or model_of(value_type(field.annotation))
        if nested is not None:
            inner += _section_reference(f"{prefix}.{name}", field.annotation)
        else:
            shown = _type_name(field.annotation, list(field.metadata))
            default = "required" if field.is_required() else _toml(field.default, shown)
            rows.append(f"| `{name}` | {shown} | {default} | {field.description} |")
    if rows:
        yield from ("| Name | Type | Default | Meaning |", "|---|---|---|---|", *rows, "")
    yield from inner


_NAMES: dict[Any, str] = {str: "string", int: "whole number", float: "number", bool: "true or false"}


def _type_name(annotation: Any, metadata: list[Any]) -> str:
    shown = [m for _, extra in leaves(annotation, metadata) for m in extra if isinstance(m, Shown)]
    if shown:
        return str(shown[0])
    (leaf, _), *_ = leaves(annotation, metadata)
    if get_origin(leaf) is list:
        return "list of strings"
    if get_origin(leaf) is Literal:
        return " \\| ".join(f'"{choice}"' for choice in get_args(leaf))
    return "table" if get_origin(leaf) is dict else _NAMES[leaf]


def _toml(value: Any, shown: str) -> str:
    """Return a default as the file would hold it."""
    if value is None:
        return "none"
    if shown == "duration":
        unit, length = next((u, n) for u, n in (("h", 3600), ("m", 60), ("s", 1)) if (value % n == 0 and value >= n) or n == 1)
        return f'`"{value / length:g}{unit}"`'
    if shown == "size":
        return f'`"{value // 2**20}mib"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        return f"`{value:_}`"
    if isinstance(value, list):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return "`{}`" if isinstance(value, dict) else f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"
