"""Deletes runs that are past their retention, and sweeps what no run refers to any more out of the artifact store.

Temporal deletes runs by itself, after the namespace's retention, and tells nobody; no process of ours sees every run end. So nothing is
counted: a sweep lists the store, and looks into the histories of all executions that are left for what they refer to. Keys stand in
payloads in the open, in encrypted ones too, so a page of history is searched as it comes, and nothing is decoded. A history that is
closed never changes, and is read once.

An object is deleted when it is older than the grace period and two sweeps, one after the other, found nobody who refers to it: Temporal's
lists are a little late, and may miss an execution that closes while they are read. One that was known and is missing from a list counts
until the server says that it is gone. A store is swept by the system that claimed it first, a namespace's task queue, and by no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.artifacts import Library, artifact_keys
from ziggurat.clock import Clock
from ziggurat.errors import LayerUnreachable
from ziggurat.orchestrator.temporal.listing import Listing
from ziggurat.queues.temporal_link import LinkOptions, unreachable
from ziggurat.records import RunFilter
from ziggurat.telemetry import events
from ziggurat.units import human_seconds

#: Seconds between two sweeps, and about as many before the first; between two looks for runs past their retention, at most.
SWEEP_EVERY, RETAIN_EVERY = 3600.0, 300.0
_PAGE, _AT_ONCE, _DELETED_AT_ONCE = 1000, 8, 500


class Cleaner:
    """Cleans up behind runs on Temporal.

    Args:
        library: where artifacts are; None for a system without.
        grace: seconds for which an object that no run refers to is kept.
        retention: seconds for which ended runs are kept; None leaves that to the namespace.
    """

    def __init__(
        self,
        client: Client,
        link: LinkOptions,
        listing: Listing,
        library: Library | None,
        clock: Clock,
        *,
        grace: float,
        retention: float | None,
    ) -> None:
        self._client, self._link, self._listing, self._library, self._clock = client, link, listing, library, clock
        self._grace, self._retention = grace, retention
        #: What closed executions refer to, by their Temporal ids; most refer to nothing.
        self._closed: dict[tuple[str, str], tuple[str, ...]] = {}
        #: What the sweep before found nobody to refer to.
        self._suspected: set[str] = set()
        self._ours: bool | None = None

    # -- now and then ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Clean up now and then, until cancelled."""
        await asyncio.gather(self._retain(), self._sweep_on())

    async def _retain(self) -> None:
        kept = self._retention
        while kept is not None:
            try:
                purged = await self._listing.purge(RunFilter(ended_before=self._clock.time() - kept))
                if purged:
                    events.RUNS_PURGED(runs=purged, age=human_seconds(kept))
            except LayerUnreachable as error:
                events.RUNS_NOT_PURGED(error=error)
            except Exception:
                events.UPKEEP_BROKE(trace_of=True)
            await asyncio.sleep(min(max(kept / 10, 1.0), RETAIN_EVERY))

    async def _sweep_on(self) -> None:
        while True:
            try:
                await self._is_ours()
                # Several processes may serve one system; they need not all look at the same moment.
                await asyncio.sleep(SWEEP_EVERY * random.uniform(0.8, 1.2))
                if swept := await self.sweep():
                    events.ARTIFACTS_SWEPT(objects=swept)
            except LayerUnreachable as error:
                events.ARTIFACTS_NOT_SWEPT(error=error)
                await asyncio.sleep(SWEEP_EVERY / 10)
            except Exception:
                events.UPKEEP_BROKE(trace_of=True)
                await asyncio.sleep(SWEEP_EVERY)

    # -- the store ------------------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Delete what this sweep and the one before found nobody to refer to; returns how many objects. Raises LayerUnreachable."""
        library = self._library
        if library is None or not await self._is_ours():
            return 0
        horizon = self._clock.time() - self._grace
        old = await library.in_thread(lambda: {found.key for found in library.store.list() if found.modified_at < horizon})
        if not old:
            self._suspected = set()
            return 0
        left = old - await self._referred()
        gone = sorted(left & self._suspected)
        self._suspected = left.difference(gone)
        for at in range(0, len(gone), _DELETED_AT_ONCE):
            await library.in_thread(library.delete, gone[at : at + _DELETED_AT_ONCE])
        return len(gone)

    async def _is_ours(self) -> bool:
        library = self._library
        if library is None:
            return False
        if self._ours is None:
            try:
                request = DescribeNamespaceRequest(namespace=self._link.namespace)
                found = await self._client.workflow_service.describe_namespace(request, retry=True)
            except RPCError as error:
                raise unreachable(self._link, error) from error
            name = f"temporal {found.namespace_info.id} {self._link.task_queue}"
            self._ours = await library.in_thread(library.store.claim, name) == name
            if not self._ours:
                events.ARTIFACTS_OF_ANOTHER(store=library.store.url)
        return self._ours

    # -- who refers to what ---------------------------------------------------------------------------------------

    async def _referred(self) -> set[str]:
        """Return the keys that executions refer to. Inputs of schedules refer to none (`schedules.accepted`)."""
        try:
            found: set[str] = set()
            seen: set[tuple[str, str]] = set()
            unread: list[tuple[str, str, bool]] = []
            async for info in self._executions():
                id_ = info.execution.workflow_id, info.execution.run_id
                seen.add(id_)
                found.update(artifact_keys(info.SerializeToString()))  # What is in its memo.
                if id_ not in self._closed:
                    closed = info.status != WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
                    unread.append((*id_, closed))
            for id_ in [id_ for id_ in self._closed if id_ not in seen]:
                if not await self._is_there(*id_):
                    del self._closed[id_]
            for at in range(0, len(unread), _AT_ONCE):
                parts = await asyncio.gather(*(self._keys_of(*one) for one in unread[at : at + _AT_ONCE]))
                found.update(*parts)
            found.update(*self._closed.values())
            return found
        except RPCError as error:
            raise unreachable(self._link, error) from error

    async def _executions(self) -> AsyncIterator[Any]:
        """Yield all executions on our task queue, those that continued as new too: their histories can still be read."""
        token = b""
        while True:
            request = ListWorkflowExecutionsRequest(
                namespace=self._link.namespace,
                page_size=_PAGE,
                next_page_token=token,
                query=f"TaskQueue = '{self._link.task_queue}'",
            )
            page = await self._client.workflow_service.list_workflow_executions(request, retry=True)
            for info in page.executions:
                yield info
            token = page.next_page_token
            if not token:
                return

    async def _keys_of(self, run: str, execution: str, closed: bool) -> set[str]:
        """Return what a history refers to, and remember it if it is closed."""
        found: set[str] = set()
        token = b""
        while True:
            request = GetWorkflowExecutionHistoryRequest(
                namespace=self._link.namespace,
                execution=WorkflowExecution(workflow_id=run, run_id=execution),
                next_page_token=token,
            )
            try:
                page = await self._client.workflow_service.get_workflow_execution_history(request, retry=True)
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    return set()  # It was deleted since it was listed.
                raise
            found.update(artifact_keys(page.history.SerializeToString()))
            token = page.next_page_token
            if not token:
                break
        if closed:
            self._closed[run, execution] = tuple(found)
        return found

    async def _is_there(self, run: str, execution: str) -> bool:
        request = DescribeWorkflowExecutionRequest(
            namespace=self._link.namespace, execution=WorkflowExecution(workflow_id=run, run_id=execution)
        )
        try:
            await self._client.workflow_service.describe_workflow_execution(request, retry=True)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True
