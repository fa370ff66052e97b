"""The settings of `ziggurat gateway`: where it listens, what it bounds, and the virtual keys that are written in the file."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from ziggurat.settings.types import Bytes, Dollars, Positive, Seconds, SecretValue, Section, Shown


def _hash(value: str) -> str:
    if value and not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError('it must be "sha256:" and 64 hexadecimal digits, as `ziggurat gateway keys create` prints it')
    return value


def _period(value: str) -> str:
    if value not in PERIODS:
        raise ValueError(f"it is {value!r} and must be one of: {', '.join(PERIODS)}")
    return value


#: What a key's budget can be for: each day (UTC), or all time.
PERIODS = ("day", "total")
Period = Annotated[str, AfterValidator(_period), Shown('"day" \\| "total"')]


class GatewayKeySettings(Section):
    """A virtual key of the gateway: who may call which models, how often, and for how much."""

    key: SecretValue | None = Field(None, description="The variable that holds the key itself.")
    hash: Annotated[str, AfterValidator(_hash)] = Field(
        "", description='The key\'s hash, "sha256:…", in place of the key; for keys of high entropy only.'
    )
    models: list[str] = Field([], description="The aliases that it may call; all when empty.")
    budget: Dollars | None = Field(None, description="US dollars that it may spend in a period.")
    period: Period = Field("day", description="What the budget is for: each day (UTC), or all time.")
    requests_per_minute: Positive | None = Field(None, description="Calls that it may start in a minute.")
    tokens_per_minute: Positive | None = Field(None, description="Input and output tokens in a minute.")
    priority: Annotated[int, Field(ge=1, le=5)] = Field(
        3, description="Whose calls go first where limits make calls wait: 1 before 5."
    )
    namespace: str = Field("", description="The tenant that its calls belong to; when empty, the request may name one.")


class GatewaySettings(Section):
    """The OpenAI-compatible door to layer 4: `ziggurat gateway`."""

    host: str = Field("127.0.0.1", description="The address to listen on; any other than loopback needs virtual keys.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8500, description="The port to listen on; 0 takes a free one.")
    path: str = Field(".ziggurat/gateway.db", description="The file of the keys that `ziggurat gateway keys` makes.")
    grace: Seconds = Field(30.0, description="How long answers under way may go on after SIGTERM.")
    body_limit: Bytes = Field(32 * 1024 * 1024, description="Largest request body.")
    read_timeout: Seconds = Field(
        60.0, description="How long a client may take to send a request, or to read a piece of an answer."
    )
    keep_alive: Seconds = Field(
        15.0,
        description="How long the client of a stream waits for its first piece before it gets a comment, and again after each; "
        "from then on an error is an event of the stream.",
    )
    patience: Seconds = Field(10.0, description="How long a request may wait for limits before it is answered 429.")
    max_in_flight: Positive = Field(2_000, description="Requests under way at a time; more are answered 503.")
    keys: dict[str, GatewayKeySettings] = Field({}, description="Virtual keys, by name, beside those that the command makes.")
