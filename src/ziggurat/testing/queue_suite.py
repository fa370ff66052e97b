"""The conformance suite of queues: every promise of `ziggurat.queues.interface`, one test each.

It needs pytest with pytest-asyncio in its auto mode, and hypothesis. To run it over a backend, fill the hooks of `QueueHarness`:

    from ziggurat.testing.queue_suite import QueueSuite

    class TestMyQueue(QueueSuite):
        exact_time = False
        lease, late, patience, glance = 0.5, 0.3, 5.0, 0.2

        def make_queue(self, options): ...
        def again(self, queue): ...
        def now(self): return time.monotonic()
        async def passing(self, seconds): await asyncio.sleep(seconds)
        async def storage(self, queue): ...

What a backend cannot promise it declares in its `Capabilities`, and the suite asserts the declaration in both directions: a promise
that is declared must hold, and one that is not must be absent, so that a declaration cannot go stale.
"""

from __future__ import annotations

from ziggurat.testing.queue_delivery import DeliveryPromises
from ziggurat.testing.queue_model import ModelPromises
from ziggurat.testing.queue_policy import PolicyPromises


class QueueSuite(DeliveryPromises, PolicyPromises, ModelPromises):
    """Every promise of a queue. Subclass it and fill the hooks."""
