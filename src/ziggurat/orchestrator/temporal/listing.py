"""Lists of runs, from Temporal's visibility store, and the deletion of ended ones.

Visibility is a little late: a run shows there some moments after it changed. It knows executions, of which a run that was retried
has several; only the newest counts. It does not sort by start on every store, so what is asked for is narrowed by time until one
fetch holds it. A namespace may hold workflows of other programs: runs are those on our task queue, and nothing else is listed or deleted.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    DeleteWorkflowExecutionRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.errors import Conflict, UnknownName
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.commands import tag_words
from ziggurat.orchestrator.temporal.reading import Reader, listed_run, status_of
from ziggurat.orchestrator.temporal.views import with_live_status
from ziggurat.queues.temporal_link import LinkOptions, unreachable
from ziggurat.records import ENDED, Run, RunFilter

#: Executions fetched in one page, and in all for one list.
_PAGE, _MOST = 1000, 20_000
#: Widths in seconds of the windows, back from now, in which the newest runs are looked for.
_WINDOWS = (3_600.0, 86_400.0, 30 * 86_400.0)
#: Seconds by which a query's moment may be off, for a moment is written to the microsecond; what is found is compared exactly.
_BLUR = 0.001
#: Runs looked through at a time for those of a status that visibility does not know, and the most that a count looks at one by one.
_LOOKED_THROUGH, _COUNTED = 200, 1000

_TEMPORAL_STATUS = {
    "completed": ("Completed",),
    "failed": ("Failed", "TimedOut"),
    "cancelled": ("Canceled", "Terminated"),
}
#: Statuses that Temporal has one name for: Running.
_UNDER_WAY = ("pending", "running", "waiting", "paused", "parked")


class Listing:
    """Looks runs up in visibility.

    Args:
        searchable: whether the namespace has our search attributes.
    """

    def __init__(self, client: Client, link: LinkOptions, reader: Reader, *, searchable: bool) -> None:
        self._client, self._link, self._reader = client, link, reader
        self._searchable = searchable

    async def runs(self, where: RunFilter) -> list[Run]:
        """Return runs that match as far as visibility tells, newest first: it knows no difference between running and waiting."""
        anchor = await self._anchor(where.after)
        found = await self._named(where) if where.ids else await self._newest(self._query(where), where, anchor)
        found.sort(key=lambda run: (run.created_at, run.id), reverse=True)
        if anchor is not None:
            found = [run for run in found if (run.created_at, run.id) < anchor]
        return found[: where.limit] if where.limit >= 0 else found

    async def live_runs(self, where: RunFilter) -> list[Run]:
        """Return runs that match, newest first, each with its status as it is now."""
        wanted = set(where.status)
        if not wanted or not wanted & set(_UNDER_WAY) or wanted >= set(_UNDER_WAY) or where.limit < 0:
            runs = await with_live_status(self._reader, await self.runs(where))
            return [run for run in runs if not wanted or run.status in wanted]
        found: list[Run] = []
        page = replace(where, limit=max(where.limit, _LOOKED_THROUGH))
        while len(found) < where.limit:
            listed = await self.runs(page)
            found += [run for run in await with_live_status(self._reader, listed) if run.status in wanted]
            if len(listed) < page.limit:
                break
            page = replace(page, after=listed[-1].id)
        return found[: where.limit]

    async def count(self, where: RunFilter) -> dict[str, int]:
        """Return how many runs match, by status. Of more than a thousand under way, "running" are all but the paused and the parked."""
        counts: dict[str, int] = {}
        ended = tuple(status for status in where.status if status in ENDED) or (() if where.status else tuple(ENDED))
        live = tuple(status for status in where.status or _UNDER_WAY if status in _UNDER_WAY)
        if self._tells_all(where) and "completed" in ended:
            # No execution that completed is ever followed by another of its run.
            counts["completed"] = await self._count(self._query(replace(where, status=("completed",))))
            ended = tuple(status for status in ended if status != "completed")
        listed = await self.runs(replace(where, status=ended, limit=-1)) if ended else []
        if live:
            query = self._query(replace(where, status=live))
            many = await self._count(query)
            if many > _COUNTED and self._tells_all(where):
                held = {name: await self._count([*query, f"{wire.SEARCH_STATUS} = '{name}'"]) for name in self._held()}
                all_live = {**held, "running": many - sum(held.values())}
                counts |= {status: number for status, number in all_live.items() if status in live}
            else:
                listed += await self.live_runs(replace(where, status=live, limit=-1))
        for run in listed:
            counts[run.status] = counts.get(run.status, 0) + 1
        return {status: number for status, number in counts.items() if number}

    def _held(self) -> tuple[str, ...]:
        return ("paused", "parked") if self._searchable else ()

    def _tells_all(self, where: RunFilter) -> bool:
        """Say whether visibility decides all of a filter by itself."""
        by_hand = where.ids or where.search or where.after or where.parent is not None
        by_hand = by_hand or where.since is not None or where.until is not None
        return not by_hand and (self._searchable or not (where.namespace or where.tags))

    async def _named(self, where: RunFilter) -> list[Run]:
        """Return the runs of these ids that match, as they are now: whoever names runs does not wait for visibility."""
        found: list[Run] = []
        for id_ in dict.fromkeys(where.ids):
            try:
                info = (await self._reader.describe(id_)).workflow_execution_info
            except UnknownName:
                continue
            if info.task_queue in ("", self._link.task_queue) and _matches(run := listed_run(info), where):
                found.append(run)
        return found

    async def _anchor(self, after: str) -> tuple[float, str] | None:
        if not after:
            return None
        run = await self._reader.run(after)
        return run.created_at, run.id

    async def _newest(self, query: list[str], where: RunFilter, anchor: tuple[float, str] | None) -> list[Run]:
        until = anchor[0] if anchor is not None else time.time()
        windows = [until - width for width in _WINDOWS] if where.limit >= 0 and where.since is None else []
        for start in windows:
            narrowed = [*query, f"StartTime >= '{_moment(start)}'"]
            if anchor is None and await self._count(narrowed) < where.limit:
                continue
            runs = await self._fetch(narrowed, where)
            # A run that was taken up again may have been made long before its newest execution started: others are between.
            made = [r for r in runs if r.created_at >= start and (anchor is None or (r.created_at, r.id) < anchor)]
            if len(made) >= where.limit:
                return runs
        return await self._fetch(query, where)

    def _query(self, where: RunFilter) -> list[str]:
        parts = [f"TaskQueue = {_quoted(self._link.task_queue)}", "ExecutionStatus != 'ContinuedAsNew'"]
        if where.workflow:
            parts.append(f"WorkflowType = {_quoted(where.workflow)}")
        if where.since is not None:
            parts.append(f"StartTime >= '{_moment(where.since)}'")
        if where.ended_before is not None:
            parts.append(f"CloseTime < '{_moment(where.ended_before + _BLUR)}'")
        if where.ended_since is not None:
            parts.append(f"CloseTime >= '{_moment(where.ended_since - _BLUR)}'")
        if where.parent:
            parts.append(f"ParentWorkflowId = {_quoted(where.parent)}")
        if where.status:
            wanted = [name for status in where.status for name in _TEMPORAL_STATUS.get(status, ("Running",))]
            parts.append(f"ExecutionStatus IN ({', '.join(_quoted(name) for name in dict.fromkeys(wanted))})")
        if self._searchable:
            if where.namespace:
                parts.append(f"{wire.SEARCH_NAMESPACE} = {_quoted(where.namespace)}")
            parts += [f"{wire.SEARCH_TAGS} = {_quoted(word)}" for word in tag_words(where.tags)]
        return parts

    async def _count(self, query: list[str]) -> int:
        request = CountWorkflowExecutionsRequest(namespace=self._link.namespace, query=" AND ".join(query))
        try:
            return (await self._client.workflow_service.count_workflow_executions(request, retry=True)).count
        except RPCError as error:
            raise unreachable(self._link, error) from error

    async def _executions(self, query: list[str]) -> list[Any]:
        found: list[Any] = []
        token = b""
        while len(found) < _MOST:
            request = ListWorkflowExecutionsRequest(
                namespace=self._link.namespace, page_size=_PAGE, next_page_token=token, query=" AND ".join(query)
            )
            try:
                page = await self._client.workflow_service.list_workflow_executions(request, retry=True)
            except RPCError as error:
                raise unreachable(self._link, error) from error
            found.extend(page.executions)
            token = page.next_page_token
            if not token:
                break
        return found

    async def _fetch(self, query: list[str], where: RunFilter) -> list[Run]:
        executions = await self._executions(query)
        newest = _newest_of(executions)
        if where.status or where.parent or where.ended_before is not None or where.ended_since is not None:
            # An execution that failed may have been retried since, by one with another status, another end, and no parent of Temporal's.
            stale = [e.execution.workflow_id for e in newest.values() if status_of(e.status) in ("failed", "cancelled")]
            for at in range(0, len(stale), 100):
                ids = ", ".join(_quoted(id_) for id_ in stale[at : at + 100])
                newest |= _newest_of(await self._executions([f"WorkflowId IN ({ids})"]))
        runs = [listed_run(execution) for execution in newest.values()]
        return [run for run in runs if _matches(run, where)]

    # -- deleting -------------------------------------------------------------------------------------------------

    async def purge(self, where: RunFilter) -> int:
        """Have ended runs that match deleted, with all their executions; returns how many.

        Raises Conflict if the run that is named has not ended.
        """
        found = await self.runs(replace(where, limit=-1))
        ended = [run for run in found if run.status in ENDED]
        if not ended and where.search and not where.ids:
            try:
                run = await self._reader.run(where.search)
            except UnknownName:
                return 0
            if run.status not in ENDED:
                raise Conflict(f"The run {run.id} is {run.status}; only ended runs can be purged. Cancel it first.")
            ended = [run] if _matches(run, where) else []
        gone = 0
        for at in range(0, len(ended), 20):
            gone += sum(await asyncio.gather(*(self._delete(run.id) for run in ended[at : at + 20])))
        return gone

    async def _delete(self, run: str) -> bool:
        """Ask the server to delete every execution of a run. It does so in its own time, seconds or a minute later.

        Returns False for a run that is gone, or was taken up again since it was listed: deleting would end it.
        """
        self._reader.forget(run)
        try:
            newest = (await self._reader.describe(run)).workflow_execution_info
        except UnknownName:
            return False
        if status_of(newest.status) not in ENDED:
            return False
        older = await self._executions([f"WorkflowId = {_quoted(run)}"])
        for execution in dict.fromkeys([newest.execution.run_id, *(e.execution.run_id for e in older)]):
            request = DeleteWorkflowExecutionRequest(
                namespace=self._link.namespace,
                workflow_execution=WorkflowExecution(workflow_id=run, run_id=execution),
            )
            try:
                await self._client.workflow_service.delete_workflow_execution(request, retry=True)
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise unreachable(self._link, error) from error
        return True


def _newest_of(executions: list[Any]) -> dict[str, Any]:
    """Return the newest execution of each run."""
    newest: dict[str, Any] = {}
    for execution in executions:
        id_ = execution.execution.workflow_id
        known = newest.get(id_)
        if known is None or known.start_time.ToNanoseconds() < execution.start_time.ToNanoseconds():
            newest[id_] = execution
    return newest


def _matches(run: Run, where: RunFilter) -> bool:
    return (
        (not where.status or run.status in where.status or _may_be(run, where))
        and (not where.workflow or run.workflow == where.workflow)
        and (not where.namespace or run.namespace == where.namespace)
        and (where.since is None or run.created_at >= where.since)
        and (where.until is None or run.created_at < where.until)
        and (where.ended_before is None or (run.ended_at is not None and run.ended_at < where.ended_before))
        and (where.ended_since is None or (run.ended_at is not None and run.ended_at >= where.ended_since))
        and (not where.ids or run.id in where.ids)
        and all(run.tags.get(key) == value for key, value in where.tags.items())
        and (where.parent is None or run.parent == where.parent)
        and (not where.search or where.search in run.id)
    )


def _may_be(run: Run, where: RunFilter) -> bool:
    """Say whether a run that visibility calls running may have one of the statuses: those within a run are looked up later."""
    return run.status in ("running", "paused", "parked") and bool(set(_UNDER_WAY) & set(where.status))


def _moment(at: float) -> str:
    return datetime.fromtimestamp(max(at, 0.0), UTC).isoformat().replace("+00:00", "Z")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
