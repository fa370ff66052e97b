"""Durations, money and sizes as people write them: "2m", "$0.05", "20mb"."""

from __future__ import annotations

import re
from datetime import timedelta

from ziggurat.errors import ConfigurationError

#: A duration: seconds as a number, a timedelta, or text such as "250ms", "30s", "2m", "1h30m", "3d", "2w".
Duration = float | int | str | timedelta
#: Money in US dollars: a number, or text such as "$0.05" or "0.05".
Money = float | int | str

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b)?")
_MONEY = re.compile(r"\$?\s*(\d+(?:\.\d*)?|\.\d+)")


def seconds(value: Duration, *, what: str = "duration") -> float:
    """Return a duration in seconds. Raises ConfigurationError naming `what` if it cannot be read or is negative."""
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        text = str(value).strip().lower().replace(" ", "")
        parts = _PART.findall(text)
        if parts and "".join(a + b for a, b in parts) == text:
            number = sum(float(a) * _SECONDS[b] for a, b in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            number = float(text)
        else:
            raise ConfigurationError(f"The {what} {value!r} cannot be read; write it like '30s', '2m', '1h30m' or '3d'.")
    if not 0 <= number < float("inf"):
        raise ConfigurationError(f"The {what} {value!r} must be zero or more, and finite.")
    return number


def dollars(value: Money, *, what: str = "amount") -> float:
    """Return an amount of money in US dollars. Raises ConfigurationError naming `what` if it cannot be read."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        match = _MONEY.fullmatch(str(value).strip())
        if match is None:
            raise ConfigurationError(f"The {what} {value!r} cannot be read; write it like '$0.05'.")
        number = float(match.group(1))
    if not 0 <= number < float("inf"):
        raise ConfigurationError(f"The {what} {value!r} must be zero or more, and finite.")
    return number


def size(value: int | str, *, what: str = "size") -> int:
    """Return a size in bytes from a number or text such as "20mb" or "1GiB". Raises ConfigurationError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(str(value).strip().lower())
    if match is None:
        raise ConfigurationError(f"The {what} {value!r} cannot be read; write it like '512kb', '20mb' or '1gib'.")
    return int(float(match.group(1)) * _BYTES[match.group(2) or "b"])


def human_seconds(value: float) -> str:
    """Return a duration as people say it: 0.004 → "4 ms", 95 → "1m35s"."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    parts: list[str] = []
    left = int(value)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def human_dollars(value: float) -> str:
    """Return an amount with enough digits to tell a cheap call from a free one: 0 → "$0", 0.00042 → "$0.00042"."""
    if value == 0:
        return "$0"
    return f"${value:.2f}" if value >= 0.1 else f"${value:.6f}".rstrip("0")
