"""Promises about many messages: whose turn it is, what limits hold back, what is counted, and what a backend declares."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from msgspec import Raw

from ziggurat.queues.interface import PRIORITY_WEIGHTS, Queue
from ziggurat.records import Concurrency, Presence, Rate
from ziggurat.testing.queue_harness import LONG, QUEUE, QueueHarness, ids, message, messages, outcome_of


class PolicyPromises(QueueHarness):
    """Levels by weight, namespaces alike, limits over all workers, exact counts, nothing left behind."""

    # -- priority ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("batch", [1, 31])
    async def test_levels_are_served_by_their_weights(self, batch: int) -> None:
        async with self.opened() as queue:
            rounds = 4
            for priority in reversed(PRIORITY_WEIGHTS):
                await queue.send(messages(31 * rounds, priority=priority))
            served: Counter[int] = Counter()
            for _ in range(31 * rounds // batch):
                for delivery in await self.take(queue, batch):
                    served[delivery.message.lane.priority] += 1
            if not queue.capabilities.weighted_priorities:
                assert served == {1: 31 * rounds}
                return
            for priority, weight in PRIORITY_WEIGHTS.items():
                assert abs(served[priority] - weight * rounds) <= max(2, weight * rounds * 0.2), served

    async def test_the_lowest_level_is_served_while_higher_ones_keep_coming(self) -> None:
        async with self.opened() as queue:
            lowest = message(priority=5)
            await queue.send([lowest])
            served: list[str] = []
            for _ in range(40):
                await queue.send([message(priority=1)])
                served += ids(await self.take(queue, 1))
            assert (lowest.id in served) == queue.capabilities.weighted_priorities

    async def test_waiting_lifts_a_message_so_that_its_wait_is_bounded(self) -> None:
        async with self.opened(ageing=self.ageing) as queue:
            old = message(priority=5)
            await queue.send([old])
            await self.passing(self.ageing * 4.1)
            await queue.send(messages(30, priority=1))
            served = [await self.take_one(queue) for _ in range(4)]
            assert (old.id in ids(served)) == queue.capabilities.weighted_priorities

    # -- fair shares ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("batch", [1, 10])
    async def test_namespaces_get_equal_shares_whoever_came_first(self, batch: int) -> None:
        async with self.opened() as queue:
            await queue.send(messages(400, namespace="flood"))
            await queue.send(messages(60, namespace="calm"))
            await queue.send(messages(60, namespace="quiet"))
            served: Counter[str] = Counter()
            for _ in range(150 // batch):
                for delivery in await self.take(queue, batch):
                    served[delivery.message.lane.namespace] += 1
            assert served.total() == 150
            fair = all(45 <= served[name] <= 55 for name in ("flood", "calm", "quiet"))
            assert fair == queue.capabilities.fair_shares, served

    async def test_nothing_is_left_over_when_a_namespace_runs_out(self) -> None:
        async with self.opened() as queue:
            await queue.send([*messages(30, namespace="a"), *messages(3, namespace="b"), *messages(7, namespace="c", priority=5)])
            await self.finish(queue, await self.take(queue, 40))
            await self.assert_nothing_comes(queue)

    # -- regions -------------------------------------------------------------------------------------------------

    async def test_workers_take_messages_of_their_region_and_of_none(self) -> None:
        async with self.opened() as queue:
            anywhere, eu, us = message(), message(region="eu"), message(region="us")
            await queue.send([eu, us, anywhere])
            assert ids(await self.take(queue, 1, worker="homeless")) == [anywhere.id]
            await self.assert_nothing_comes(queue)
            await queue.send([other := message()])
            assert set(ids(await self.take(queue, 2, region="eu"))) == {eu.id, other.id}
            await self.assert_nothing_comes(queue, region="eu")
            assert ids(await self.take(queue, 1, region="us")) == [us.id]

    # -- limits --------------------------------------------------------------------------------------------------

    async def test_a_concurrency_key_limits_what_runs_over_all_workers(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            limit = Concurrency("gpu", 2)
            await queue.send(messages(6, concurrency=limit))
            if not queue.capabilities.limits:
                await self.take(queue, 6)
                return
            first = await queue.receive([QUEUE], 10, worker="w1", wait=self.patience)
            assert len(first) == 2
            neighbour = message()
            await queue.send([neighbour])
            (other,) = await self.take(queue, 1, worker="w2")
            assert other.message.id == neighbour.id, "limited messages must not hold others back"
            await self.assert_nothing_comes(queue)
            # Each way in which an attempt ends frees its slot: settled, handed back, and lost with its worker.
            await self.finish(queue, [other, first[0]])
            third = await self.take_one(queue)
            await self.assert_nothing_comes(queue)
            await queue.release([third])
            await self.take_one(queue)
            await self.assert_nothing_comes(queue)
            await self.lapse()
            await self.take(queue, 2)
            await self.assert_nothing_comes(queue)

    async def test_a_freed_slot_wakes_a_receiver_that_waits(self) -> None:
        async with self.opened() as queue:
            await queue.send(messages(2, concurrency=Concurrency("one", 1)))
            held = await self.take_one(queue)
            waiting = asyncio.create_task(queue.receive([QUEUE], 1, worker="w2", wait=60.0))
            await asyncio.sleep(0.01)
            await self.finish(queue, [held])
            assert len(await asyncio.wait_for(waiting, self.patience)) == 1

    async def test_cancelled_and_dead_messages_free_their_slots(self) -> None:
        async with self.opened(max_deliveries=1) as queue:
            await queue.send(messages(6, concurrency=Concurrency("one", 1)))
            waiting = await self.take_one(queue)
            await queue.release([waiting], reason="no")
            running = await self.take_one(queue)
            await queue.cancel([running.message.id])
            await queue.settle([(running, outcome_of(running, "cancelled"))])
            await self.take_one(queue)
            assert await self.counts(queue) == (3, 1, 0, 1)

    async def test_a_rate_limits_how_many_start_over_all_workers(self) -> None:
        async with self.opened() as queue:
            rate = Rate("mail", per_second=4.0, burst=3)
            await queue.send(messages(9, rate=rate))
            if not queue.capabilities.limits:
                await self.take(queue, 9)
                return
            started, came = self.now(), 0
            neighbours = messages(1)
            for _ in range(60):
                came += len(await queue.receive([QUEUE], 10, worker="w1", wait=self.glance))
                # One more than the bucket's sum is what a server that rounds to whole tokens may let through.
                assert came <= rate.burst + rate.per_second * (self.now() - started) + 1
                if came >= 3 and neighbours:
                    await queue.send(neighbours)
                    # Where time is real, a token may have come meanwhile, and its message is older than the neighbour.
                    while ids(await self.take(queue, 1, worker="w2")) != [neighbours[0].id]:
                        came += 1
                    neighbours.pop()
                    assert came < 9, "limited messages must not hold others back"
                if came == 9:
                    break
                await self.passing(0.125)
            assert came == 9, "the rate must hold messages back, not keep them"

    # -- counts --------------------------------------------------------------------------------------------------

    async def test_depth_is_exact_through_every_state(self) -> None:
        async with self.opened(max_deliveries=1) as queue:
            if not queue.capabilities.exact_depth:
                pytest.skip("declared: depth is approximate")
            assert await self.counts(queue) == (0, 0, 0, 0)
            waiting = messages(6)
            await queue.send(waiting)
            assert await self.counts(queue) == (6, 0, 0, 0)
            later = messages(2)
            await queue.send(later, delay=self.lease)
            assert await self.counts(queue) == (6, 0, 2, 0)
            taken = await self.take(queue, 3)
            assert await self.counts(queue) == (3, 3, 2, 0)
            await queue.cancel([later[0].id, *({it.id for it in waiting} - set(ids(taken)))][:2])
            assert await self.counts(queue) == (2, 3, 1, 0)
            await queue.release([taken[0]])
            assert await self.counts(queue) == (3, 2, 1, 0)
            await queue.release([taken[1]], reason="no")
            assert await self.counts(queue) == (3, 1, 1, 1)
            await queue.settle([(taken[2], outcome_of(taken[2]))])
            assert await self.counts(queue) == (3, 0, 1, 1)
            await self.lapse()
            assert await self.counts(queue) == (4, 0, 0, 1)
            await queue.redrive([taken[1].message.id])
            assert await self.counts(queue) == (5, 0, 0, 0)
            await queue.cancel([it.id for it in [*waiting, *later]])
            assert await self.counts(queue) == (0, 0, 0, 0)

    async def test_depth_knows_all_queues_and_how_long_the_oldest_waited(self) -> None:
        async with self.opened() as queue:
            await queue.send([message(queue="cpu", region="eu"), message(queue="cpu", priority=1, namespace="acme")])
            await self.passing(self.lease)
            await queue.send([message(queue="cpu"), message(queue="gpu")])
            depths = await queue.depth()
            assert (depths["cpu"].ready, depths["gpu"].ready) == (3, 1)
            assert self.lease * 0.99 <= depths["cpu"].oldest_age <= self.lease * 1.01 + self.late + self.patience
            assert depths["gpu"].oldest_age < self.lease
            assert set(await queue.depth(["gpu", "unheard-of"])) == {"gpu", "unheard-of"}
            assert (await queue.depth(["unheard-of"]))["unheard-of"].oldest_age == 0

    # -- who works -----------------------------------------------------------------------------------------------

    async def test_workers_show_themselves_to_everyone_and_their_last_word_counts(self) -> None:
        async with self.opened() as queue:
            if not queue.capabilities.presence:
                await queue.announce([Presence(worker="w1")], ttl=LONG)
                assert await queue.workers() == []
                return
            other = self.again(queue) if queue.capabilities.shared else queue
            await other.open()
            try:
                await queue.announce([Presence(worker="w2", slots=4), Presence(worker="w1", queues=("cpu", "gpu"))], ttl=LONG)
                await other.announce(
                    [Presence(worker="w2", slots=4, busy=3, running={"ta sk": 3}, trouble="It\u2019s late.")], ttl=LONG
                )
                first, second = await other.workers()
                assert (first.worker, first.queues) == ("w1", ("cpu", "gpu"))
                assert (second.worker, second.busy, second.running, second.trouble) == ("w2", 3, {"ta sk": 3}, "It\u2019s late.")
                assert second.seen_at > 1e9, "the queue says when it saw them, in seconds since the epoch"
                await other.announce([Presence(worker="w1"), Presence(worker="nobody")], ttl=0.0)
                assert [worker.worker for worker in await queue.workers()] == ["w2"]
            finally:
                if other is not queue:
                    await other.close()

    async def test_a_worker_that_says_nothing_more_is_forgotten(self) -> None:
        async with self.opened() as queue:
            if not queue.capabilities.presence:
                pytest.skip("declared: no presence")
            baseline = await self.storage(queue)
            await queue.announce([Presence(worker="silent")], ttl=self.lease)
            await self.passing(self.lease / 4)
            await queue.announce([Presence(worker="alive")], ttl=LONG)
            assert len(await queue.workers()) == 2
            await self.passing(self.lease * 0.85)
            assert [worker.worker for worker in await queue.workers()] == ["alive"]
            await queue.announce([Presence(worker="alive")], ttl=0.0)
            assert await self.storage(queue) == baseline, "a record that is over takes no room"

    # -- what stays ----------------------------------------------------------------------------------------------

    async def test_storage_returns_to_its_baseline(self) -> None:
        # Hundreds of messages are taken and settled within one lease, on a busy machine too.
        lease = self.lease if self.exact_time else 5 * self.lease
        async with self.opened(lease=lease, max_deliveries=1) as queue:
            baseline = await self._stored_at_rest(queue, lease, rounds=1)
            assert await self._stored_at_rest(queue, lease, rounds=self.many // 200) <= baseline

    async def _stored_at_rest(self, queue: Queue, lease: float, rounds: int) -> int:
        for number in range(rounds):
            await self._every_way_out(queue, 200, offset=200 * number)
        # What a backend forgets late, such as a bucket that is full again, it forgets with the next message.
        await self.passing(lease * 1.01 + self.late)
        await queue.send([message()])
        await self.finish(queue, await self.take(queue, 1))
        return await self.storage(queue)

    async def _every_way_out(self, queue: Queue, number: int, offset: int = 0) -> None:
        """Send messages, with limits and without, and end them in each way there is."""
        sent = messages(number - 40 if number > 40 else number)
        sent += [
            message(concurrency=Concurrency(f"user-{offset}-{i}", 1), rate=Rate(f"user-{offset}-{i}", 1e6))
            for i in range(number // 10)
        ]
        await queue.send(sent)
        await queue.send(later := messages(5), delay=LONG)
        await queue.cancel([it.id for it in [*later, *sent[:5]]])
        taken = await self.take(queue, len(sent) - 5)
        await queue.cancel([taken[0].message.id])
        await queue.release(taken[:1])
        await queue.release(taken[1:4], reason="no")
        await queue.discard(ids(taken[1:4]))
        await queue.ack_outcomes(await self.take_outcomes(queue, 3))
        await self.finish(queue, taken[4:])
        await self.passing(0.01)

    # -- declarations --------------------------------------------------------------------------------------------

    async def test_durability_is_as_declared(self) -> None:
        async with self.opened(max_deliveries=1) as queue:
            await queue.send(messages(3))
            held, dead = await self.take(queue, 2)
            await queue.settle([(held, outcome_of(held))])
            await queue.release([dead], reason="no")
            durable = queue.capabilities.durable
            heir = self.again(queue)
            await queue.close()
            await heir.open()
            try:
                assert await self.counts(heir) == ((1, 0, 0, 1) if durable else (0, 0, 0, 0))
                assert len(await heir.outcomes(10, self.glance)) == (2 if durable else 0)
                assert len(await heir.dead_letters()) == (1 if durable else 0)
            finally:
                await heir.close()

    async def test_sharing_is_as_declared(self) -> None:
        async with self.opened() as queue:
            other = self.again(queue)
            await other.open()
            try:
                if not queue.capabilities.shared:
                    await queue.send([message()])
                    await self.assert_nothing_comes(other)
                    return
                waiting = asyncio.create_task(other.receive([QUEUE], 1, worker="w2", wait=60.0))
                fetching = asyncio.create_task(queue.outcomes(1, 60.0))
                await asyncio.sleep(0.05)
                await queue.send([message()])
                (delivery,) = await asyncio.wait_for(waiting, self.patience)
                warned = asyncio.create_task(other.cancellations("w2", 60.0))
                await queue.cancel([delivery.message.id])
                assert await asyncio.wait_for(warned, self.patience) == [delivery.message.id]
                await other.publish([])
                await other.settle([(delivery, outcome_of(delivery, "cancelled"))])
                (outcome,) = await asyncio.wait_for(fetching, self.patience)
                await queue.ack_outcomes([outcome])
                assert await other.missing([delivery.message.id]) == {delivery.message.id}
            finally:
                await other.close()

    # -- together ------------------------------------------------------------------------------------------------

    async def test_workers_at_once_never_hold_one_message_together(self) -> None:
        async with self.opened(max_deliveries=1_000) as queue:
            everything = messages(150) + messages(50, concurrency=Concurrency("key", 3), payload=Raw(b"{}"))
            held: set[str] = set()
            done: Counter[str] = Counter()

            async def work(name: str, rng: random.Random) -> None:
                while len(done) < len(everything):
                    taken = await queue.receive([QUEUE], rng.randint(1, 5), worker=name, wait=0.05)
                    assert not held & set(ids(taken))
                    held.update(ids(taken))
                    await asyncio.sleep(0)
                    assert await queue.extend(taken) == set()
                    back = [delivery for delivery in taken if rng.random() < 0.3]
                    finished = [delivery for delivery in taken if delivery not in back]
                    held.difference_update(ids(taken))
                    assert await queue.release(back) == set()
                    assert await queue.settle([(delivery, outcome_of(delivery)) for delivery in finished]) == set()
                    done.update(ids(finished))

            workers = [asyncio.create_task(work(f"w{i}", random.Random(i))) for i in range(4)]
            for start in range(0, len(everything), 10):
                await queue.send(everything[start : start + 10])
            await asyncio.wait_for(asyncio.gather(*workers), 120)
            assert done == Counter(it.id for it in everything)
            outcomes = await self.take_outcomes(queue, len(everything))
            assert {outcome.message for outcome in outcomes} == {it.id for it in everything}

    # -- suspects ------------------------------------------------------------------------------------------------

    async def test_a_suspect_is_told_after_half_of_its_deliveries(self) -> None:
        for deliveries, trusted in ((5, 3), (2, 1), (1, 1)):
            async with self.opened(lease=self.lease, max_deliveries=deliveries) as queue:
                await queue.send([message()])
                # Unstarted work that is handed back is not a delivery that counts.
                await queue.release([await self.take_one(queue)])
                told = []
                for _ in range(deliveries):
                    told.append((delivery := await self.take_one(queue)).suspect)
                    await queue.release([delivery], reason="nobody here knows it")
                suspect = queue.capabilities.tells_suspects
                assert told == [suspect and number > trusted for number in range(1, deliveries + 1)]

    async def test_a_suspect_comes_alone(self) -> None:
        async with self.opened(lease=self.lease, max_deliveries=2) as queue:
            if not queue.capabilities.tells_suspects:
                return
            young, old = [message() for _ in range(3)], [message() for _ in range(2)]
            await queue.send([young[0], *old])
            taken = await self.take(queue, 3)
            await queue.release(taken[1:], reason="nobody here knows it")
            await queue.release(taken[:1])
            await queue.send(young[1:])
            batches = [ids(await queue.receive([QUEUE], 10, worker="w", wait=0.0)) for _ in range(5)]
            assert sorted(id_ for batch in batches for id_ in batch) == sorted(it.id for it in [*young, *old])
            assert [batch for batch in batches if set(batch) & {it.id for it in old}] == [[it.id] for it in old]
