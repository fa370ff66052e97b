"""The seam into the Temporal SDK: a workflow runner that gives every run to a `Machine` instead of the SDK's own asyncio loop.

`WorkflowRunner` and `WorkflowInstance` are the SDK's public extension point for this (its sandbox is one, too). The SDK keeps what it is
good at: polling, sticky caches, payload codecs, matching commands with the history. No sandbox imports anything again for each run; the
guard of `embedded/guard.py` watches what a workflow does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation.workflow_activation_pb2 import WorkflowActivation
from temporalio.bridge.proto.workflow_completion.workflow_completion_pb2 import WorkflowActivationCompletion
from temporalio.common import RawValue
from temporalio.converter import (
    SerializationContext,
    StorageDriverStoreContext,
    StorageDriverWorkflowInfo,
    WorkflowSerializationContext,
)
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from ziggurat.orchestrator.temporal.machine import Machine
from ziggurat.orchestrator.temporal.program import Surroundings


@workflow.defn(dynamic=True, sandboxed=False)
class AnyWorkflow:
    """What the SDK is told that the worker runs: any workflow. The runner below never makes one of these."""

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None:
        raise RuntimeError("The SDK's own runner was used for a Ziggurat workflow.")


class MachineRunner(WorkflowRunner):
    """Makes a machine for every run that comes to this worker."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        #: Those that the SDK has not told to go.
        self._machines: set[Machine] = set()

    def prepare_workflow(self, defn: Any) -> None:
        return None

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        made = MachineInstance(self._surroundings, det.info, self._machines.discard)
        self._machines.add(made.machine)
        return made

    def close(self) -> None:
        """Free the programs that are still in memory. Left to the garbage collector, their `finally` blocks would run outside any run."""
        for machine in list(self._machines):
            machine.discard()


class MachineInstance(WorkflowInstance):
    """A machine as the SDK sees it."""

    def __init__(self, surroundings: Surroundings, info: workflow.Info, forget: Callable[[Machine], None]) -> None:
        self._info, self._forget = info, forget
        self.machine = Machine(surroundings, info.workflow_id, info.workflow_type)
        self._thread: int | None = None

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        self._thread = threading.get_ident()
        try:
            return self.machine.activate(act)
        finally:
            if any(job.HasField("remove_from_cache") for job in act.jobs):
                self._forget(self.machine)
            self._thread = None

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:
        return WorkflowSerializationContext(namespace=self._info.namespace, workflow_id=self._info.workflow_id)

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:
        info = self._info
        return StorageDriverStoreContext(
            target=StorageDriverWorkflowInfo(
                id=info.workflow_id, run_id=info.run_id, type=info.workflow_type, namespace=info.namespace
            )
        )

    def get_info(self) -> workflow.Info:
        return self._info

    def get_thread_id(self) -> int | None:
        return self._thread
