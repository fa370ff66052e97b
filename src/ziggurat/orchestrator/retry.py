"""When to try a failed attempt again: a pure choice over the policy, the failure and the time."""

from __future__ import annotations

import random

from ziggurat.program.options import Retry
from ziggurat.records import ErrorInfo


def next_attempt(
    policy: Retry, failures: int, error: ErrorInfo | None, now: float, deadline: float | None, chance: random.Random
) -> float | None:
    """Return the moment of the next attempt, or None if there is to be none.

    Args:
        policy: the task's policy.
        failures: how many attempts have failed, this one included.
        error: the failure; its `retryable` and `retry_after` count.
        now: the time.
        deadline: the moment after which another attempt is pointless.
        chance: where jitter comes from.
    """
    if error is not None and not error.retryable:
        return None
    if policy.attempts is not None and failures >= policy.attempts:
        return None
    # The exponent is capped so that a policy without end does not overflow a float.
    delay = min(policy.maximum, policy.initial * policy.factor ** min(failures - 1, 64))
    delay *= 1 + policy.jitter * (2 * chance.random() - 1)
    if error is not None and error.retry_after is not None:
        delay = max(delay, error.retry_after)
    due = now + delay
    return None if deadline is not None and due >= deadline else due
