"""Starting an execution on Temporal."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from msgspec.structs import replace
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import (
    Priority,
    RawValue,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.service import RPCError

from ziggurat.errors import PayloadTooLarge
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.commands import Placement, tag_words
from ziggurat.queues.temporal_link import LinkOptions, unreachable

#: Bytes of a payload that Temporal takes; its own limit is 2 MB for a payload and 4 MB for a call.
PAYLOAD_LIMIT = 1_900_000


async def begin(
    client: Client,
    link: LinkOptions,
    place: Placement,
    run: str,
    workflow: str,
    payload: Raw,
    origin: wire.Origin,
    reuse: WorkflowIDReusePolicy,
) -> None:
    """Start an execution. Raises WorkflowAlreadyStartedError, PayloadTooLarge, LayerUnreachable."""
    origin = replace(origin, about=replace(origin.about, searchable=place.searchable))
    arguments = [wire.json_payload(payload), wire.origin_payload(origin, run)]
    if client.data_converter.payload_codec is not None:
        # Now, so that its size is known; what is sealed already goes through unchanged.
        arguments = await client.data_converter.payload_codec.encode(arguments)
    check_size(arguments, f"The input of the run {run}")
    about = origin.about
    memo: dict[str, Any] = {wire.ABOUT_KEY: RawValue(wire.record_payload(about))}
    if origin.state is not None:
        memo[wire.STATE_KEY] = RawValue(wire.json_payload(origin.state))
    pairs: list[SearchAttributePair[Any]] = []
    if place.searchable:
        pairs.append(SearchAttributePair(SearchAttributeKey.for_keyword(wire.SEARCH_NAMESPACE), about.namespace))
        if about.tags:
            pairs.append(SearchAttributePair(SearchAttributeKey.for_keyword_list(wire.SEARCH_TAGS), tag_words(about.tags)))
    try:
        await client.start_workflow(
            workflow,
            args=[RawValue(argument) for argument in arguments],
            id=run,
            task_queue=link.task_queue,
            id_reuse_policy=reuse,
            memo=memo,
            search_attributes=TypedSearchAttributes(pairs),
            priority=Priority(priority_key=about.priority, fairness_key=about.namespace[:64]),
        )
    except RPCError as error:
        raise unreachable(link, error) from error


def check_size(payloads: list[Payload], what: str) -> None:
    """Raise PayloadTooLarge if Temporal would not take the payloads."""
    size = sum(len(payload.data) for payload in payloads)
    if size > PAYLOAD_LIMIT:
        raise PayloadTooLarge(
            f"{what} is {size:,} bytes of JSON, over the {PAYLOAD_LIMIT:,} that Temporal takes; "
            "store the bulk as an artifact and pass a reference."
        )
