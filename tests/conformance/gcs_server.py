"""Google Cloud Storage on loopback, as its XML API shows itself to a client that signs with a service account's key.

Nothing installable speaks that API whole: the emulators that there are take uploads through the JSON API only, and obstore writes through
the XML API. That one is S3's by design (https://cloud.google.com/storage/docs/interoperability), so moto answers here, and what differs is
translated: the token, which is checked, and preconditions on generations (https://cloud.google.com/storage/docs/xml-api/reference-headers).
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

EMAIL = "ziggurat@project.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: How moto is told that the caller is the account's own; it checks no signatures.
MOTO_USER = "AWS4-HMAC-SHA256 Credential=gcs/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class GcsServer:
    """The server. Its requests are kept in `asked`, as (method, path and query)."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                return

        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.asked: list[tuple[str, str]] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def make_bucket(self, name: str, keys: Iterable[str] = ()) -> None:
        """Make a bucket, or fill one with empty objects, past the protocol."""
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        storage = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        if name not in storage.buckets:
            storage.create_bucket(name, "us-east-1")
        for key in keys:
            storage.put_object(name, key, b"")

    def write_account(self, path: Path, *, key: rsa.RSAPrivateKey | None = None) -> Path:
        """Write the file that the console gives out for a service account; with another key, one that was revoked."""
        pem = (key or self._key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": EMAIL,
            "token_uri": "https://oauth2.googleapis.com/token",
        }
        path.write_text(json.dumps(account))
        return path

    # -- what is translated ----------------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"] + (f"?{query}" if query else "")))
        if not self._is_signed(environ.pop("HTTP_AUTHORIZATION", "")):
            return _refuse(start, "401 Unauthorized", "AuthenticationRequired")
        generation = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if generation is not None:
            if generation != "0":
                return _refuse(start, "501 Not Implemented", "NotImplemented")
            environ["HTTP_IF_NONE_MATCH"] = "*"

        environ["HTTP_AUTHORIZATION"] = MOTO_USER
        if environ["REQUEST_METHOD"] == "DELETE" and not query and not self._is_there(environ):
            return _refuse(start, "404 Not Found", "NoSuchKey")  # S3 says nothing of objects that were not there.

        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start(status, [(name.lower().replace("x-amz-", "x-goog-"), value) for name, value in headers], *rest)

        return list(self._moto(environ, answer))

    def _is_there(self, environ: dict[str, Any]) -> bool:
        found: list[str] = []
        list(self._moto({**environ, "REQUEST_METHOD": "HEAD"}, lambda status, *_: found.append(status)))
        return found[0].startswith("200")

    def _is_signed(self, authorization: str) -> bool:
        """Say whether the bearer token is a JWT that the account signed, as https://google.aip.dev/auth/4111 has it."""
        scheme, _, token = authorization.partition(" ")
        parts = token.split(".")
        if scheme != "Bearer" or len(parts) != 3:
            return False
        signed = f"{parts[0]}.{parts[1]}".encode()
        try:
            self._key.public_key().verify(_decoded(parts[2]), signed, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        claims = json.loads(_decoded(parts[1]))
        now = time.time()
        return bool(
            claims["iss"] == claims["sub"] == EMAIL and claims["scope"] == SCOPE and claims["iat"] - 60 < now < claims["exp"]
        )


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _refuse(start: Callable[..., Any], status: str, code: str) -> list[bytes]:
    start(status, [("Content-Type", "application/xml")])
    return [f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code></Error>".encode()]


@contextmanager
def gcs_running() -> Iterator[GcsServer]:
    """Run a server on a free port."""
    server = GcsServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
