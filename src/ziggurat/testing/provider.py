"""A provider's own limits, for tests over HTTP: `FaultyUpstream(raw=ProviderLimits(...))` answers 429 as a real one does.

A token bucket that refills without pause, as OpenAI describes its own: what a call takes is counted when it arrives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from aiohttp import web

from ziggurat.records import Prompt


class ProviderLimits:
    """Counts what calls take, and refuses those for which nothing is left.

    Args:
        tokens_per_minute: the limit.
        capacity: seconds of it that may gather while nobody calls.
        tokens: how many tokens a call takes, prompt and answer.
    """

    def __init__(
        self, tokens_per_minute: float, capacity: float, tokens: Callable[[Prompt], int], *, headers: bool = False
    ) -> None:
        self.rate = tokens_per_minute / 60.0
        self._most = self.rate * capacity
        self._level, self._at = self._most, time.monotonic()
        self._tokens = tokens
        #: (moment, tokens) of each call that was let in, and how many were refused.
        self.taken: list[tuple[float, int]] = []
        self.refused = 0

    async def __call__(self, request: web.Request, prompt: Prompt) -> web.StreamResponse | None:
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._at) * self.rate)
        self._at = now
        amount = self._tokens(prompt)
        if amount > self._level:
            self.refused += 1
            error = {"error": {"message": "Rate limit reached for tokens.", "type": "tokens", "code": "rate_limit_exceeded"}}
            headers = {"Retry-After": f"{(amount - self._level) / self.rate:.3f}"}
            return web.Response(body=json.dumps(error), status=429, headers=headers, content_type="application/json")
        self._level -= amount
        self.taken.append((now, amount))
        return None
