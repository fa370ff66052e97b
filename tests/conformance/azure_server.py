"""Azure's blob storage on loopback: Azurite, which Microsoft makes and npm installs (300 MB, so only the slow tests want it)."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from tests.ports import free_port

#: The account that every Azurite has, https://learn.microsoft.com/azure/storage/common/storage-connect-azurite.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
INSTALL = "npm install --global azurite"
START_SECONDS = 60.0


@contextlib.contextmanager
def azurite_running(folder: Path, missing: Callable[[str, str], NoReturn]) -> Iterator[str]:
    """Run it on a free port and yield its URL."""
    binary = shutil.which("azurite-blob")
    if binary is None:
        missing("Azurite", INSTALL)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        binary,
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--location",
        str(folder),
        "--silent",
        "--disableTelemetry",
    ]
    with (folder / "azurite.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + START_SECONDS
        while b"successfully listens" not in (folder / "azurite.log").read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "azurite.log").read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def make_container(url: str, name: str) -> None:
    """Make a container; the request is signed as https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key says."""
    moment, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    text = "\n".join(["PUT", *[""] * 11, f"x-ms-date:{moment}", f"x-ms-version:{version}", f"/{ACCOUNT}/{ACCOUNT}/{name}"])
    signed = hmac.new(base64.b64decode(KEY), f"{text}\nrestype:container".encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": moment,
        "x-ms-version": version,
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}",
    }
    request = urllib.request.Request(f"{url}/{ACCOUNT}/{name}?restype=container", method="PUT", headers=headers)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201
