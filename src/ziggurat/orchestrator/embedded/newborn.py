"""Records of runs that are about to be: ids, and the first record of a run."""

from __future__ import annotations

import random
import secrets

from msgspec import Raw

from ziggurat.records import Run, StartRequest

#: Seeded by the system once: reading its entropy for every id costs more than all else in a start.
_chance = random.Random(secrets.randbits(128))
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(workflow: str, now: float) -> str:
    """Return a new run id: the workflow's name, then 40 bits of time and 30 of chance in base 32, so that ids sort by age."""
    number = (int(now * 1000) & (1 << 40) - 1) << 30 | _chance.getrandbits(30)
    return f"{workflow}-" + "".join([_ALPHABET[number >> shift & 31] for shift in range(65, -1, -5)])


def new_run(request: StartRequest, now: float, parent: str = "", parent_step: int = 0) -> Run:
    """Return the record of a run that starts now."""
    return Run(
        id=request.id or new_id(request.workflow, now),
        workflow=request.workflow,
        status="running",
        payload=request.payload,
        namespace=request.namespace,
        entry=request.entry,
        tags=request.tags,
        priority=request.priority,
        budget_usd=request.budget_usd,
        created_at=now,
        started_at=now,
        parent=parent,
        parent_step=parent_step,
        trace=request.trace,
    )


def fork_run(origin: Run, now: float, id: str, payload: Raw | None) -> Run:
    """Return the record of a run that is forked from another now: its input, or `payload`, and its chance."""
    return Run(
        id=id or new_id(origin.workflow, now),
        workflow=origin.workflow,
        status="running",
        payload=payload if payload is not None else origin.payload,
        namespace=origin.namespace,
        entry=origin.entry,
        tags=origin.tags,
        priority=origin.priority,
        budget_usd=origin.budget_usd,
        created_at=now,
        started_at=now,
        forked_from=origin.id,
        generation=origin.generation,
        seed=origin.seed or origin.id,
    )
