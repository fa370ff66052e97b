"""The hours in which an endpoint is cheaper, as DeepSeek's are (api-docs.deepseek.com/quick_start/pricing): every day, in one time zone."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from msgspec import Struct


class OffPeak(Struct, frozen=True, kw_only=True):
    """Hours of every day, from `begin` to `end`, in minutes past midnight; over midnight if `end` is not after `begin`."""

    begin: int
    end: int
    zone: str = "UTC"
    #: What a call costs then, as a share of the plain price.
    share: float = 0.5

    def holds(self, now: float) -> bool:
        """Say whether a moment is in these hours."""
        local = datetime.fromtimestamp(now, ZoneInfo(self.zone))
        minute = local.hour * 60 + local.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def wait(self, now: float) -> float:
        """Return the seconds until these hours begin, 0 in them."""
        if self.holds(now):
            return 0.0
        local = datetime.fromtimestamp(now, ZoneInfo(self.zone))
        begins = local.replace(hour=self.begin // 60, minute=self.begin % 60, second=0, microsecond=0)
        if begins <= local:
            # By the clock on the wall: a day in which it is moved has 23 hours or 25.
            begins += timedelta(days=1)
        return max(1.0, begins.timestamp() - now)
