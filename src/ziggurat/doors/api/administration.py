"""/keys, /audit, /webhooks: who may call, what was asked for, and who is told."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field

from ziggurat.doors.api import shapes
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import caller_of, hub_of
from ziggurat.doors.api.keys import EVERY, Key
from ziggurat.errors import UnknownName

router = APIRouter(route_class=Guarded, tags=["access"])
_ADMIN = guarded("admin")


class KeyView(shapes.Answer):
    """An API key, without its text, which is shown once."""

    id: str
    name: str
    role: shapes.Role
    namespace: str
    created_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


class KeyList(shapes.Answer):
    keys: list[KeyView]


class NewKey(KeyView):
    """A key that was just made."""

    key: str = Field(description="Its text. It is shown this once.")


class KeyOrder(shapes.Order):
    """The wish for a key."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    role: shapes.Role
    namespace: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    days: float | None = Field(None, gt=0, le=36_500, description="Days after which it ends; never when null.")


class AuditEntry(shapes.Answer):
    """A verb that someone asked for."""

    n: int
    at: datetime | None
    actor: str
    role: str
    namespace: str
    via: str
    address: str
    action: str
    target: str
    status: int | None = Field(description="Of the answer; null if the server ended meanwhile, or it is under way.")
    detail: str


class AuditPage(shapes.Answer):
    entries: list[AuditEntry]
    next: int | None = Field(description="Give it as `before` for the next page; null on the last one.")


class WebhookView(shapes.Answer):
    """A receiver of the settings."""

    name: str
    url: str
    events: list[str]
    workflows: list[str]
    namespace: str


class DeliveryView(shapes.Answer):
    """A message to a receiver."""

    id: str
    webhook: str
    run: str
    event: str
    created_at: datetime | None
    attempts: int
    next_at: datetime | None = Field(description="When it is tried next; null once it is delivered or given up.")
    delivered_at: datetime | None
    error: str


class WebhookList(shapes.Answer):
    webhooks: list[WebhookView]
    deliveries: list[DeliveryView] = Field(description="The newest messages.")


def _dated(record: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a record's fields, those named as moments."""
    return {
        name: shapes.moment(getattr(record, name)) if name in names else getattr(record, name)
        for name in record.__struct_fields__
    }


_KEY_TIMES = ("created_at", "expires_at", "revoked_at", "used_at")


@router.get("/keys", openapi_extra=_ADMIN)
async def list_keys(request: Request) -> KeyList:
    """List API keys, revoked ones too."""
    keys = [key for key in hub_of(request).keyring.every_key() if caller_of(request).sees(key.namespace)]
    return KeyList(keys=[KeyView(**_dated(key, _KEY_TIMES)) for key in keys])


@router.post("/keys", status_code=201, openapi_extra=_ADMIN)
async def create_key(request: Request, order: KeyOrder) -> NewKey:
    """Make an API key. A caller of one namespace makes keys of that one."""
    who, keyring = caller_of(request), hub_of(request).keyring
    namespace = order.namespace or who.namespace
    if who.namespace not in (EVERY, namespace):
        raise UnknownName(f"There is no namespace {namespace!r} for {who.name!r}; leave it out.")
    lifetime = order.days * 86_400 if order.days is not None else None
    key, text = await asyncio.to_thread(keyring.create, order.name, cast(str, order.role), namespace, lifetime)
    return NewKey(**_dated(key, _KEY_TIMES), key=text)


@router.delete("/keys/{name}", openapi_extra=_ADMIN)
async def revoke_key(request: Request, name: Annotated[str, Path(min_length=1, max_length=100)]) -> KeyView:
    """Revoke an API key, by name or id, and end its logins."""
    keyring = hub_of(request).keyring
    revoked: Key = await asyncio.to_thread(keyring.revoke, name, caller_of(request).namespace)
    return KeyView(**_dated(revoked, _KEY_TIMES))


@router.get("/audit", openapi_extra=_ADMIN)
async def list_audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=0, le=2**62, description="The `next` of the page before.")] = None,
    action: Annotated[str, Query(max_length=100, description='A verb, such as "cancel_run".')] = "",
    actor: Annotated[str, Query(max_length=100, description="The name of a key.")] = "",
) -> AuditPage:
    """List the verbs that were asked for over HTTP, newest first, refused ones too."""
    found = hub_of(request).audit.page(caller_of(request).namespace, limit=limit, before=before, action=action, actor=actor)
    entries = [AuditEntry(**_dated(entry, ("at",))) for entry in found]
    return AuditPage(entries=entries, next=found[-1].n if len(found) == limit else None)


@router.get("/webhooks", openapi_extra=guarded("admin", system=True))
async def list_webhooks(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> WebhookList:
    """List the receivers of the settings, and the newest messages to them."""
    webhooks = hub_of(request).webhooks
    receivers = [
        WebhookView(name=name, url=one.url, events=list(one.events), workflows=one.workflows, namespace=one.namespace)
        for name, one in webhooks.names().items()
    ]
    times = ("created_at", "next_at", "delivered_at")
    return WebhookList(webhooks=receivers, deliveries=[DeliveryView(**_dated(one, times)) for one in webhooks.newest(limit)])


@router.post("/webhooks/{id}/redeliver", openapi_extra=guarded("admin", system=True))
async def redeliver_webhook(request: Request, message: Annotated[str, Path(alias="id", max_length=100)]) -> shapes.Count:
    """Send a webhook message again."""
    await hub_of(request).webhooks.again(message)
    return shapes.Count(count=1)
