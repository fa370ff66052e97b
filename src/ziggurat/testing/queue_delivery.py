"""Promises about one message: delivery, leases, fencing, dead letters, delay, cancellation and what comes back."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import Raw

from ziggurat.errors import Overloaded, PayloadTooLarge
from ziggurat.records import WIRE_VERSION, Progress, encode
from ziggurat.testing.queue_harness import QUEUE, QueueHarness, ids, message, messages, outcome_of


class DeliveryPromises(QueueHarness):
    """A message is delivered at least once, to one worker at a time, and settled once."""

    # -- delivery ------------------------------------------------------------------------------------------------

    async def test_a_sent_message_is_delivered_as_it_was_sent(self) -> None:
        async with self.opened() as queue:
            sent = message(
                priority=2,
                namespace="acme",
                timeout=12.5,
                deadline=1e12,
                heartbeat=Raw(b'{"page":3}'),
                trace={"traceparent": "00-1"},
            )
            await queue.send([sent])
            delivery = await self.take_one(queue)
            assert delivery.message == sent
            assert (delivery.worker, delivery.epoch) == ("w1", 1)

    async def test_a_receiver_that_waits_is_woken_by_a_send(self) -> None:
        async with self.opened() as queue:
            waiting = asyncio.create_task(queue.receive([QUEUE], 10, worker="w1", wait=60.0))
            await asyncio.sleep(0.01)
            sent = message()
            await queue.send([sent])
            assert ids(await asyncio.wait_for(waiting, self.patience)) == [sent.id]

    async def test_a_receiver_that_gives_up_waiting_takes_nothing_along(self) -> None:
        async with self.opened() as queue:
            waiting = asyncio.create_task(queue.receive([QUEUE], 10, worker="impatient", wait=60.0))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await queue.send([message()])
            await self.take_one(queue, worker="w2")

    async def test_receive_returns_empty_after_its_wait(self) -> None:
        async with self.opened() as queue:
            assert await queue.receive([QUEUE], 10, worker="w1", wait=0.02) == []

    async def test_a_settled_message_is_done(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            await queue.send([message()])
            delivery = await self.take_one(queue)
            assert await queue.settle([(delivery, outcome_of(delivery))]) == set()
            await self.lapse()
            await self.assert_nothing_comes(queue)
            assert await self.counts(queue) == (0, 0, 0, 0)

    async def test_an_outcome_arrives_as_the_worker_reported_it(self) -> None:
        async with self.opened() as queue:
            await queue.send([message()])
            delivery = await self.take_one(queue)
            reported = outcome_of(delivery, "failed")
            await queue.settle([(delivery, reported)])
            assert await self.take_outcomes(queue) == [reported]

    async def test_an_id_that_is_sent_twice_is_one_message(self) -> None:
        async with self.opened() as queue:
            once, later = message(), message()
            await queue.send([once, once])
            await queue.send([once])
            delivery = await self.take_one(queue)
            await queue.send([once])  # While it is leased, too.
            await queue.send([later], delay=self.lease)
            await queue.send([later])
            await self.assert_nothing_comes(queue)
            await self.finish(queue, [delivery])
            assert await self.counts(queue) == (0, 0, 1, 0)

    async def test_messages_wait_on_the_queue_they_name(self) -> None:
        async with self.opened() as queue:
            cpu, gpu = message(queue="cpu"), message(queue="gpu")
            await queue.send([cpu, gpu])
            assert ids(await self.take(queue, 1, queues=["gpu"])) == [gpu.id]
            await self.assert_nothing_comes(queue, queues=["gpu", "unheard-of"])
            assert ids(await self.take(queue, 1, queues=["gpu", "cpu"])) == [cpu.id]

    # -- leases and fencing --------------------------------------------------------------------------------------

    async def test_a_dead_workers_message_returns_after_its_lease(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            await queue.send([message()])
            first = await self.take_one(queue, worker="dead")
            await self.assert_nothing_comes(queue)
            await self.lapse()
            second = await self.take_one(queue, worker="w2")
            assert second.message == first.message
            assert second.epoch > first.epoch

    async def test_it_returns_on_an_idle_queue_to_a_receiver_that_waits_already(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            await queue.send([message()])
            await self.take_one(queue, worker="dead")
            waiting = asyncio.create_task(queue.receive([QUEUE], 10, worker="w2", wait=60.0))
            await asyncio.sleep(0.01)
            await self.lapse()
            assert len(await asyncio.wait_for(waiting, self.patience)) == 1

    async def test_extend_keeps_a_lease_for_as_long_as_the_task_takes(self) -> None:
        # Where time is real, the lease is one that a machine which stalls for a second does not lose between two renewals.
        lease = self.lease if self.exact_time else 2.5 * self.lease
        async with self.opened(lease=lease, max_deliveries=1) as queue:
            await queue.send([message()])
            delivery = await self.take_one(queue)
            # Real time is dear: two leases show it as well as five.
            for _ in range(15 if self.exact_time else 6):
                await self.passing(lease / 3)
                assert await queue.extend([delivery]) == set()
                await self.assert_nothing_comes(queue)
            await self.finish(queue, [delivery])

    @pytest.mark.parametrize("successor", ["w1", "w2"])
    async def test_a_zombie_can_neither_settle_nor_extend_nor_release(self, successor: str) -> None:
        async with self.opened(lease=self.lease) as queue:
            await queue.send([message()])
            zombie = await self.take_one(queue, worker="w1")
            await self.lapse()
            owner = await self.take_one(queue, worker=successor)
            fenced = {zombie.message.id}
            assert await queue.settle([(zombie, outcome_of(zombie))]) == fenced
            assert await queue.extend([zombie], {zombie.message.id: b'"stale"'}) == fenced
            assert await queue.release([zombie]) == fenced
            assert await queue.release([zombie], reason="cannot run it") == fenced
            await self.assert_no_outcome(queue)
            await self.assert_nothing_comes(queue)
            await self.finish(queue, [owner])

    async def test_what_is_settled_is_fenced_for_everyone(self) -> None:
        async with self.opened() as queue:
            await queue.send([message()])
            delivery = await self.take_one(queue)
            await self.finish(queue, [delivery])
            fenced = {delivery.message.id}
            assert await queue.settle([(delivery, outcome_of(delivery))]) == fenced
            assert await queue.extend([delivery]) == fenced
            assert await queue.release([delivery]) == fenced
            await self.assert_no_outcome(queue)

    async def test_an_earlier_life_of_an_id_has_no_say_in_a_later_one(self) -> None:
        async with self.opened() as queue:
            again = message()
            await queue.send([again])
            earlier = await self.take_one(queue)
            await self.finish(queue, [earlier])
            # As an orchestrator does that lost the outcome, for example to a restored backup.
            await queue.send([again])
            later = await self.take_one(queue)
            assert await queue.settle([(earlier, outcome_of(earlier))]) == {again.id}
            assert await queue.extend([earlier]) == {again.id}
            assert await queue.release([earlier]) == {again.id}
            await self.finish(queue, [later])

    async def test_one_fenced_delivery_leaves_the_rest_of_its_batch_alone(self) -> None:
        async with self.opened() as queue:
            await queue.send(messages(3))
            taken = await self.take(queue, 3)
            await self.finish(queue, taken[:1])
            fenced = await queue.settle([(delivery, outcome_of(delivery)) for delivery in taken])
            assert fenced == {taken[0].message.id}
            assert {outcome.message for outcome in await self.take_outcomes(queue, 2)} == set(ids(taken[1:]))

    async def test_heartbeat_details_survive_redelivery(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            sent, other = messages(2)
            await queue.send([sent, other])
            taken = await self.take(queue, 2)
            assert {delivery.heartbeat for delivery in taken} == {None}
            await queue.extend(taken, {sent.id: b'{"page":7}'})
            await self.lapse()
            await self.passing(self.late)
            details = {delivery.message.id: delivery.heartbeat for delivery in await self.take(queue, 2)}
            assert details == {sent.id: Raw(b'{"page":7}'), other.id: None}

    # -- handing back --------------------------------------------------------------------------------------------

    async def test_release_returns_work_at_once_and_burns_no_delivery(self) -> None:
        async with self.opened(max_deliveries=2) as queue:
            await queue.send([message()])
            last = None
            for _ in range(6):
                delivery = await self.take_one(queue)
                assert last is None or delivery.epoch > last.epoch
                assert await queue.release([delivery]) == set()
                assert await queue.settle([(delivery, outcome_of(delivery))]) == {delivery.message.id}
                last = delivery
            await self.finish(queue, [await self.take_one(queue)])
            assert await queue.dead_letters() == []

    async def test_release_with_a_delay_is_not_early(self) -> None:
        async with self.opened() as queue:
            await queue.send([message()])
            await queue.release([await self.take_one(queue)], delay=self.lease)
            await self.assert_nothing_comes(queue)
            assert await self.counts(queue) == (0, 0, 1, 0)
            await self.lapse()
            await self.take_one(queue)

    async def test_release_with_a_reason_counts_and_the_dead_letter_gives_it(self) -> None:
        async with self.opened(max_deliveries=3) as queue:
            await queue.send([message()])
            for _ in range(3):
                assert await queue.dead_letters() == []
                await queue.release([await self.take_one(queue)], reason="No task of the name 'work' is registered here.")
            await self.assert_nothing_comes(queue)
            (letter,) = await queue.dead_letters()
            assert "No task of the name 'work'" in letter.reason
            (outcome,) = await self.take_outcomes(queue)
            assert outcome.status == "dead"
            assert outcome.error is not None
            assert "No task of the name 'work'" in outcome.error.message

    async def test_a_message_of_a_newer_version_goes_to_the_dead_letters_with_the_reason(self) -> None:
        async with self.opened(lease=self.lease, max_deliveries=2) as queue:
            newer, neighbour = message(version=WIRE_VERSION + 1), message()
            await queue.send([newer, neighbour])
            # A backend may hand it to the worker, which hands it back with the reason, or see the version for itself.
            for _ in range(10):
                for delivery in await queue.receive([QUEUE], 10, worker="w1", wait=self.glance):
                    if delivery.message.id == newer.id:
                        await queue.release([delivery], reason="It is of the newer version 2.")
                    else:
                        await self.finish(queue, [delivery])
                if await queue.dead_letters():
                    break
                await self.lapse()
            (letter,) = await queue.dead_letters()
            assert letter.id == newer.id
            assert "version" in letter.reason
            assert await queue.missing([neighbour.id]) == {neighbour.id}, (
                "a message that nobody reads must not stall its neighbours"
            )

    # -- dead letters --------------------------------------------------------------------------------------------

    async def test_a_message_dies_after_exactly_max_deliveries_and_everyone_learns_why(self) -> None:
        async with self.opened(lease=self.lease, max_deliveries=3) as queue:
            poison, neighbour = message(), message()
            await queue.send([poison])
            await self.use_up(queue, 2)
            delivery = await self.take_one(queue)
            await queue.extend([delivery], {poison.id: b'"last words"'})
            assert await queue.dead_letters() == []
            await self.lapse()
            await self.assert_nothing_comes(queue)
            (outcome,) = await self.take_outcomes(queue)
            assert (outcome.message, outcome.status, outcome.run, outcome.step) == (poison.id, "dead", poison.run, poison.step)
            assert outcome.error is not None
            assert "3" in outcome.error.message
            assert outcome.heartbeat == Raw(b'"last words"')
            (letter,) = await queue.dead_letters()
            assert (letter.id, letter.message, letter.deliveries) == (poison.id, poison, 3)
            assert letter.reason == outcome.error.message
            assert await self.counts(queue) == (0, 0, 0, 1)
            await queue.ack_outcomes([outcome])
            await queue.send([neighbour])
            await self.finish(queue, [await self.take_one(queue)])

    async def test_redrive_puts_a_dead_letter_back_with_a_fresh_count(self) -> None:
        async with self.opened(lease=self.lease, max_deliveries=2) as queue:
            await queue.send([message()])
            zombie = await self.take_one(queue)
            await self.lapse()
            await self.use_up(queue, 1)
            (outcome,) = await self.take_outcomes(queue)
            await queue.ack_outcomes([outcome])
            assert await queue.redrive([zombie.message.id, "unknown"]) == 1
            assert await self.counts(queue) == (1, 0, 0, 0)
            await self.use_up(queue, 1)
            owner = await self.take_one(queue)
            assert await queue.settle([(zombie, outcome_of(zombie))]) == {zombie.message.id}
            await self.finish(queue, [owner])
            assert await queue.redrive([zombie.message.id]) == 0

    async def test_a_dead_letter_that_is_sent_anew_lives_again(self) -> None:
        async with self.opened(max_deliveries=1) as queue:
            again = message()
            await queue.send([again])
            await queue.release([await self.take_one(queue)], reason="no")
            await queue.ack_outcomes(await self.take_outcomes(queue))
            await queue.send([again])
            assert await queue.dead_letters() == []
            assert await self.counts(queue) == (1, 0, 0, 0)
            await self.finish(queue, [await self.take_one(queue)])

    async def test_discard_forgets_dead_letters(self) -> None:
        async with self.opened(max_deliveries=1) as queue:
            sent = messages(2)
            await queue.send(sent)
            for delivery in await self.take(queue, 2):
                await queue.release([delivery], reason="no")
            assert len(await queue.dead_letters()) == 2
            assert await queue.discard([sent[0].id, "unknown"]) == 1
            assert [letter.id for letter in await queue.dead_letters()] == [sent[1].id]
            assert await queue.redrive([sent[0].id]) == 0

    async def test_dead_letters_come_newest_first(self) -> None:
        async with self.opened(max_deliveries=1) as queue:
            died = []
            for _ in range(3):
                await queue.send([message()])
                delivery = await self.take_one(queue)
                await queue.release([delivery], reason="no")
                await self.passing(0.01)
                died.append(delivery.message.id)
            assert [letter.id for letter in await queue.dead_letters()] == died[::-1]
            assert [letter.id for letter in await queue.dead_letters(2)] == died[:0:-1]

    # -- delay ---------------------------------------------------------------------------------------------------

    async def test_a_delayed_message_is_never_early(self) -> None:
        async with self.opened() as queue:
            started = self.now()
            await queue.send([message()], delay=self.lease)
            await self.passing(self.lease / 4)
            await self.assert_nothing_comes(queue)
            assert await self.counts(queue) == (0, 0, 1, 0)
            waiting = asyncio.create_task(queue.receive([QUEUE], 1, worker="w1", wait=60.0))
            await asyncio.sleep(0.01)
            await self.passing(self.lease * 3 / 4 + self.late)
            assert len(await asyncio.wait_for(waiting, self.patience)) == 1
            # A microsecond is the rounding of a sum of floats.
            assert self.now() - started >= self.lease - 1e-6

    # -- cancellation --------------------------------------------------------------------------------------------

    async def test_cancel_removes_what_waits(self) -> None:
        async with self.opened() as queue:
            ready, other, later = messages(3)
            await queue.send([ready, other])
            await queue.send([later], delay=self.lease)
            await queue.cancel([ready.id, later.id, "unknown"])
            assert await self.counts(queue) == (1, 0, 0, 0)
            assert await queue.missing([ready.id, later.id]) == {ready.id, later.id}
            await self.lapse()
            assert ids(await self.take(queue, 1)) == [other.id]
            await self.assert_nothing_comes(queue)
            await self.assert_no_outcome(queue)

    async def test_cancel_tells_the_worker_that_holds_the_message(self) -> None:
        async with self.opened() as queue:
            await queue.send(messages(2))
            mine = await self.take_one(queue, worker="w1")
            theirs = await self.take_one(queue, worker="w2")
            waiting = asyncio.create_task(queue.cancellations("w1", 60.0))
            await asyncio.sleep(0.01)
            await queue.cancel([mine.message.id])
            if not queue.capabilities.cancels:
                waiting.cancel()
                assert await queue.cancellations("w1", self.glance) == []
                return
            assert await asyncio.wait_for(waiting, self.patience) == [mine.message.id]
            assert await queue.cancellations("w2", self.glance) == []
            # What the worker makes of it is an outcome like others.
            assert await queue.settle([(mine, outcome_of(mine, "cancelled"))]) == set()
            (outcome,) = await self.take_outcomes(queue)
            assert outcome.status == "cancelled"
            await queue.ack_outcomes([outcome])
            await self.finish(queue, [theirs])

    async def test_a_cancelled_message_is_not_delivered_again(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            await queue.send(messages(2))
            dead, drained = await self.take(queue, 2)
            await queue.cancel([dead.message.id, drained.message.id])
            await queue.release([drained])
            await self.lapse()
            await self.assert_nothing_comes(queue)
            assert await self.counts(queue) == (0, 0, 0, 0)
            assert await queue.missing(ids([dead, drained])) == set(ids([dead, drained]))

    # -- what comes back -----------------------------------------------------------------------------------------

    async def test_missing_tells_what_must_be_sent_again(self) -> None:
        async with self.opened() as queue:
            leased, settled, ready, delayed = messages(4)
            await queue.send([leased])
            await self.take_one(queue)
            await queue.send([settled])
            delivery = await self.take_one(queue)
            await queue.settle([(delivery, outcome_of(delivery))])
            await queue.send([ready])
            await queue.send([delayed], delay=self.lease)
            everything = [leased.id, settled.id, ready.id, delayed.id, "never-sent"]
            assert await queue.missing(everything) == {"never-sent"}
            (outcome,) = await self.take_outcomes(queue)
            assert await queue.missing(everything) == {"never-sent"}
            await queue.ack_outcomes([outcome])
            assert await queue.missing(everything) == {"never-sent", settled.id}
            assert await queue.missing([]) == set()

    async def test_outcomes_come_again_until_they_are_acknowledged(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            await queue.send(messages(2))
            taken = await self.take(queue, 2)
            await queue.settle([(delivery, outcome_of(delivery)) for delivery in taken])
            first, second = await self.take_outcomes(queue, 2)
            await queue.ack_outcomes([first])
            await self.assert_no_outcome(queue)
            await self.lapse()
            assert await self.take_outcomes(queue) == [second]
            await queue.ack_outcomes([second, second])
            await self.lapse()
            await self.assert_no_outcome(queue)

    async def test_a_waiting_orchestrator_is_woken_by_an_outcome(self) -> None:
        async with self.opened() as queue:
            await queue.send([message()])
            delivery = await self.take_one(queue)
            waiting = asyncio.create_task(queue.outcomes(10, 60.0))
            await asyncio.sleep(0.01)
            await queue.settle([(delivery, outcome_of(delivery))])
            assert len(await asyncio.wait_for(waiting, self.patience)) == 1

    async def test_progress_comes_in_order_and_once(self) -> None:
        async with self.opened() as queue:
            waiting = asyncio.create_task(queue.progress(100, 60.0))
            await asyncio.sleep(0.01)
            shown = [Progress(run="r", kind="token", step=1, offset=i, data=Raw(b'"piece %d"' % i)) for i in range(10)]
            await queue.publish(shown)
            seen = await asyncio.wait_for(waiting, self.patience)
            while len(seen) < 10:
                more = await queue.progress(100, self.patience)
                assert more, f"only {len(seen)} of 10 came"
                seen += more
            assert seen == shown
            assert await queue.progress(100, self.glance) == []

    # -- bounds --------------------------------------------------------------------------------------------------

    async def test_a_full_lane_refuses_the_whole_batch_and_other_lanes_go_on(self) -> None:
        async with self.opened(capacity=4) as queue:
            await queue.send(messages(3))
            refused = messages(2)
            with pytest.raises(Overloaded, match=QUEUE):
                await queue.send([message(queue="other"), *refused])
            assert await queue.missing([it.id for it in refused]) == {it.id for it in refused}
            assert await self.counts(queue) == (3, 0, 0, 0)
            assert await self.counts(queue, "other") == (0, 0, 0, 0)
            await queue.send([message(), message(queue="other"), message(priority=1), message(namespace="acme")])
            await self.finish(queue, await self.take(queue, 6))
            await queue.send(refused)

    async def test_payloads_up_to_the_limit_arrive_and_larger_ones_are_refused(self) -> None:
        async with self.opened() as queue:
            largest = queue.capabilities.largest_message
            empty = message(payload=Raw(b"{}"))
            room = largest - len(encode(message(payload=Raw(b'{"a":""}')))) - 16
            full = message(payload=Raw(b'{"a":"%s"}' % (b"x" * room)))
            over = message(payload=Raw(b'"%s"' % (b"x" * (largest - 1))))
            await queue.send([empty, full])
            with pytest.raises(PayloadTooLarge):
                await queue.send([message(), over])
            taken = await self.take(queue, 2)
            assert {delivery.message.id: delivery.message.payload for delivery in taken} == {
                empty.id: empty.payload,
                full.id: full.payload,
            }
            await self.assert_nothing_comes(queue)
