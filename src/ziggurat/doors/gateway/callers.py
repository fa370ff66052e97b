"""Who may call: virtual keys, what each of them may do, and what it has left.

A key is `zgk-` and 256 bits of randomness. What is kept is its SHA-256: a slow hash protects secrets that people choose and that can be
guessed, and there is nothing to guess in 256 random bits. The look-up is by that hash, so its time tells nothing of the keys.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from msgspec import Struct

from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.inference.interface import Limits
from ziggurat.inference.limits import caller as limits
from ziggurat.records import Allowance

PREFIX = "zgk-"


class Caller(Struct, frozen=True, kw_only=True):
    """A virtual key as it stands, without the key."""

    name: str
    #: The aliases that it may call; all when empty.
    models: frozenset[str] = frozenset()
    #: US dollars for a period, "day" or "total"; None is no budget.
    budget: float | None = None
    period: str = "day"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    #: 1 goes before 5 where limits make calls wait.
    priority: int = 3
    #: The tenant that its calls belong to; "": the request may name one.
    namespace: str = ""

    def allow(self, model: str) -> None:
        """Raise Refusal unless the key may call the alias."""
        if self.models and model not in self.models:
            known = ", ".join(sorted(self.models))
            text = f"The key {self.name!r} may not call the model {model!r}; it may call: {known}."
            raise Refusal(403, text, type="permission_error", code="model_not_allowed", param="model", again=False)

    def spends_as(self, patience: float, spent: Mapping[tuple[str, str], float], day: str) -> limits.Caller:
        """Return what its calls may use and spend.

        Args:
            patience: seconds that a call may wait for limits.
            spent: what keys are known to have spent, by name and UTC day.
            day: the present UTC day.
        """
        own = Limits(requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)
        budgets: tuple[Allowance, ...] = ()
        if self.budget is not None:
            if self.period == "day":
                known, since = spent.get((self.name, day), 0.0), day
            else:
                known, since = sum(usd for (name, _), usd in spent.items() if name == self.name), "total"
            budgets = (Allowance(f"key:{self.name}:{since}", self.budget, known),)
        return limits.Caller(priority=self.priority, key=self.name, limits=own, budgets=budgets, patience=patience)


#: Who calls where no keys exist.
ANYBODY = Caller(name="")


def new_key() -> str:
    """Return a new key."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what is kept of a key."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def find(callers: Mapping[str, Caller], authorization: str) -> Caller:
    """Return whose key an Authorization header holds. Raises Refusal, which never quotes the key."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        text = "No key was given. Send one as `Authorization: Bearer KEY`; `ziggurat gateway keys create NAME` makes one."
        raise Refusal(401, text, type="authentication_error", code="missing_api_key", again=False)
    caller = callers.get(hash_of(key.strip()))
    if caller is None:
        text = "This key is not known here, or was revoked. Ask whoever runs the gateway for another."
        raise Refusal(401, text, type="authentication_error", code="invalid_api_key", again=False)
    return caller
