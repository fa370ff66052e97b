"""What attempts took of inference: totals by endpoint, as a worker counts them and a pool adds them up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from ziggurat.records import CallRecord


class Used(Struct, frozen=True, omit_defaults=True):
    """What attempts took of one endpoint since counting began."""

    calls: int = 0
    #: Input and output tokens.
    tokens: int = 0
    #: Seconds that the calls were under way together.
    seconds: float = 0.0
    #: US dollars.
    cost_usd: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.calls + other.calls, self.tokens + other.tokens, self.seconds + other.seconds, self.cost_usd + other.cost_usd
        )


def used_by(calls: Iterable[CallRecord]) -> dict[str, Used]:
    """Return what calls took, by endpoint."""
    used: dict[str, Used] = {}
    for call in calls:
        usage = call.usage
        one = Used(1, usage.input_tokens + usage.output_tokens, call.latency, usage.cost_usd)
        used[call.endpoint] = used[call.endpoint] + one if call.endpoint in used else one
    return used


def together(parts: Iterable[Mapping[str, Used]]) -> dict[str, Used]:
    """Return the sum of several, by endpoint."""
    total: dict[str, Used] = {}
    for part in parts:
        for endpoint, used in part.items():
            total[endpoint] = total[endpoint] + used if endpoint in total else used
    return total
