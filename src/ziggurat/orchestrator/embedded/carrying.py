"""Large payloads on their way out and in: arguments are stored before their message is sent, results are fetched before they are recorded.

Both happen beside the dispatcher's own loop, so that a slow store holds up nobody else. A result that the store does not have, or not as it
was saved, is an attempt that failed: the history never refers to what is not there. A store that cannot be used now is asked again until
it can; the queue keeps the outcome meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import Payloads, artifact_keys
from ziggurat.errors import ArtifactError, ArtifactsUnreachable, ZigguratError
from ziggurat.orchestrator.embedded.references import REFER_BY_ID
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.program.failures import describe
from ziggurat.records import Message, Outcome
from ziggurat.telemetry import events

T = TypeVar("T")

#: First and longest pause in seconds between two tries of a store that cannot be used now.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Carrier:
    """Stores arguments and fetches results.

    Args:
        payloads: the seam.
        write: hands a write to the writer: which run refers to what was stored.
        send: takes a message once its arguments are stored.
        take: takes an outcome once its result is at hand.
    """

    def __init__(
        self,
        payloads: Payloads,
        write: Callable[[Write], None],
        send: Callable[[Message], None],
        take: Callable[[list[Outcome]], None],
    ) -> None:
        self.payloads = payloads
        self._write, self._send, self._take = write, send, take
        #: Ids of messages whose arguments are being stored, and of those whose results are being fetched.
        self.storing: set[str] = set()
        self._fetching: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def sealed(self, message: Message, requested: int) -> Message | None:
        """Return a message with its arguments sealed; or None, and it is sent once they are stored.

        `requested` is the position in the history at which its step was asked for.
        """
        payload = bytes(message.payload)
        small = self.payloads.seal_small(payload, message.run)
        if small is payload:
            return message
        if small is not None:
            return replace(message, payload=Raw(small))
        self.storing.add(message.id)
        self._begin(self._store(message, payload, requested))
        return None

    async def _store(self, message: Message, payload: bytes, requested: int) -> None:
        try:
            sealed = await self._insist(lambda: self.payloads.seal(payload, message.run), message.id)
            # The message may wait for longer than what nobody refers to is kept.
            refer: list[tuple[str, tuple[object, ...]]] = [
                (REFER_BY_ID, (key, requested, message.run)) for key in artifact_keys(sealed)
            ]
            self._write(Write(statements=refer))
            self._send(replace(message, payload=Raw(sealed)))
        finally:
            self.storing.discard(message.id)

    def take(self, outcomes: list[Outcome]) -> None:
        """Pass on outcomes whose results are at hand; the others follow once theirs are."""
        ready = [outcome for outcome in outcomes if not self._must_wait(outcome)]
        if ready:
            self._take(ready)
        if len(ready) == len(outcomes):
            return
        for outcome in outcomes:
            if outcome.message not in self._fetching and self._must_wait(outcome):
                self._fetching.add(outcome.message)
                self._begin(self._fetch(outcome))

    def _must_wait(self, outcome: Outcome) -> bool:
        if outcome.result is None:
            return False
        try:
            return self.payloads.must_wait(outcome.result)
        except ZigguratError:
            return True  # The envelope is damaged; `_fetch` says so.

    async def _fetch(self, outcome: Outcome) -> None:
        result = outcome.result
        assert result is not None
        try:
            await self._insist(lambda: self.payloads.open(result, outcome.run), outcome.message)
        except ArtifactError as error:
            info = replace(describe(error), retryable=True, traceback="")
            outcome = replace(outcome, status="failed", result=None, error=info)
        except ZigguratError:
            pass  # A key that is missing here: recorded as it is, and the run is parked until the key is there.
        finally:
            self._fetching.discard(outcome.message)
        self._take([outcome])

    async def _insist(self, move: Callable[[], Awaitable[T]], what: str) -> T:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await move()
            except ArtifactsUnreachable as error:
                events.PAYLOAD_WAITS(what=what, error=error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _begin(self, move: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            move.close()
            return
        task = asyncio.get_running_loop().create_task(move, name="ziggurat-carry")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give up what is on the way. The history asks for it again, and the queue still holds what was not recorded."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
