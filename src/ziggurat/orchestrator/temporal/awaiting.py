"""Which runs wait for a signal. Temporal does not know: only the worker that drives a run does, and it is asked once for each change.

A run's history grows with whatever happens to it, so that what it waits for is the same while its history is as long. A search
attribute would be an index, and would cost every run that waits for a signal an event of its history, twice.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from ziggurat.errors import UnknownName
from ziggurat.orchestrator.temporal.listing import Listing
from ziggurat.orchestrator.temporal.reading import Reader
from ziggurat.records import Awaited, Run, RunFilter, StepView

#: Waiting runs looked at for one list, the newest first; runs asked side by side; and runs whose answer is remembered.
LOOKED_AT, _AT_ONCE, _REMEMBERED = 1000, 16, 20_000


class Awaiting:
    """Looks for signals that runs wait for.

    Args:
        steps: returns a run's steps, those under way included.
    """

    def __init__(self, reader: Reader, steps: Callable[[str], Awaitable[list[StepView]]]) -> None:
        self._reader, self._steps = reader, steps
        #: (execution, length of its history) → what it waits for.
        self._known: OrderedDict[tuple[str, int], list[Awaited]] = OrderedDict()
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def runs(self, listing: Listing, where: RunFilter) -> list[Run]:
        """Return runs that match and wait for a signal, newest first, with what they wait for."""
        found: list[Run] = []
        if where.status and "waiting" not in where.status:
            return found
        page, looked = replace(where, awaiting=False, status=("waiting",), limit=min(where.limit, LOOKED_AT)), 0
        while len(found) < where.limit and looked < LOOKED_AT:
            waiting = await listing.live_runs(page)
            looked += len(waiting)
            found += [run for run in await asyncio.gather(*map(self._with_signals, waiting)) if run.awaits]
            if len(waiting) < page.limit:
                break
            page = replace(page, after=waiting[-1].id)
        return found[: where.limit]

    async def _with_signals(self, run: Run) -> Run:
        async with self._gate:
            try:
                info = (await self._reader.describe(run.id)).workflow_execution_info
                key = (info.execution.run_id, info.history_length)
                if key in self._known:
                    return replace(run, awaits=self._known[key])
                steps = [step for step in await self._steps(run.id) if step.open]
            except UnknownName:
                return run  # It is gone meanwhile.
        waits = [Awaited(step.step, step.name, step.requested_at) for step in steps if step.kind == "signal"]
        # A run that seems to wait for nothing was asked of a worker that did not answer: it is asked again.
        if steps:
            self._known[key] = waits
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return replace(run, awaits=waits)
