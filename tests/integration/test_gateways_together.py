"""Two gateway processes over one limit store: keys' limits and budgets hold for both, and a killed one leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conformance import redis_servers
from tests.conftest import missing_service
from ziggurat.inference.backends.limits_redis import RedisStore
from ziggurat.inference.backends.limits_sqlite import SqliteStore
from ziggurat.inference.backends.scripted import Reply
from ziggurat.inference.ledger import CostRow, costs
from ziggurat.inference.limits.interface import LEASE, LimitStore
from ziggurat.records import Prompt
from ziggurat.testing.models import FaultyUpstream

#: Seconds for what takes a moment on a machine with nothing else to do.
PATIENCE = 90.0
KEYS = {name: f"zgk-{name}-of-no-entropy-at-all" for name in ("poor", "often", "much", "rich")}
#: The price of a token, as dollars a million, and what "poor" may spend.
PRICE, BUDGET = 100.0, 0.05
#: Calls and tokens a minute of the keys "often" and "much"; a sixth of each may come at once.
CALLS, TOKENS = 120, 9_000
SETTINGS = """
[inference.endpoints.up]
base_url = "{upstream}"
limits = {{ concurrency = 2 }}
[inference.endpoints.up.prices]
"*" = {{ input = {price}, output = {price} }}
[inference.endpoints.wide]
base_url = "{upstream}"
[inference.endpoints.wide.prices]
"*" = {{ input = {price}, output = {price} }}
[inference.models.narrow]
routes = ["up:m"]
[inference.models.m]
routes = ["wide:m"]
[inference.limits]
store = "{store}"
[gateway]
port = 0
patience = "90s"
[gateway.keys.poor]
key = "env:POOR"
budget = {budget}
period = "total"
[gateway.keys.often]
key = "env:OFTEN"
requests_per_minute = {calls}
[gateway.keys.much]
key = "env:MUCH"
tokens_per_minute = {tokens}
[gateway.keys.rich]
key = "env:RICH"
budget = 1000.0
period = "total"
"""


def answers(prompt: Prompt, asked: int) -> Reply:
    text = str(prompt.messages[-1].content)
    return Reply(text="word " * 40, first_token=600.0 if "slowly" in text else 0.002)


class Pair:
    """Two gateways of one project, and a client."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession) -> None:
        self.folder, self.http = folder, http
        self.processes: list[asyncio.subprocess.Process] = []
        self.urls: list[str] = []

    async def begin(self) -> None:
        command = (sys.executable, "-m", "ziggurat", "gateway", "--json")
        environment = {**os.environ, **{name.upper(): key for name, key in KEYS.items()}}
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        self.processes.append(process)  # In step with the URLs: nothing is awaited in between.
        self.urls.append("")
        number = len(self.urls) - 1
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            self.urls[number] = json.loads(await process.stdout.readline())["base_url"]

    async def end(self) -> None:
        """End what still runs, in order, so that the ledgers are written."""
        for process in self.processes:
            if process.returncode is None:
                process.terminate()
        async with asyncio.timeout(PATIENCE):
            await self.gone()

    async def gone(self) -> None:
        """Wait until all have ended and their pipes are closed."""
        await asyncio.gather(*(process.communicate() for process in self.processes))

    async def ask(self, which: int, key: str, text: str = "hello", model: str = "m") -> tuple[int, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 60}
        headers = {"Authorization": f"Bearer {KEYS[key]}"}
        async with self.http.post(f"{self.urls[which]}/chat/completions", json=body, headers=headers) as response:
            return response.status, json.loads(await response.read())

    async def ask_both(self, key: str, count: int) -> tuple[list[tuple[int, Any]], float]:
        """Ask both in turn, all at once; returns the answers and how long they took."""
        began = time.monotonic()
        found = await asyncio.gather(*(self.ask(number % 2, key, f"number {number}") for number in range(count)))
        return found, time.monotonic() - began

    def bill(self, key: str) -> CostRow:
        (row,) = [row for row in costs([self.folder / ".ziggurat" / "ledger.db"], ("key",)) if row.group == (key,)]
        return row


@asynccontextmanager
async def pair(folder: Path, store: str, upstream: FaultyUpstream) -> AsyncIterator[Pair]:
    text = SETTINGS.format(upstream=upstream.base_url, store=store, price=PRICE, budget=BUDGET, calls=CALLS, tokens=TOKENS)
    (folder / "ziggurat.toml").write_text(text)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        two = Pair(folder, http)
        try:
            await asyncio.gather(two.begin(), two.begin())
            yield two
        finally:
            for process in two.processes:
                if process.returncode is None:
                    process.kill()
            await two.gone()


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Callable[[], LimitStore]]]:
    """What the settings say, and how to look at the store."""
    if request.param == "sqlite":
        yield "sqlite", lambda: SqliteStore(tmp_path / ".ziggurat" / "limits.db")
        return
    with redis_servers.running(redis_servers.REDIS_8, missing_service) as server:
        yield server.url, lambda: RedisStore(server.url)


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not await holds():
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.05)


# On a busy machine three processes take their time to start.
@pytest.mark.timeout(400)
async def test_two_gateways_are_one_to_their_keys_and_a_killed_one_leaves_nothing_behind(
    tmp_path: Path, store: tuple[str, Callable[[], LimitStore]]
) -> None:
    named, look = store
    async with FaultyUpstream(answers) as upstream, pair(tmp_path, named, upstream) as two:
        (poor, _), (often, often_took), (much, much_took) = await asyncio.gather(
            two.ask_both("poor", 24), two.ask_both("often", 30), two.ask_both("much", 40)
        )
        # The ones that came at once, and what flowed since. Were the keys counted in each process, nobody had waited.
        assert {status for status, _ in often + much} == {200}
        assert often_took >= (30 - CALLS / 6) / (CALLS / 60) - 0.5
        used = sum(body["usage"]["total_tokens"] for _, body in much)
        least = (used - TOKENS / 6) / (TOKENS / 60)
        assert least > 1.0
        assert much_took >= 0.9 * least - 0.5
        assert {body["error"]["code"] for status, body in poor if status != 200} == {"insufficient_quota"}

        async def written() -> bool:
            rows = await asyncio.to_thread(costs, [tmp_path / ".ziggurat" / "ledger.db"], ("key",))
            return {("often", 30), ("much", 40)} <= {(row.group[0], row.calls) for row in rows}

        # Rows come to the ledger a moment after the answers, and those of one that is killed before do not.
        await until(written, "all answers are in the ledger")
        # One holds both slots of the narrow endpoint and is killed; the other has them a lease later.
        held = [asyncio.create_task(two.ask(0, "rich", f"slowly, {number}", "narrow")) for number in range(2)]

        async def under_way() -> bool:
            return upstream.open_requests == 2

        await until(under_way, "the slow calls are under way")
        waits = asyncio.create_task(two.ask(1, "rich", "hello", "narrow"))
        two.processes[0].kill()
        async with asyncio.timeout(PATIENCE):
            gone = await asyncio.gather(*held, return_exceptions=True)
            assert [isinstance(error, aiohttp.ClientError) for error in gone] == [True, True]
            assert (await waits)[0] == 200

        # What the killed one had reserved is free again, and held as what may have been billed.
        # Budgets for all time: those of a day begin anew at midnight, which may be amid this.
        purse, seen = "key:rich:total", look()

        async def settled() -> bool:
            return (await asyncio.to_thread(seen.purse, purse))[1] == pytest.approx(0.0)

        await until(settled, "nothing is reserved any more")
        spent, _ = await asyncio.to_thread(seen.purse, purse)
        await two.end()
        answered = two.bill("rich").cost_usd
        assert spent - answered >= 2 * 60 * PRICE / 1e6  # Both could have written max_tokens.
        # Whoever comes next knows what was spent.
        await two.begin()
        status, body = await two.ask(2, "poor")
        assert (status, body["error"]["code"]) == (429, "insufficient_quota")
        await two.end()
        seen.close()

    good = [body for status, body in poor if status == 200]
    bill = two.bill("poor")
    dearest = max(body["usage"]["total_tokens"] for body in good) * PRICE / 1e6
    # Rows that the killed one had not written yet are lost to the ledger, and to nobody's budget.
    assert bill.calls <= len(good)
    assert BUDGET - 3 * dearest <= len(good) * dearest <= BUDGET + 1.5 * dearest
    for key, count in (("often", 30), ("much", 40)):
        assert two.bill(key).calls == count


assert LEASE < PATIENCE / 4
