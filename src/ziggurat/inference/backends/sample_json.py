"""JSON values that fit a schema, drawn from a seeded generator: what a scripted model answers when it is asked for structure."""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Sequence

# The parser of `re` itself: a public name for it does not exist, and the format has been stable for decades.
from re import _parser as re_parser  # type: ignore[attr-defined]
from typing import Any

#: Nesting beyond which optional parts are left out, so that recursive schemas end.
DEPTH_MAX = 4

_WORDS = (
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbour", "iris", "juniper", "kelp", "lantern",
    "meadow", "nickel", "orchard", "pebble", "quartz", "river", "slate", "thistle", "umber", "valley", "willow", "zinc",
)  # fmt: skip
_FORMATS = {
    "date": "20{y:02d}-{m:02d}-{d:02d}",
    "date-time": "20{y:02d}-{m:02d}-{d:02d}T{h:02d}:{n:02d}:00Z",
    "time": "{h:02d}:{n:02d}:00Z",
    "email": "{w}@example.com",
    "uri": "https://example.com/{w}",
    "url": "https://example.com/{w}",
    "hostname": "{w}.example.com",
    "ipv4": "192.0.2.{d}",
    "duration": "PT{n}M",
}


def sample(schema: Any, rng: random.Random) -> Any:
    """Return a value that fits the JSON schema; the same generator state gives the same value."""
    root = schema if isinstance(schema, dict) else {}
    return _value(schema, root, rng, 0)


def words(count: int, rng: random.Random) -> str:
    """Return a text of so many words."""
    return " ".join(rng.choice(_WORDS) for _ in range(count))


def _value(schema: Any, root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict):
        return words(2, rng)
    if "$ref" in schema:
        return _value(_resolved(schema["$ref"], root), root, rng, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _value(_simplest(schema[key], root, rng, depth), root, rng, depth)
    if "allOf" in schema:
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            merged |= _resolved(part["$ref"], root) if "$ref" in part else part
        return _value(merged, root, rng, depth)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = rng.choice([k for k in kind if k != "null" or depth > DEPTH_MAX] or kind)
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return _MAKERS[kind](schema, root, rng, depth)


def _simplest(choices: Sequence[Any], root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    """Return one of the alternatives; deep down, one that does not nest further, if there is one."""
    if depth > DEPTH_MAX:
        flat = [c for c in choices if isinstance(c, dict) and c.get("type") not in ("object", "array", None)]
        return flat[0] if flat else choices[-1]
    return rng.choice(list(choices))


def _resolved(reference: str, root: dict[str, Any]) -> Any:
    node: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def _object(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    properties = schema.get("properties", {})
    out = {
        name: _value(part, root, rng, depth + 1) for name, part in properties.items() if name in required or depth <= DEPTH_MAX
    }
    free = schema.get("additionalProperties")
    if isinstance(free, dict) and depth <= DEPTH_MAX:
        for _ in range(max(1, schema.get("minProperties", 0) - len(out))):
            out[f"{rng.choice(_WORDS)}{len(out)}"] = _value(free, root, rng, depth + 1)
    return out


def _array(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> list[Any]:
    fixed = [_value(part, root, rng, depth + 1) for part in schema.get("prefixItems", ())]
    least = schema.get("minItems", 0)
    most = schema.get("maxItems", max(least, len(fixed), 0 if depth > DEPTH_MAX else 3))
    items = schema.get("items", {})
    if items is False or (not items and fixed):
        return fixed
    out = list(fixed)
    wanted = rng.randint(max(least, len(fixed)), max(most, least, len(fixed))) if depth <= DEPTH_MAX else max(least, len(fixed))
    for _ in range(200):
        if len(out) >= wanted:
            break
        value = _value(items, root, rng, depth + 1)
        if not schema.get("uniqueItems") or value not in out:
            out.append(value)
    return out


def _string(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> str:
    if "pattern" in schema:
        return _matching(schema["pattern"], rng)
    form = schema.get("format")
    if form == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    if form in _FORMATS:
        parts = {"y": rng.randint(0, 30), "m": rng.randint(1, 12), "d": rng.randint(1, 28), "h": rng.randint(0, 23)}
        return _FORMATS[form].format(**parts, n=rng.randint(0, 59), w=rng.choice(_WORDS))
    text = words(rng.randint(1, 4), rng)
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    while len(text) < least:
        text += " " + rng.choice(_WORDS)
    return text[:most].ljust(least, "x") if most is not None else text


def _integer(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> int:
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        least = schema["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in schema:
        most = schema["exclusiveMaximum"] - 1
    low = int(-(-least // 1)) if least is not None else (int(most // 1) - 100 if most is not None and most < 0 else 0)
    high = int(most // 1) if most is not None else low + 100
    step = schema.get("multipleOf", 1)
    value = rng.randint(low, max(low, high))
    if step != 1 and step:
        value = int(-(-low // step) * step) + int(step) * rng.randint(0, max(0, int((high - low) // step) - 1))
    return value


def _number(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> float:
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    if schema.get("multipleOf"):
        return float(_integer({**schema, "multipleOf": schema["multipleOf"]}, root, rng, depth))
    low = least if least is not None else (most - 100 if most is not None else 0)
    high = most if most is not None else low + 100
    return round(low + (high - low) * rng.uniform(0.1, 0.9), 2) if high - low > 1 else low + (high - low) * rng.uniform(0.1, 0.9)


def _boolean(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> bool:
    return rng.random() < 0.5


def _null(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> None:
    return None


_MAKERS = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "null": _null,
}


# -- strings that match a pattern ------------------------------------------------------------------------------------

_CLASSES = {
    re_parser.CATEGORY_DIGIT: string.digits,
    re_parser.CATEGORY_WORD: string.ascii_lowercase + string.digits,
    re_parser.CATEGORY_SPACE: " ",
    re_parser.CATEGORY_NOT_DIGIT: string.ascii_lowercase,
    re_parser.CATEGORY_NOT_WORD: " -",
    re_parser.CATEGORY_NOT_SPACE: string.ascii_lowercase,
}


def _matching(pattern: str, rng: random.Random) -> str:
    """Return a string that the regular expression matches; assertions other than ^ and $ are not understood."""
    try:
        return _drawn(re_parser.parse(pattern), rng)
    except (re.error, KeyError, ValueError):
        return words(1, rng)


def _drawn(parsed: Any, rng: random.Random) -> str:
    out = ""
    for kind, detail in parsed:
        if kind is re_parser.LITERAL:
            out += chr(detail)
        elif kind is re_parser.NOT_LITERAL:
            out += "a" if detail != ord("a") else "b"
        elif kind is re_parser.ANY:
            out += rng.choice(string.ascii_lowercase)
        elif kind is re_parser.IN:
            out += _member(detail, rng)
        elif kind in (re_parser.MAX_REPEAT, re_parser.MIN_REPEAT):
            least, most, inner = detail
            most = least + 3 if most is re_parser.MAXREPEAT else min(int(most), least + 8)
            out += "".join(_drawn(inner, rng) for _ in range(rng.randint(least, most)))
        elif kind is re_parser.SUBPATTERN:
            out += _drawn(detail[3], rng)
        elif kind is re_parser.BRANCH:
            out += _drawn(rng.choice(detail[1]), rng)
        elif kind is re_parser.CATEGORY:
            out += rng.choice(_CLASSES[detail])
        elif kind is not re_parser.AT:
            raise ValueError(str(kind))
    return out


def _member(items: Any, rng: random.Random) -> str:
    if items and items[0][0] is re_parser.NEGATE:
        excluded = {c for item in items[1:] for c in _members(item)}
        return rng.choice([c for c in string.ascii_lowercase + string.digits + " -_." if c not in excluded])
    return rng.choice([c for item in items for c in _members(item)])


def _members(item: Any) -> str:
    kind, detail = item
    if kind is re_parser.RANGE:
        return "".join(chr(c) for c in range(detail[0], min(detail[1], detail[0] + 255) + 1))
    return chr(detail) if kind is re_parser.LITERAL else _CLASSES[detail]
