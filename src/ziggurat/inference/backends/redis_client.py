"""How the stores of inference talk to Redis: one client for all threads, that neither retries nor waits long, because calls wait for it.

A store says what to ask, and how it names the trouble; opening, closing and opening again is done here.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ziggurat.errors import LayerUnreachable, MissingExtra
from ziggurat.settings.redis_url import Address, read_url

#: Seconds until a connection or an answer must be there.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 1.0, 2.0

T = TypeVar("T")


class RedisClient:
    """A client that is opened when it is first asked, and anew after an error. Raises MissingExtra, SettingsError.

    Args:
        url: as for the queue, see `ziggurat.settings.redis_url`; the option `prefix` names the keys.
        what: the setting that holds the URL.
        down: makes the error to raise of what the server or the driver said.
    """

    def __init__(self, url: str, what: str, down: Callable[[str], LayerUnreachable]) -> None:
        self.address = read_url(url, what)
        self.redis = import_redis()
        self._down = down
        self._lock = threading.Lock()
        self._client: Any = None

    def ask(self, verb: Callable[[Any], T]) -> T:
        """Return what `verb` returns of the driver's client. Raises what `down` makes."""
        try:
            return verb(self._opened())
        except (self.redis.RedisError, OSError) as error:
            # A question that was refused says nothing against the connections, which other threads use; a replica that became of the
            # server does.
            refused = isinstance(error, self.redis.ResponseError) and not isinstance(error, self.redis.ReadOnlyError)
            if not refused:
                self.close()
            raise self._down(str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    def close(self) -> None:
        """Let go of the connections; the next question opens others."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(self.redis.RedisError, OSError):
                client.close()

    def _opened(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = connect(self.address, self.redis)
            return self._client


def connect(address: Address, redis: Any) -> Any:
    """Return a client of a Redis for use from threads. Raises redis.RedisError, OSError."""
    options = dict(
        address.common,
        protocol=2,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=ANSWER_TIMEOUT,
    )
    if address.path:
        return redis.Redis(unix_socket_path=address.path, **options)
    if address.is_sentinel:
        waits = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": ANSWER_TIMEOUT}
        sentinels = redis.sentinel.Sentinel(list(address.nodes), sentinel_kwargs=dict(address.sentinel, **waits))
        return sentinels.master_for(address.service, **options)
    if address.is_cluster:
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.nodes]
        options.pop("retry")
        return redis.cluster.RedisCluster(startup_nodes=nodes, **options)
    host, port = address.nodes[0]
    return redis.Redis(host=host, port=port, **options)


def import_redis() -> Any:
    """Return the driver. Raises MissingExtra."""
    try:
        redis = importlib.import_module("redis")
        for module in ("retry", "backoff", "sentinel", "cluster"):
            importlib.import_module(f"redis.{module}")
    except ImportError as error:
        raise MissingExtra("What inference keeps in Redis", "redis") from error
    return redis
