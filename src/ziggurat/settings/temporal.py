"""The settings of a Temporal server, beside its address in [orchestrator] url."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ziggurat.settings.types import SecretValue, Section, endpoint_url


class TemporalSettings(Section):
    """How the Temporal server is reached and used."""

    namespace: str = Field(
        "default", description="The namespace that the runs are in; on Temporal Cloud it holds the account's name too."
    )
    task_queue: str = Field(
        "ziggurat",
        description="The task queue of the workflows and of the queue `default`. Those of other queues begin with it: `ziggurat-cpu` "
        "for the queue `cpu`.",
        pattern=r"^[A-Za-z0-9_.-]+$",
    )
    eager: bool = Field(
        True,
        description="Let Temporal hand the next task of a run, if it is for the queue `default`, to the process that drives the run, where "
        "a pool there wants work. It saves about a quarter of what a task costs the server.",
    )
    api_key: SecretValue | None = Field(
        None, description="The API key, as Temporal Cloud gives it. The connection is then encrypted."
    )
    tls: bool = Field(False, description="Encrypt the connection; implied by an API key or a certificate.")
    server_ca: str | None = Field(None, description="PEM file of the authority that the server's certificate is checked against.")
    client_certificate: str | None = Field(None, description="PEM file of the client's certificate, for mutual TLS.")
    client_key: str | None = Field(None, description="PEM file of the client's private key.")
    server_name: str = Field("", description="The name that the server's certificate must bear, where it is not the address.")
    web_ui: Annotated[str, AfterValidator(endpoint_url)] = Field(
        "",
        description="The address of Temporal's Web UI, such as https://cloud.temporal.io: pages of runs link to it. "
        "That of a server that `ziggurat up` started is known without.",
    )
