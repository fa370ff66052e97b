"""The settings of the HTTP API, of those who call it, and of the webhooks that it sends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ziggurat.settings.types import Bytes, Seconds, SecretValue, Section, endpoint_url

Port = Annotated[int, Field(ge=0, le=65535)]
HttpUrl = Annotated[str, AfterValidator(endpoint_url)]
RunNews = Literal["completed", "failed", "cancelled", "parked", "waiting"]


class WebhookSettings(Section):
    """A receiver that is told of runs that end, or stand still until a person does something."""

    url: HttpUrl = Field(description="Where the message is posted.")
    secret: SecretValue = Field(
        description='What messages are signed with: "whsec_" and at least 24 random bytes in base64, as Standard Webhooks has it.'
    )
    events: list[RunNews] = Field(
        ["completed", "failed", "cancelled"],
        description='What it is told of: ends of runs, "parked" (a budget is spent, or the code contradicts the history) and "waiting" '
        "(for a signal, such as an approval).",
    )
    workflows: list[str] = Field([], description="Workflows whose runs it is told of; all when empty.")
    namespace: str = Field("", description="The tenant whose runs it is told of; all when empty.")


class ServerSettings(Section):
    """The HTTP API and the dashboard, which `ziggurat serve` and `ziggurat up` offer."""

    host: str = Field("127.0.0.1", description="The address to listen on. Off loopback, every caller needs an API key.")
    port: Port = Field(8400, description="The port; where none is set and 8400 is taken, any free one. 0 takes a free one.")
    auth: Literal["auto", "always"] = Field(
        "auto", description='Who needs an API key: with "auto" all but callers on loopback, with "always" everyone.'
    )
    hosts: list[str] = Field(
        [],
        description="Names under which a proxy offers this server; other Host headers are refused. With any, callers need a key.",
    )
    origins: list[str] = Field(
        [], description="Web origins whose pages may call the API (CORS), with an API key; none by default."
    )
    path: str = Field(
        ".ziggurat/control.db", description="The file that holds API keys, sessions, the audit log and webhooks to send."
    )
    body_limit: Bytes = Field(16 * 1024 * 1024, description="Largest body of a request.")
    upload_limit: Bytes = Field(256 * 1024 * 1024, description="Largest upload, all of its files together.")
    session: Seconds = Field(12 * 3600.0, description="How long a login lasts.")
    webhooks: dict[str, WebhookSettings] = Field({}, description="Receivers that are told of runs that end, by name.")


class ClientSettings(Section):
    """How commands and programs reach a system that another machine runs."""

    url: HttpUrl = Field("", description="The server's address, such as http://host:8400; empty for the system of this folder.")
    api_key: SecretValue | None = Field(None, description="The API key that the server wants.")
