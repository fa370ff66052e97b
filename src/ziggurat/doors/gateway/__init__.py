"""The OpenAI-compatible door to the inference layer: an OpenAI client needs only another base URL.

    POST /v1/chat/completions   whole and streamed; tools, structured output
    POST /v1/responses          the same in OpenAI's newer dialect; nothing is kept between requests
    POST /v1/completions        one text in, one out; the models are chat models
    POST /v1/embeddings         where a route has them
    GET  /v1/models             the aliases that the key may call
    GET  /healthz, /readyz      alive; taking requests
    GET  /metrics               Prometheus text format

It is the same router that programs use (`ziggurat.inference.router`): one owner of retries, one set of limits, one ledger. The door
itself only reads and writes the dialect, knows who calls, and puts every call to an account.

    connection ─▶ server ─▶ callers (whose key?) ─▶ requests (body → prompt) ─▶ Router ─▶ answers (completion → body)
                                                                                  └─▶ the exchange's account ─▶ ledger
"""

from __future__ import annotations

from ziggurat.doors.gateway.opening import open_gateway
from ziggurat.doors.gateway.server import Gateway

__all__ = ["Gateway", "open_gateway"]
