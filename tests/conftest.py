"""What every test can rely on: a clean environment, no network, and one way to say that a service is missing."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

# The suites are library code; without this their asserts would not say what they compared. It must come before their first import.
pytest.register_assert_rewrite("ziggurat.testing")

#: Variables of the person who runs the tests. A test that passes only with them, or spends their money, is wrong.
SCRUBBED_PREFIXES = ("ZIGGURAT_", "OPENAI_", "GMI_", "ANTHROPIC_", "AWS_", "GOOGLE_", "OTEL_", "REDIS_", "TEMPORAL_")
#: Certificate bundles are facts of the machine, not of the person.
KEPT = frozenset({"AWS_CA_BUNDLE"})

# Examples are judged by their result and never by their time: other tests share the cores.
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("local", **_COMMON)
# CI draws the same examples on every run, so that a red build is about the change. `make test-long` draws many anew.
settings.register_profile("continuous", derandomize=True, database=None, print_blob=True, **_COMMON)
settings.register_profile("long", max_examples=2_000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("continuous" if os.environ.get("CI") else "local"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(SCRUBBED_PREFIXES) and name not in KEPT:
            monkeypatch.delenv(name)


async def clear_of_midnight(seconds: float = 30.0) -> None:
    """Wait until there are so many seconds of the UTC day left: budgets of a day begin anew at midnight."""
    left = 86_400.0 - time.time() % 86_400.0
    if left < seconds:
        await asyncio.sleep(left + 0.1)


@pytest.fixture(autouse=True)
def _heard_logs() -> None:
    """Loggers of ours speak, to whoever listens: the import linter disables all loggers that exist when it runs, and a command that ran in
    this process took the logs for its own stderr.
    """
    ours = logging.getLogger("ziggurat")
    ours.handlers.clear()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("ziggurat") and isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets of the test process reach this machine only, unless the test is marked `network`."""
    if request.node.get_closest_marker("network"):
        return
    for verb in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, verb, _loopback_only(getattr(socket.socket, verb)))


def _loopback_only(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise ConnectionRefusedError(f"a test may not call {address[0]}; mark it `network` if that is its purpose.")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def missing_service(what: str, install: str) -> NoReturn:
    """End the test because `what` is not on this machine: a skip at home, a failure in CI, where all must run."""
    sentence = f"{what} is not on this machine. Install it with: {install}"
    if os.environ.get("CI"):
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


@pytest.fixture(name="missing_service")
def _missing_service() -> Callable[[str, str], NoReturn]:
    """The function `missing_service(what, install)`, for tests that do not import this file."""
    return missing_service
