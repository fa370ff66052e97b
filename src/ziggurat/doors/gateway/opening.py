"""From settings to a gateway that listens: models, ledger, keys, server, closed in the other order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ziggurat.assembly import build_models, follow_switches, recorder
from ziggurat.doors.gateway.keyring import Keyring
from ziggurat.doors.gateway.server import Gateway
from ziggurat.inference.ledger import Ledger, costs, current_attribution
from ziggurat.inference.router import Router
from ziggurat.records import CallRecord
from ziggurat.settings import Settings
from ziggurat.telemetry.catalogue import GATEWAY_COST
from ziggurat.telemetry.export import set_up


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[tuple[Gateway, Router]]:
    """Open a gateway and its router: `async with open_gateway(settings) as (gateway, models)`.

    What is under way when the block ends is cut; `gateway.drain()` before lets it end. Raises ConfigurationError, LayerUnreachable.
    """
    async with contextlib.AsyncExitStack() as stack:
        set_up(settings.telemetry)
        keyring = Keyring(settings.resolve(settings.gateway.path), settings.gateway.keys)
        ledger = Ledger(settings.ledger_path)
        stack.callback(ledger.close)
        write = recorder(settings, ledger)

        def record(call: CallRecord) -> None:
            write(call)
            key = current_attribution().key
            if key and call.usage.cost_usd:
                GATEWAY_COST.labels(key).inc(call.usage.cost_usd)

        models = build_models(settings, ledger=record)
        stack.push_async_callback(models.close)
        await asyncio.to_thread(follow_switches, models, settings)
        rows = await asyncio.to_thread(costs, [settings.ledger_path], ("key", "day"))
        spent = {(row.group[0], row.group[1]): row.cost_usd + row.held_usd for row in rows}
        gateway = Gateway(models, settings.gateway, keys=keyring, spent=spent, every_second=keyring.refresh)
        await gateway.start()
        stack.push_async_callback(gateway.close)
        yield gateway, models
