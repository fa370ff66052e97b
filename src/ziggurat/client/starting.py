"""From a call of a workflow to the wish to start a run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from msgspec import Raw

from ziggurat.program.definitions import Workflow
from ziggurat.records import PRIORITY_NORMAL, StartRequest
from ziggurat.telemetry import tracing
from ziggurat.units import Money, dollars


def start_request(
    definition: Workflow[..., Any],
    payload: bytes,
    *,
    namespace: str,
    id: str = "",
    tags: Mapping[str, str] | None = None,
    priority: int | None = None,
    budget: Money | None = None,
) -> StartRequest:
    """Return the wish to start a run of a workflow, with the workflow's own options where none are given.

    An id is made up if none is given: one of our own choosing makes a start that was cut off safe to repeat.
    """
    options = definition.options_.changed(
        definition.what, tags={**definition.options_.tags, **(tags or {})}, **({"priority": priority} if priority else {})
    )
    return StartRequest(
        workflow=definition.name,
        payload=Raw(payload),
        id=id or f"{definition.name}-{_random_id()}",
        namespace=namespace,
        entry=definition.entry,
        tags=options.tags,
        priority=options.priority or PRIORITY_NORMAL,
        budget_usd=dollars(budget, what=f"budget of {definition.what}") if budget is not None else options.budget,
        trace=tracing.caller(),
    )


def _random_id() -> str:
    """Return 60 bits of chance in letters and digits that are not mistaken for each other."""
    number = secrets.randbits(60)
    return "".join("0123456789abcdefghjkmnpqrstvwxyz"[number >> shift & 31] for shift in range(0, 60, 5))
