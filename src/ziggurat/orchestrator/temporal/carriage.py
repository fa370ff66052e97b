"""The payload codec: what a run hands on is sealed on its way to Temporal, where waiting is allowed, which a machine must not.

A machine marks what is to be sealed, and for which run. Large payloads then stay at the artifact store and Temporal sees a reference, far
below its limit of 2 MB; with a key in use, all of them are encrypted. A history keeps what travels, so arguments that grow from step to
step, as the messages of a conversation do, are stored in blocks well below that size, each block once. On the way back nothing is opened,
but what is stored is fetched, so that the program finds it in memory. What is not marked, such as what other clients send, passes
unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from msgspec.structs import replace
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

from ziggurat.artifacts import Payloads
from ziggurat.errors import ZigguratError
from ziggurat.orchestrator.temporal.wire import JSON_ENCODING, MESSAGE_MARK, SEAL_MARK
from ziggurat.records import Message, Outcome, encode

_ENVELOPE = b'{"$ziggurat":'


class Carriage(PayloadCodec):
    """Seals what is marked, and fetches what is stored."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [await self._encode(payload) if _is_marked(payload) else payload for payload in payloads]

    async def _encode(self, payload: Payload) -> Payload:
        metadata = dict(payload.metadata)
        run = metadata.pop(SEAL_MARK, None)
        if metadata.pop(MESSAGE_MARK, None) is not None:
            message = msgspec.json.decode(payload.data, type=Message)
            sealed = await self._payloads.seal_sparingly(bytes(message.payload), message.run)
            return Payload(metadata=metadata, data=encode(replace(message, payload=Raw(sealed))))
        assert run is not None
        return Payload(metadata=metadata, data=await self._payloads.seal_sparingly(payload.data, run.decode()))

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        for payload in payloads:
            if _ENVELOPE in payload.data and payload.metadata.get("encoding") == JSON_ENCODING:
                await self._fetch(payload)
        return list(payloads)

    async def _fetch(self, payload: Payload) -> None:
        """Bring a stored result of an attempt into memory."""
        try:
            outcome = msgspec.json.decode(payload.data, type=Outcome)
            if outcome.result is not None and self._payloads.must_wait(outcome.result):
                await self._payloads.open(outcome.result, outcome.run)
        except (msgspec.MsgspecError, ZigguratError):
            pass  # It is something else, or cannot be had now, which parks the run where its program asks for it.


def _is_marked(payload: Payload) -> bool:
    return SEAL_MARK in payload.metadata or MESSAGE_MARK in payload.metadata
