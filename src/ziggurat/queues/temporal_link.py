"""The connection to a Temporal server: where it is, how it is reached, and what its errors mean here.

Both the orchestrator and the queue on Temporal's own task queues stand on it.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from msgspec import Struct
from temporalio.client import Client, TLSConfig
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.errors import LayerUnreachable, QueueUnavailable, SettingsError

#: What a server answers when it is not there, too busy, or about to go; everything else is about the request.
UNREACHABLE = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.UNAUTHENTICATED,
        RPCStatusCode.PERMISSION_DENIED,
    }
)


#: The queue of tasks that name none.
DEFAULT_QUEUE = "default"


class LinkOptions(Struct, frozen=True, kw_only=True):
    """Where a Temporal server is and how it is reached."""

    address: str = "localhost:7233"
    namespace: str = "default"
    #: The first part of the names of all task queues.
    task_queue: str = "ziggurat"
    #: Encrypt the connection. An API key or a certificate implies it.
    tls: bool = False
    #: PEM files: the certificate authority that the server is checked against, and the client's own certificate and key.
    server_ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    #: The name that the server's certificate must bear, where it is not the address.
    server_name: str = ""
    api_key: str = ""

    def __repr__(self) -> str:
        return f"LinkOptions({self.address}, {self.namespace})"


@functools.lru_cache(maxsize=1)
def quiet_runtime() -> Runtime:
    """Return the SDK's runtime of this process, whose core tells errors only: its warnings are about what we report ourselves."""
    return Runtime(
        telemetry=TelemetryConfig(logging=LoggingConfig(filter=TelemetryFilter(core_level="ERROR", other_level="ERROR")))
    )


def task_queue_of(prefix: str, queue: str, region: str = "") -> str:
    """Return the name of the Temporal task queue on which the tasks of one of our queues wait.

    Those of "default" wait under the name on which runs do. Temporal keeps the two kinds apart, and hands a task to the process that
    drives its run, without a round trip, only where both have one name.
    """
    if region:
        return f"{prefix}-{queue}@{region}"
    return prefix if queue == DEFAULT_QUEUE else f"{prefix}-{queue}"


async def connect(options: LinkOptions, codec: PayloadCodec | None = None) -> Client:
    """Return a client of the server. Raises QueueUnavailable, SettingsError."""
    try:
        return await Client.connect(
            options.address,
            namespace=options.namespace,
            api_key=options.api_key or None,
            tls=_tls(options),
            data_converter=DataConverter(payload_codec=codec),
            runtime=quiet_runtime(),
        )
    except (RuntimeError, OSError, RPCError) as error:
        raise QueueUnavailable(
            f"The Temporal server at {options.address} cannot be reached ({_short(error)}{_stranger(error, options)}); start it, "
            "or correct [orchestrator] url and [orchestrator.temporal] in ziggurat.toml."
        ) from error


#: How a connection fails that was made and not understood.
_STRANGE = ("timeout expired", "http2 error", "h2 protocol error", "transport error", "operation was canceled")


def _stranger(error: Exception, options: LinkOptions) -> str:
    """Return what an error means that comes of a connection which was made, and not understood or not wanted."""
    if "code: Unauthenticated" in str(error) or "code: PermissionDenied" in str(error):
        return ": it takes another api_key" if options.api_key else ": it wants an api_key, or a client's certificate"
    if not any(sign in _short(error) for sign in _STRANGE):
        return ""
    if _tls(options):
        return ": what answers there is no Temporal server, takes plain connections only, or wants a client's certificate"
    return ": what answers there is no Temporal server, or wants TLS, which [orchestrator.temporal] tls turns on"


def unreachable(options: LinkOptions, error: RPCError) -> LayerUnreachable:
    """Return the error of a call that the server did not carry out."""
    if error.status == RPCStatusCode.NOT_FOUND and "namespace" in error.message.lower():
        return LayerUnreachable(
            f"The Temporal server at {options.address} has no namespace {options.namespace!r}; create it, or correct "
            "[orchestrator.temporal] namespace."
        )
    return LayerUnreachable(
        f"The Temporal server at {options.address} did not carry out a call ({_short(error)}); try again once it is well."
    )


def _tls(options: LinkOptions) -> bool | TLSConfig:
    wanted = options.tls or bool(options.api_key)
    if not (options.server_ca or options.client_certificate or options.server_name):
        return wanted
    return TLSConfig(
        server_root_ca_cert=_read(options.server_ca),
        client_cert=_read(options.client_certificate),
        client_private_key=_read(options.client_key),
        domain=options.server_name or None,
    )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"The file {path}, which [orchestrator.temporal] names, cannot be read: {error.strerror}.") from error


#: What the TLS library calls a certificate that it refuses, and what it means.
_REFUSED = {
    "UnknownIssuer": "an authority that is not trusted here has signed it; name its certificate in server_ca",
    "NotValidForName": "it bears another name; name that in server_name",
    "Expired": "it has expired",
    "NotValidYet": "it is not valid yet",
}


def _short(error: Exception) -> str:
    refused = re.search(r"InvalidCertificate\((\w+)", str(error))
    if refused is not None:
        why = next((text for sign, text in _REFUSED.items() if refused[1].startswith(sign)), refused[1])
        return f"its certificate is refused: {why}"
    if "CertificateRequired" in str(error):
        return "it asks for a certificate; name one in client_certificate and client_key"
    told = re.search(r'message: "([^"]+)"', str(error))
    if told is not None:
        return (told[1][:1].lower() + told[1][1:]).rstrip(".")
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.rstrip(".")[:300]
