"""The connection of a Redis queue: finds the server that takes its writes now, calls scripts there, and finds it again when it moves.

Trouble that passes by itself, a restart, a failover, a full memory, is waited out here with growing pauses. After `patience` seconds the
call gives up with QueueUnavailable, in one sentence that holds no secret. Every script may be called again after its answer was lost,
except those that the caller marks with `once`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, NoReturn

from ziggurat.errors import MissingExtra, QueueUnavailable
from ziggurat.queues.backends.redis_scripts import Script, load
from ziggurat.settings.redis_url import Address
from ziggurat.telemetry import events

#: Seconds until a connection or an answer must be there.
CONNECT_TIMEOUT = 3.0
ANSWER_TIMEOUT = 5.0
#: Seconds without a wake after which the connection that listens for them is tested.
SILENCE = 5.0
#: Calls at once. Batches make a call large; more at once only wait for the server's one thread.
CALLS_AT_ONCE = 16
#: The pauses between tries, in seconds.
PAUSE_FIRST, PAUSE_MOST = 0.05, 1.0
#: Redis before 7.0 has no sharded publish, which wakes waiting workers, and no script flags.
OLDEST_VERSION = (7, 0)
#: Answers that say that the server cannot do it now, but may soon.
_PASSING = (
    "LOADING",
    "MISCONF",
    "BUSY",
    "NOREPLICAS",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "OOM",
    "READONLY",
    "MOVED",
    "ASK",
)


Node = tuple[str, int]


class Subscription:
    """A connection that listens to one channel."""

    def __init__(self, client: Any, pubsub: Any) -> None:
        self._client, self._pubsub = client, pubsub

    async def begin(self, channel: str) -> None:
        """Subscribe, and wait until the server has confirmed it."""
        await self._pubsub.ssubscribe(channel)
        if await self._pubsub.get_message(timeout=ANSWER_TIMEOUT) is None:
            raise TimeoutError("the server does not answer")

    async def next(self) -> str | None:
        """Return the next message, or None after some silence. Raises when the connection is broken."""
        for attempt in range(2):
            found = await self._pubsub.get_message(timeout=SILENCE)
            if found is not None:
                return found["data"].decode() if found["type"] == "smessage" else None
            if attempt == 0:
                await self._pubsub.ping()
        raise TimeoutError("the server does not answer")

    async def close(self) -> None:
        await self._pubsub.aclose()
        await self._client.aclose()


class Link:
    """A redis-py client of one server, closed when it is retired and its last call is over."""

    def __init__(self, client: Any, node: Node | None, scripts: dict[str, Script]) -> None:
        self.client, self.node, self.scripts = client, node, scripts
        self._calls = 0
        self._retired = False

    async def __aenter__(self) -> Link:
        self._calls += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._calls -= 1
        if self._retired and not self._calls:
            await self.client.aclose()

    async def retire(self) -> None:
        if not self._retired:
            self._retired = True
            if not self._calls:
                await self.client.aclose()


class Server:
    """The server of a queue, whichever it is at the time.

    Args:
        address: where to look for it.
        patience: seconds for which a call waits for it to come back.
    """

    def __init__(self, address: Address, *, patience: float) -> None:
        self.address = address
        self.base = f"{{{address.prefix}}}"
        self._patience = patience
        self._redis = _import_redis()
        self._errors = self._redis.exceptions
        self._link: Link | None = None
        self._finding: asyncio.Lock = asyncio.Lock()
        self._turns: asyncio.Semaphore = asyncio.Semaphore(CALLS_AT_ONCE)
        self.closed = False

    async def close(self) -> None:
        self.closed = True
        link, self._link = self._link, None
        if link is not None:
            await link.retire()

    async def run(self, name: str, *arguments: Any, once: bool = False, asked: list[float] | None = None) -> Any:
        """Call a script and return its answer. With `once`, a call whose answer was lost is not repeated. `asked` gets the monotonic
        times of the tries.

        Raises QueueUnavailable after `patience` seconds of trouble, or at once when the server refuses us for good.
        """
        async with self._turns:
            return await self._attempt(lambda link: self._evaluate(link, name, arguments, asked), once=once)

    async def subscribe(self, channel: str) -> Subscription:
        """Listen to a sharded channel on a connection of its own. Raises QueueUnavailable."""
        subscription: Subscription = await self._attempt(lambda link: self._subscribe(link, channel))
        return subscription

    async def _attempt(self, action: Callable[[Link], Awaitable[Any]], *, once: bool = False) -> Any:
        pause, deadline = PAUSE_FIRST, asyncio.get_running_loop().time() + self._patience
        while True:
            link = None
            try:
                link = await self.link()
                async with link, asyncio.timeout(ANSWER_TIMEOUT):
                    return await action(link)
            except (self._errors.RedisError, OSError) as error:
                await self._bear(error, link)
                late = asyncio.get_running_loop().time() + pause > deadline
                if late or (once and link is not None):
                    self._give_up(error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSE_MOST)

    async def _evaluate(self, link: Link, name: str, arguments: tuple[Any, ...], asked: list[float] | None) -> Any:
        script = link.scripts[name]
        if asked is not None:
            asked.append(monotonic())
        try:
            return await link.client.execute_command("EVALSHA", script.sha, 1, self.base, *arguments)
        except self._errors.NoScriptError:
            # A server that was restarted, or another one: it has not seen the script, so nothing was done.
            return await link.client.execute_command("EVAL", script.text, 1, self.base, *arguments)

    async def _subscribe(self, link: Link, channel: str) -> Subscription:
        client = self._client(link.node)
        subscription = Subscription(client, client.pubsub())
        try:
            await subscription.begin(channel)
        except BaseException:
            await subscription.close()
            raise
        return subscription

    # -- finding the server --------------------------------------------------------------------------------------

    async def link(self) -> Link:
        """Return the link to the server, looking for it if there is none."""
        if self.closed:
            raise QueueUnavailable("The Redis queue is closed; open it, or connect a new client.")
        if self._link is not None:
            return self._link
        async with self._finding:
            if self._link is None:
                node = await self._find()
                client = self._client(node)
                try:
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        self._link = Link(client, node, load(xackdel=await self._greet(client)))
                except BaseException:
                    await client.aclose()
                    raise
            return self._link

    def _client(self, node: Node | None, *, sentinel: bool = False) -> Any:
        """Return a redis-py client of one node, or of the socket. It repeats nothing by itself: `run` decides."""
        options = dict(self.address.sentinel if sentinel else self.address.common)
        if node is None:
            options["unix_socket_path"] = self.address.path
        else:
            options["host"], options["port"] = node
            options["socket_keepalive"] = True
        retry = self._redis.asyncio.retry.Retry(self._redis.backoff.NoBackoff(), 0)
        return self._redis.asyncio.Redis(
            protocol=2,
            retry=retry,
            socket_connect_timeout=min(CONNECT_TIMEOUT, self._patience),
            # `_attempt` limits the time of an answer. redis-py would use asyncio.wait_for, which in Python 3.11 swallows a cancellation
            # that meets the end of what it waits for, so that a task that is to end goes on for ever.
            socket_timeout=None,
            client_name="ziggurat",
            **options,
        )

    async def _find(self) -> Node | None:
        """Return the node that takes the queue's writes now; None for the socket."""
        address = self.address
        if not address.nodes:
            return None
        if not (address.is_sentinel or address.is_cluster):
            return address.nodes[0]
        problem: Exception | None = None
        for node in address.nodes:
            client = self._client(node, sentinel=address.is_sentinel)
            try:
                ask = self._ask_sentinel if address.is_sentinel else self._ask_cluster
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    if (found := await ask(client, node)) is not None:
                        return found
            except (self._errors.RedisError, OSError) as error:
                problem = error
            finally:
                await client.aclose()
        if problem is not None:
            raise problem
        known = (
            f"no Sentinel knows a primary named {address.service!r}" if address.is_sentinel else "no node owns the queue's slot"
        )
        raise self._errors.ConnectionError(known)

    async def _ask_sentinel(self, client: Any, _: Node) -> Node | None:
        found = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.address.service)
        return (_text(found[0]), int(found[1])) if found else None

    async def _ask_cluster(self, client: Any, asked: Node) -> Node | None:
        slot = self._redis.crc.key_slot(self.address.prefix.encode())
        for first, last, primary, *_ in await self._slots(client):
            if first <= slot <= last:
                # A node that does not know its own address leaves it empty: it is where we asked.
                return _text(primary[0] or asked[0]), int(primary[1])
        return None

    @staticmethod
    async def _slots(client: Any) -> list[list[Any]]:
        # redis-py would turn the answer of CLUSTER SLOTS into a table of its own; the raw one is simpler here.
        client.response_callbacks.pop("CLUSTER SLOTS", None)
        slots: list[list[Any]] = await client.execute_command("CLUSTER SLOTS")
        return slots

    async def _greet(self, client: Any) -> bool:
        """Check that a server is one that we can use; says whether it has XACKDEL."""
        try:
            facts = await client.info("server", "replication", "memory", "cluster")
            commands = await client.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", "xackdel")
        except self._errors.NoPermissionError:
            await client.ping()  # An account that may do only what it must: take the server as it is.
            return False
        version = str(facts.get("redis_version", "7.0"))
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
            raise QueueUnavailable(
                f"The Redis server at {self.address} is version {version}, and the queue needs {'.'.join(map(str, OLDEST_VERSION))} or "
                "newer, or Valkey."
            )
        if facts.get("role") == "slave":
            raise self._errors.ReadOnlyError("it is a read-only replica")
        if facts.get("cluster_enabled") and not self.address.is_cluster:
            raise QueueUnavailable(
                f"The Redis server at {self.address} is a node of a Cluster; write queue.url as redis+cluster://host:port,host:port."
            )
        if facts.get("maxmemory") and facts.get("maxmemory_policy") != "noeviction":
            events.REDIS_EVICTS(address=self.address, policy=facts["maxmemory_policy"])
        return bool(commands)

    # -- trouble -------------------------------------------------------------------------------------------------

    async def _bear(self, error: Exception, link: Link | None) -> None:
        """Return if the trouble may pass, having dropped the link if it may lead to the wrong place; else give up."""
        errors = self._errors
        text = str(error)
        if isinstance(error, (errors.AuthenticationError, errors.NoPermissionError)):
            await self.drop(link)
            self._give_up(error)
        if isinstance(error, errors.ResponseError):
            if "nknown command" in text or "nknown Redis command" in text:
                await self.drop(link)  # Of another version than the one before: look again at what it can do.
                return
            if isinstance(error, (errors.ReadOnlyError, errors.MovedError, errors.AskError)):
                await self.drop(link)
            elif not isinstance(error, errors.OutOfMemoryError) and not text.startswith(_PASSING):
                self._give_up(error)
            return
        await self.drop(link)

    async def drop(self, link: Link | None) -> None:
        """Forget a link, so that the next call looks for the server anew."""
        if link is not None:
            if self._link is link:
                self._link = None
            await link.retire()

    def _give_up(self, error: Exception) -> NoReturn:
        raise QueueUnavailable(self._sentence(error)) from error

    def _sentence(self, error: Exception) -> str:
        errors, it = self._errors, f"The Redis server at {self.address}"
        if isinstance(error, errors.AuthenticationError):
            return f"{it} refuses our credentials: correct the user and password of queue.url."
        if isinstance(error, errors.NoPermissionError):
            return f"{it} does not let our user do what a queue must: grant it all commands on keys and channels {self.base}:*. ({error})"
        if isinstance(error, errors.ReadOnlyError):
            return f"{it} is a read-only replica: name the primary in queue.url, or the Sentinels that know it."
        if isinstance(error, errors.OutOfMemoryError):
            return f"{it} is out of memory: raise its maxmemory. Workers still take, finish and settle what is there."
        if isinstance(error, errors.ResponseError):
            return f"{it} refuses a command: {_first_line(error)}."
        return f"{it} cannot be reached ({_first_line(error)}): start it, or correct queue.url."


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended, whatever it is in the middle of."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.5)


def _import_redis() -> Any:
    try:
        import redis
        import redis.asyncio
        import redis.asyncio.retry
        import redis.backoff
        import redis.crc
    except ImportError as error:
        raise MissingExtra('The queue backend "redis"', "redis") from error
    return redis


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
