"""The namespace of the server: whether it has our search attributes, and making them where we may."""

from __future__ import annotations

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.orchestrator.temporal.wire import SEARCH_ATTRIBUTES
from ziggurat.queues.temporal_link import UNREACHABLE, LinkOptions, unreachable
from ziggurat.telemetry import events

_TYPES = {
    "Keyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "KeywordList": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    "Double": IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE,
}


async def make_searchable(client: Client, link: LinkOptions) -> bool:
    """Say whether runs can carry our search attributes, making missing ones where the server lets us.

    Raises LayerUnreachable if the server or the namespace is not there.
    """
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=link.namespace), retry=True)
    except RPCError as error:
        if error.status != RPCStatusCode.PERMISSION_DENIED:
            raise unreachable(link, error) from error
    try:
        request = ListSearchAttributesRequest(namespace=link.namespace)
        known = (await client.operator_service.list_search_attributes(request)).custom_attributes
        missing = {name: _TYPES[type_] for name, type_ in SEARCH_ATTRIBUTES.items() if name not in known}
        if missing:
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=link.namespace, search_attributes=missing)
            )
        return True
    except RPCError as error:
        if error.status == RPCStatusCode.ALREADY_EXISTS:
            return True  # Another process made them at the same moment.
        if error.status in UNREACHABLE - {RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED}:
            raise unreachable(link, error) from error
        attributes = ", ".join(f"{name} ({type_})" for name, type_ in SEARCH_ATTRIBUTES.items())
        events.NO_SEARCH_ATTRIBUTES(namespace=link.namespace, attributes=attributes, error=error.message)
        return False
