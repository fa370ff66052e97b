"""/session: log in with an API key, who one is, log out."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from ziggurat.doors.api import shapes
from ziggurat.doors.api.gate import COOKIE, Guarded, address_of, guarded
from ziggurat.doors.api.hub import hub_of
from ziggurat.doors.api.keys import EVERY, Principal
from ziggurat.doors.api.problems import Refused

router = APIRouter(prefix="/session", route_class=Guarded, tags=["access"])


class LoginOrder(shapes.Order):
    """An API key, to be traded for a cookie."""

    key: Annotated[str, Field(max_length=200)]


class Session(shapes.Answer):
    """Who calls."""

    name: str
    role: shapes.Role
    namespace: str = Field(description='"*" for all of them.')
    via: str = Field(description='How we know: "key", "session", or "loopback" for anyone on this machine.')
    csrf_token: str = Field(description="What verbs of a login must carry as X-CSRF-Token; empty where none is needed.")
    whole_system: bool = Field(description="Whether queues, workers and models are shown too.")


def _session(who: Principal) -> Session:
    return Session(
        name=who.name,
        role=cast(Any, who.role),
        namespace=who.namespace,
        via=who.via,
        csrf_token=who.csrf,
        whole_system=who.namespace == EVERY,
    )


@router.get("", openapi_extra=guarded("viewer"))
async def who_am_i(request: Request) -> Session:
    """Return who calls, and what they may do."""
    return _session(request.state.principal)


@router.post("", openapi_extra=guarded("anyone"), response_model=Session)
async def log_in(request: Request, order: LoginOrder) -> Response:
    """Trade an API key for a cookie. Five wrong ones from one address, and it must wait."""
    hub = hub_of(request)
    throttle, address = request.app.state.gate.logins, address_of(request)
    if wait := throttle.wait(address):
        raise Refused(429, "TooManyLogins", "There were too many wrong keys from this address; try again later.", wait)
    logged_in = await hub.keyring.log_in(order.key.strip(), hub.settings.server.session)
    if logged_in is None:
        throttle.spend(address)
        raise Refused(401, "Unauthorized", "The API key is unknown, revoked or expired; make one with `ziggurat keys create`.")
    who, cookie = logged_in
    response = JSONResponse(_session(who).model_dump(mode="json"))
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int(hub.settings.server.session),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.delete("", status_code=204, openapi_extra=guarded("anyone"), response_class=Response)
async def log_out(request: Request) -> Response:
    """End the login whose cookie is sent."""
    if cookie := request.cookies.get(COOKIE):
        await hub_of(request).keyring.log_out(cookie)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response
