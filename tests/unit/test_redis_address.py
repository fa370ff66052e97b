"""What the URL of a Redis queue says, and what is never shown of it."""

from __future__ import annotations

import sys

import pytest

from ziggurat.errors import MissingExtra, SettingsError
from ziggurat.queues.backends.redis_streams import RedisQueue
from ziggurat.settings.redis_url import read_url


@pytest.mark.parametrize(
    ("url", "nodes", "common"),
    [
        ("redis://localhost", (("localhost", 6379),), {"db": 0}),
        ("redis://10.0.0.7:7000/3", (("10.0.0.7", 7000),), {"db": 3}),
        ("redis://[::1]:7000?db=2", (("::1", 7000),), {"db": 2}),
        ("redis://ann:p%40ss@h", (("h", 6379),), {"username": "ann", "password": "p@ss", "db": 0}),
        ("redis://:secret@h", (("h", 6379),), {"password": "secret", "db": 0}),
        ("rediss://h:7001", (("h", 7001),), {"db": 0, "ssl": True, "ssl_check_hostname": True}),
        (
            "rediss://h?ca_certs=/ca.pem&check_hostname=no",
            (("h", 6379),),
            {"db": 0, "ssl": True, "ssl_check_hostname": False, "ssl_ca_certs": "/ca.pem"},
        ),
        ("redis+cluster://a:1,b", (("a", 1), ("b", 6379)), {}),
        ("sentinel://a,b:2/main", (("a", 26379), ("b", 2)), {"db": 0}),
        ("sentinel://ann:pw@a/main/4", (("a", 26379),), {"username": "ann", "password": "pw", "db": 4}),
    ],
)
def test_a_url_says_where_and_as_whom(url: str, nodes: tuple[tuple[str, int], ...], common: dict[str, object]) -> None:
    address = read_url(url)
    assert (address.nodes, dict(address.common)) == (nodes, common)


def test_a_socket_and_a_prefix() -> None:
    address = read_url("unix:///run/redis.sock?prefix=blue&db=1")
    assert (address.path, address.prefix, address.common, str(address)) == (
        "/run/redis.sock",
        "blue",
        {"db": 1},
        "/run/redis.sock",
    )


def test_sentinels_have_a_service_and_credentials_of_their_own() -> None:
    address = read_url("sentinels://ann:data@a/main?sentinel_username=watch&sentinel_password=guard")
    assert address.service == "main"
    assert dict(address.sentinel) == {"username": "watch", "password": "guard", "ssl": True, "ssl_check_hostname": True}


def test_secrets_come_from_the_environment_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_PASSWORD", "hush")
    address = read_url("redis://ann@h?password=env:QUEUE_PASSWORD")
    assert address.common["password"] == "hush"
    assert "hush" not in f"{address} {address!r}"
    assert "ann" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h:secret", "scheme 'http'"),
        ("redis://h:secret", "port 'secret'"),
        ("redis://:secret@h/x", "db 'x'"),
        ("redis://:secret@h?colour=red", "unknown option 'colour'"),
        ("redis://h?prefix=a{b", "prefix"),
        ("redis://h?password=env:NOT_SET", "NOT_SET is not set"),
        ("sentinel://:secret@h", "no service"),
        ("redis+cluster://:secret@h/3", "has only one"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        read_url(url)
    if "@" in url:
        assert "secret" not in str(raised.value)


def test_without_redis_py_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=r"ziggurat-agents\[redis\]"):
        RedisQueue("redis://localhost")
