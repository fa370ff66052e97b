"""Temporal behind TLS and an API key, as Temporal Cloud is: a door in front of a real server, which checks what the cloud checks."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from tests.conformance.temporal_servers import TemporalServer, needed, temporal_server
from tests.conftest import missing_service
from ziggurat.assembly import System
from ziggurat.errors import LayerUnreachable, SettingsError
from ziggurat.records import StartRequest
from ziggurat.settings import load_settings
from ziggurat.testing import orchestrator_programs as p

# Imported so because it has no types of its own.
grpc: Any = importlib.import_module("grpc")
_numbers = itertools.count(1)
_LARGE = [("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.max_send_message_length", 64 * 1024 * 1024)]


class Door:
    """Takes TLS only, asks for the key, and hands every call on to the server behind it."""

    def __init__(self, server: TemporalServer, folder: Path, key: str) -> None:
        self.key, self.folder = key, folder
        self._behind = grpc.insecure_channel(server.address, options=_LARGE)
        # A worker's poll holds a thread for as long as there is nothing to do.
        self._server = grpc.server(ThreadPoolExecutor(100), options=_LARGE)
        self._server.add_generic_rpc_handlers((_Handler(self),))
        pair = (folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes()
        credentials = grpc.ssl_server_credentials([pair])
        self.address = f"localhost:{self._server.add_secure_port('localhost:0', credentials)}"
        mutual = grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), require_client_auth=True)
        self.mutual = f"localhost:{self._server.add_secure_port('localhost:0', mutual)}"

    def open(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._behind.close()
        self._server.stop(0).wait()

    def forward(self, method: str, request: bytes, context: Any) -> Any:
        told = dict(context.invocation_metadata())
        if self.key and told.get("authorization") != f"Bearer {self.key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request unauthorized.")
        try:
            return self._behind.unary_unary(method)(request, timeout=context.time_remaining())
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata() or ())
            context.abort(error.code(), error.details())
        except ValueError:  # The door is being closed.
            context.abort(grpc.StatusCode.UNAVAILABLE, "closing")


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, door: Door) -> None:
        self._door = door

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._door.forward(details.method, request, context))


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, Door]]:
    """Two doors to one server: one that asks for the key "right", and one that asks for none."""
    needed()
    folder = tmp_path_factory.mktemp("temporal")
    for name in ("ca", "stranger"):
        certificate(folder, name, "-addext", "keyUsage=critical,keyCertSign")
    for name in ("server", "client"):
        signed = (
            "-CA",
            str(folder / "ca.pem"),
            "-CAkey",
            str(folder / "ca.key"),
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )
        certificate(folder, name, *signed, "-addext", "subjectAltName=DNS:localhost")
    with temporal_server(folder) as server:
        made = Door(server, folder, "right"), Door(server, folder, "")
        for door in made:
            door.open()
        yield made
        for door in made:
            door.close()


def certificate(folder: Path, name: str, *more: str) -> None:
    """Make a certificate and its key."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2".split()
    files = "-subj", f"/CN={name}", "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")
    try:
        subprocess.run([*command, *files, *more], check=True, capture_output=True)
    except FileNotFoundError:
        missing_service("openssl", "apt install openssl")


def settings(folder: Path, address: str, *lines: str) -> Path:
    file = folder / "ziggurat.toml"
    more = "\n".join(lines)
    file.write_text(
        f'[orchestrator]\nbackend = "temporal"\nurl = "{address}"\n'
        f'[orchestrator.temporal]\ntask_queue = "tls{next(_numbers)}"\n{more}\n'
    )
    return file


def ca(door: Door, name: str = "ca") -> str:
    return f'server_ca = "{door.folder / name}.pem"'


@pytest.mark.parametrize("how", ["key", "certificate"])
async def test_a_run_completes_over_tls(
    doors: tuple[Door, Door], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("CLOUD_KEY", "right")
    if how == "key":
        file = settings(tmp_path, doors[0].address, ca(doors[0]), 'api_key = "env:CLOUD_KEY"')
    else:
        own = [
            f'client_{part} = "{doors[1].folder / "client"}.{ending}"'
            for part, ending in (("certificate", "pem"), ("key", "key"))
        ]
        file = settings(tmp_path, doors[1].mutual, ca(doors[1]), *own)
    async with System(load_settings(file)) as system:
        assert system.orchestrator is not None
        name = f"tls{next(_numbers)}"
        payload = Raw(p.line.arguments.encode((name,), {}))
        await system.orchestrator.start(StartRequest(workflow=p.line.name, payload=payload, id=name))
        assert (await system.orchestrator.wait(name, 120.0)).result == Raw(b"3")


async def test_what_is_wrong_with_the_connection_is_said_in_one_sentence(
    doors: tuple[Door, Door], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHT", "right")
    monkeypatch.setenv("WRONG", "wrong-and-secret")
    keyed, open_ = doors
    right = 'api_key = "env:RIGHT"'
    for address, lines, said in (
        (keyed.address, [ca(keyed), 'api_key = "env:WRONG"'], "it takes another api_key"),
        (keyed.address, [ca(keyed), "tls = true"], "it wants an api_key"),
        (keyed.address, [ca(keyed, "stranger"), right], "certificate"),
        (keyed.address, [right], "certificate"),
        (keyed.address, [ca(keyed), right, 'server_name = "elsewhere.example"'], "certificate"),
        (keyed.address, [ca(keyed), right, 'namespace = "nobodys"'], "no namespace 'nobodys'"),
        (open_.mutual, [ca(open_)], "wants a client's certificate"),
        (open_.address, [], "wants TLS"),
    ):
        with pytest.raises(LayerUnreachable, match=said) as caught:
            async with System(load_settings(settings(tmp_path, address, *lines))):
                pass
        assert str(caught.value).count("\n") == 0
        assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"no-such\.pem.*cannot be read"):
        async with System(load_settings(settings(tmp_path, open_.address, 'server_ca = "no-such.pem"'))):
            pass


def test_a_wrong_key_ends_a_command_with_exit_code_three(
    doors: tuple[Door, Door], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG", "wrong-and-secret")
    file = settings(tmp_path, doors[0].address, ca(doors[0]), 'api_key = "env:WRONG"')
    done = subprocess.run(
        [sys.executable, "-m", "ziggurat", "list", "--config", str(file)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "it takes another api_key" in done.stderr
    assert "secret" not in done.stderr
