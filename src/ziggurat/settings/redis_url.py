"""Where a Redis server is: the URL that people write, read once and never shown with its secrets.

    redis://[user[:password]@]host[:port][/database]          one server
    rediss://…                                                 the same over TLS
    unix://[user[:password]@]/path/to/socket[?db=0]            a socket on this machine
    sentinel://[user[:password]@]host[:port],host…/service     whichever server the Sentinels say is the primary (sentinels:// over TLS)
    redis+cluster://[user[:password]@]host[:port],host…        the Cluster node that owns our keys' slot (rediss+cluster:// over TLS)

Options follow as a query: prefix (of all keys, "ziggurat"), username, password, sentinel_username, sentinel_password, ca_certs, certfile,
keyfile, check_hostname (yes or no). A value "env:NAME" is read from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from ziggurat.errors import SettingsError

_SCHEMES = ("redis", "rediss", "unix", "sentinel", "sentinels", "redis+cluster", "rediss+cluster")
_OPTIONS = frozenset(
    "prefix db username password sentinel_username sentinel_password ca_certs certfile keyfile check_hostname".split()
)


class Address(Struct, frozen=True):
    """A parsed URL. Its text shows neither users nor passwords."""

    scheme: str
    nodes: tuple[tuple[str, int], ...]
    prefix: str = "ziggurat"
    #: The name by which Sentinels know the primary.
    service: str = ""
    #: The path of a socket.
    path: str = ""
    #: Keyword arguments for redis-py that hold for every node: database, credentials, TLS.
    common: Mapping[str, Any] = {}
    #: Those for Sentinels in the place of `common`.
    sentinel: Mapping[str, Any] = {}

    @property
    def is_sentinel(self) -> bool:
        return self.scheme.startswith("sentinel")

    @property
    def is_cluster(self) -> bool:
        return self.scheme.endswith("cluster")

    def __str__(self) -> str:
        if self.path:
            return self.path
        hosts = ", ".join(_host_and_port(host, port) for host, port in self.nodes)
        return f"{hosts} ({self.service})" if self.service else hosts

    def __repr__(self) -> str:
        return f"<Address {self.scheme} {self}>"


def read_url(url: str, what: str = "queue.url") -> Address:
    """Return what a URL says. Raises SettingsError that names the setting `what`, without the URL's secrets."""
    try:
        return _read_url(url)
    except SettingsError as error:
        raise SettingsError(str(error).replace("queue.url", what, 1)) from None


def _read_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise SettingsError("queue.url cannot be read; write it like redis://localhost:6379.") from error
    scheme = parts.scheme
    if scheme not in _SCHEMES:
        raise SettingsError(
            f"queue.url has the scheme {scheme!r}; the redis backend takes {', '.join(s + '://' for s in _SCHEMES)}."
        )
    if unknown := sorted(set(query) - _OPTIONS):
        raise SettingsError(f"queue.url has the unknown option {unknown[0]!r}; there are {', '.join(sorted(_OPTIONS))}.")
    query = {name: _from_environment(name, value) for name, value in query.items()}
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    common: dict[str, Any] = {}
    if username := query.get("username") or unquote(user):
        common["username"] = username
    if secret := query.get("password") or unquote(password):
        common["password"] = secret
    tls = _tls(scheme, query)
    last = unquote(parts.path.strip("/"))
    address = {"scheme": scheme, "prefix": query.get("prefix", "ziggurat"), "service": "", "path": ""}
    if "{" in address["prefix"] or "}" in address["prefix"] or not address["prefix"]:
        raise SettingsError("queue.url: the option prefix must be a word without braces.")
    nodes: tuple[tuple[str, int], ...] = ()
    sentinel: dict[str, Any] = {}
    if scheme == "unix":
        address["path"] = unquote(parts.path)
        common["db"] = _number("db", query.get("db", "0"))
    else:
        nodes = tuple(_node(host, 26379 if scheme.startswith("sentinel") else 6379) for host in hosts.split(","))
        if scheme.startswith("sentinel"):
            if not last:
                raise SettingsError("queue.url names Sentinels but no service; write it like sentinel://host:26379/mymaster.")
            address["service"], _, database = last.partition("/")
            common["db"] = _number("db", database or query.get("db", "0"))
            named = {"username": query.get("sentinel_username"), "password": query.get("sentinel_password")}
            sentinel = {name: value for name, value in named.items() if value} | tls
        elif scheme.endswith("cluster"):
            if last not in ("", "0"):
                raise SettingsError("queue.url names a database, but a Redis Cluster has only one; leave it out.")
        else:
            common["db"] = _number("db", last or query.get("db", "0"))
    return Address(nodes=nodes, common=common | tls, sentinel=sentinel, **address)


def _tls(scheme: str, query: Mapping[str, str]) -> dict[str, Any]:
    if not scheme.startswith(("rediss", "sentinels")):
        return {}
    given = {f"ssl_{name}": query[name] for name in ("ca_certs", "certfile", "keyfile") if name in query}
    check = query.get("check_hostname", "yes").lower() not in ("no", "false", "0")
    return {"ssl": True, "ssl_check_hostname": check, **given}


def _node(text: str, port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        number = rest.removeprefix(":")
    else:
        host, _, number = text.partition(":")
    return host or "localhost", _number("port", number) if number else port


def _number(what: str, text: str) -> int:
    if not text.isdecimal():
        raise SettingsError(f"queue.url: the {what} {text!r} is not a number.")
    return int(text)


def _from_environment(name: str, value: str) -> str:
    if not value.startswith("env:"):
        return value
    found = os.environ.get(value[4:])
    if found is None:
        raise SettingsError(f"queue.url: {name} is to be read from the environment, but {value[4:]} is not set.")
    return found


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
