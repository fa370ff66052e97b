"""What surrounds runs, over HTTP: workflows and their schemas, uploads, approvals, queues, bulk orders, dead letters, webhooks, health."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import FormData, web
from pydantic import BaseModel

from tests.integration.api_server import PATIENCE, Caller, api
from ziggurat import Artifact, llm, signal, state, task, workflow
from ziggurat.clock import SystemClock
from ziggurat.doors.api.uploads import plain_name
from ziggurat.doors.api.webhooks import RETRIES, Webhooks, read_secret, sign
from ziggurat.errors import ConfigurationError
from ziggurat.records import DeadLetter, Lane, Message
from ziggurat.settings import Settings


class Decision(BaseModel):
    """What a reviewer says."""

    verdict: Literal["approve", "reject"]
    note: str = ""


@task
async def size_of(file: Artifact) -> int:
    return len(await file.read())


@workflow(tags={"kind": "document"}, budget="$0.50")
async def weigh(file: Artifact, factor: int = 1) -> int:
    """Weigh a document.

    More of the docstring.
    """
    return factor * await size_of(file)


@workflow
async def review(title: str) -> str:
    state(title=title)
    decision = await signal("decision", Decision)
    return decision.verdict


@workflow
async def spend() -> str:
    return await llm.text("Write a long letter.", max_tokens=100)


PROGRAM = (size_of, weigh, review)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    async with api(tmp_path, *PROGRAM) as served:
        yield served


def form(*files: tuple[str, bytes], **fields: str) -> FormData:
    made = FormData()
    for name, content in files:
        made.add_field("files", content, filename=name, content_type="text/plain")
    for name, value in fields.items():
        made.add_field(name, value)
    return made


async def test_workflows_show_what_they_take_and_return(caller: Caller) -> None:
    found = {one["name"]: one for one in (await caller.ok("GET", "/workflows"))["workflows"]}
    assert {"weigh", "review"} <= set(found)
    weigh_ = found["weigh"]
    assert weigh_["description"] == "Weigh a document." and weigh_["budget_usd"] == 0.5 and weigh_["file_parameters"] == ["file"]
    assert weigh_["input_schema"]["properties"]["factor"]["type"] == "integer"
    assert weigh_["result_schema"] == {"type": "integer"}
    assert (await caller.ok("GET", "/workflows/review"))["input_schema"]["required"] == ["title"]
    assert (await caller.get("/workflows/nobody")).status == 404


async def test_each_uploaded_file_starts_one_run_however_often_it_is_sent(caller: Caller) -> None:
    files = [("a.txt", b"four"), ("b.txt", b"eleven byte"), ("c.txt", b"four")]
    for _ in range(2):
        sent = await caller.ok("POST", "/workflows/weigh/files?batch=march&tag=who=me", data=form(*files, input='{"factor": 2}'))
        assert [one["error"] for one in sent["files"]] == [""] * 3
    ids = [one["run"] for one in sent["files"]]
    assert len(set(ids)) == 3 and all(id.startswith("march-") for id in ids)
    assert [(await caller.until(id, "completed"))["result"] for id in ids] == [8, 22, 8]
    runs = (await caller.ok("GET", "/runs"))["runs"]
    assert len(runs) == 3
    assert runs[0]["tags"] == {"kind": "document", "who": "me"}
    shown = await caller.ok("GET", f"/runs/{ids[0]}")
    assert shown["input"]["file"]["name"] == "a.txt" and shown["input"]["file"]["size"] == 4


async def test_bad_uploads_start_nothing(caller: Caller) -> None:
    for path, data, error in (
        ("/workflows/nobody/files", form(("a", b"x")), "UnknownName"),
        ("/workflows/review/files", form(("a", b"x")), "InvalidData"),
        ("/workflows/weigh/files?parameter=factor", form(("a", b"x")), "InvalidData"),
        ("/workflows/weigh/files", form(other="x"), "InvalidData"),
        ("/workflows/weigh/files", form(("a", b"x"), input="[1]"), "InvalidData"),
        ("/workflows/weigh/files?batch=../up", form(("a", b"x")), "InvalidData"),
        ("/workflows/weigh/files", b"no form", "InvalidData"),
    ):
        assert (await caller.post(path, data=data)).error == error, path
    # What does not fit the workflow is told of the file that it concerns.
    answer = await caller.ok("POST", "/workflows/weigh/files", data=form(("a", b"x"), input='{"factor": "many"}'))
    assert answer["files"][0]["run"] is None and "factor" in answer["files"][0]["error"]
    assert (await caller.ok("GET", "/runs"))["runs"] == []


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/absolute/name.pdf", "name.pdf"),
        ("<img src=x onerror=alert(1)>.pdf", "img src=x onerror=alert(1).pdf"),
        ("a\r\nset-cookie: b", "aset-cookie b"),
        ("nul\x00l.txt", "null.txt"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("x" * 500 + ".pdf", "x" * 196 + ".pdf"),
    ],
)
def test_a_file_name_is_a_label_and_never_a_path(given: str, label: str) -> None:
    assert plain_name(given) == label


async def test_bodies_have_limits_and_are_not_unpacked(tmp_path: Path) -> None:
    async with api(tmp_path, *PROGRAM, body_limit=10_000, upload_limit=50_000) as caller:
        order = {"workflow": "review", "input": {"title": "x" * 20_000}}
        assert (await caller.post("/runs", order)).status == 413

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b'{"workflow": "' + b"x" * 1_000

        chunked = await caller.post("/runs", data=endless(), headers={"content-type": "application/json"})
        assert chunked.error == "PayloadTooLarge"
        assert (await caller.post("/workflows/weigh/files", data=form(("a", b"x" * 60_000)))).status == 413
        assert (await caller.post("/workflows/weigh/files", data=form(("a", b"x" * 20_000)))).status == 200
        # A megabyte of zeros is a kilobyte packed.
        bomb = gzip.compress(json.dumps({"workflow": "review", "input": {"title": "0" * 1_000_000}}).encode())
        assert len(bomb) < 10_000
        packed = await caller.post("/runs", data=bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})
        assert packed.error == "UnsupportedMediaType"
        deep = b'{"workflow": "review", "input": {"title": ' + b"[" * 4_000 + b"]" * 4_000 + b"}}"
        assert 400 <= (await caller.post("/runs", data=deep, headers={"content-type": "application/json"})).status < 500
        assert len((await caller.ok("GET", "/runs"))["runs"]) == 1


async def test_what_runs_hold_is_json_and_never_a_page(caller: Caller) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    await caller.ok("POST", "/runs", {"workflow": "review", "input": {"title": evil}, "id": "evil", "tags": {"note": evil}})
    await caller.until("evil", "waiting")
    for path in ("/runs", "/runs/evil", "/runs/evil/history", "/approvals", f"/runs/{evil.replace('/', '%2F')}"):
        answer = await caller.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["cache-control"] == "no-store"
        answer.json  # noqa: B018
    for path in ("//..%2f..%2fetc/passwd", "//api/v1/runs/..%2f..%2f..%2fetc%2fpasswd", "//api/v1/%2e%2e/%2e%2e/etc/passwd"):
        answer = await caller.get(path)
        assert answer.status == 404 and b"root:" not in answer.body


async def test_an_approval_shows_its_question_and_the_shape_of_the_answer(caller: Caller) -> None:
    await caller.ok("POST", "/runs", {"workflow": "review", "input": {"title": "atlas"}, "id": "one"})
    await caller.until("one", "waiting")
    (waiting,) = (await caller.ok("GET", "/approvals"))["approvals"]
    assert (waiting["run"], waiting["signal"], waiting["state"]) == ("one", "decision", {"title": "atlas"})
    assert waiting["input"] == {"title": "atlas"}
    assert waiting["value_schema"]["properties"]["verdict"]["enum"] == ["approve", "reject"]
    await caller.ok("POST", "/runs/one/signal", {"name": "decision", "value": {"verdict": "approve"}})
    assert (await caller.until("one", "completed"))["result"] == "approve"
    assert (await caller.ok("GET", "/approvals"))["approvals"] == []


async def test_queues_workers_models_costs_and_health(caller: Caller) -> None:
    queues = (await caller.ok("GET", "/queues"))["queues"]
    assert all(set(queue) >= {"name", "ready", "leased", "delayed", "dead", "oldest_age", "workers"} for queue in queues)
    async with asyncio.timeout(PATIENCE):
        while not (workers := (await caller.ok("GET", "/workers"))["workers"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert workers[0]["pool"] == "default" and workers[0]["slots"] > 0
    await caller.ok("POST", "/runs", {"workflow": "spend", "id": "counted"})
    async with asyncio.timeout(PATIENCE):
        # A worker shows itself anew every second or so.
        while not (ended := (await caller.ok("GET", "/workers"))["workers"][0]["ended_in"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert ended == {"default": 1}
    (default,) = [one for one in (await caller.ok("GET", "/queues"))["queues"] if one["name"] == "default"]
    assert default["ended"] == {workers[0]["name"]: 1}
    models = (await caller.ok("GET", "/models"))["models"]
    assert all(route["breaker"] == "closed" for model in models for route in model["routes"])
    assert await caller.ok("GET", "/costs?by=workflow&by=day") == {"by": ["workflow", "day"], "costs": [], "total_usd": 0.0}
    assert (await caller.get("/costs?by=shoe-size")).status == 422
    assert (await caller.ok("GET", "//healthz")) == (await caller.ok("GET", "//readyz")) == {"status": "ok"}
    metrics = await caller.get("//metrics")
    assert metrics.headers["content-type"].startswith("text/plain") and b"ziggurat_" in metrics.body


# -- bulk orders ----------------------------------------------------------------------------------------------------


async def ended(caller: Caller, order: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE):
        while (found := await caller.ok("GET", f"/bulk/{order}"))["ended_at"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return dict(found)


async def test_a_bulk_order_is_carried_out_on_every_run_that_matches(caller: Caller) -> None:
    for number in range(60):
        tags = {"batch": "one" if number % 2 else "two"}
        await caller.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": f"r{number}", "tags": tags})
    order = {"verb": "cancel", "tags": {"batch": "one"}, "reason": "enough", "id": "stop-one"}
    answer = await caller.post("/bulk", order)
    assert (answer.status, answer.json["total"]) == (202, 30)
    done = await ended(caller, "stop-one")
    assert (done["done"], done["refused"]) == (30, 0)
    await caller.ok("POST", "/bulk", order)  # The same id is the same order.
    async with asyncio.timeout(PATIENCE):
        while (await caller.ok("GET", "/runs/counts"))["counts"].get("cancelled") != 30:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    retried = await ended(caller, (await caller.ok("POST", "/bulk", {"verb": "retry", "ids": ["r0", "r1"]}))["id"])
    assert (retried["done"], retried["refused"]) == (0, 2)
    assert "only a failed run" in retried["refusals"][0]["message"]
    gone = await ended(caller, (await caller.ok("POST", "/bulk", {"verb": "purge", "status": ["cancelled"]}))["id"])
    assert gone["done"] == 30
    assert (await caller.ok("GET", "/runs/counts"))["counts"] == {"waiting": 30}
    assert {one["verb"] for one in (await caller.ok("GET", "/bulk"))["orders"]} == {"cancel", "retry", "purge"}
    for wrong in ({"verb": "cancel"}, {"verb": "cancel", "ids": ["r0"], "search": "r"}, {"verb": "dance", "ids": ["r0"]}):
        assert (await caller.post("/bulk", wrong)).status == 422
    assert (await caller.post("/bulk", {"verb": "cancel", "ids": ["r0", "nobody"]})).status == 404
    assert (await caller.ok("GET", "/runs/r0"))["status"] == "waiting"


async def test_a_bulk_order_goes_on_where_the_server_ended(tmp_path: Path) -> None:
    async with api(tmp_path, *PROGRAM) as first:
        for number in range(5):
            await first.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": f"r{number}"})
        hub = first.server.hub
        await hub.bulk.close()
        await first.ok("POST", "/bulk", {"verb": "cancel", "ids": [f"r{n}" for n in range(5)], "id": "order"})
        # It had noted that it tries these two, had cancelled one of them, and then it was killed.
        await hub.file.write(lambda db: db.execute("UPDATE bulk_items SET outcome = 'trying' WHERE n < 2").rowcount)
        await first.ok("POST", "/runs/r0/cancel")
        await first.until("r0", "cancelled")
    async with api(tmp_path, *PROGRAM) as second:
        assert (await ended(second, "order"))["done"] == 5
        for number in range(5):
            await second.until(f"r{number}", "cancelled")


# -- dead letters ---------------------------------------------------------------------------------------------------


async def test_dead_letters_are_shown_redriven_and_forgotten(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    message = Message(id="r~0.1.1", task="size_of", payload=b"{}", run="r", lane=Lane(namespace="acme"))  # type: ignore[arg-type]
    letters = [DeadLetter(id=f"l{n}", message=message, reason="five deliveries", deliveries=5, died_at=9.0 + n) for n in range(2)]
    done: list[tuple[str, list[str]]] = []

    async def listed(limit: int = 100) -> list[DeadLetter]:
        return letters[:limit]

    def noted(verb: str) -> Any:
        async def act(ids: list[str]) -> int:
            done.append((verb, list(ids)))
            return len(ids)

        return act

    orchestrator = caller.server.hub.orchestrator
    monkeypatch.setattr(orchestrator, "dead_letters", listed)
    monkeypatch.setattr(orchestrator, "redrive", noted("redrive"))
    monkeypatch.setattr(orchestrator, "discard", noted("discard"))
    found = (await caller.ok("GET", "/deadletters"))["dead_letters"]
    assert [one["id"] for one in found] == ["l0", "l1"]
    assert (found[0]["task"], found[0]["namespace"], found[0]["reason"]) == ("size_of", "acme", "five deliveries")
    assert await caller.ok("POST", "/deadletters/redrive", {"ids": ["l1"]}) == {"count": 1}
    assert await caller.ok("POST", "/deadletters/discard", {"all": True}) == {"count": 2}
    assert done == [("redrive", ["l1"]), ("discard", ["l0", "l1"])]
    assert (await caller.post("/deadletters/redrive", {"ids": ["l7"]})).status == 404
    assert (await caller.post("/deadletters/redrive", {})).status == 422
    other = caller.key("o", "admin", "other")
    assert (await other.ok("GET", "/deadletters"))["dead_letters"] == []
    assert (await other.post("/deadletters/redrive", {"ids": ["l1"]})).status == 404
    assert await other.ok("POST", "/deadletters/discard", {"all": True}) == {"count": 0}


# -- webhooks -------------------------------------------------------------------------------------------------------

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Hears webhooks; answers with the statuses that it was told to, then with 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.heard: list[tuple[dict[str, str], bytes]] = []

    async def hear(self, request: web.Request) -> web.Response:
        self.heard.append((dict(request.headers), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    hearing = Receiver()
    app = web.Application()
    app.router.add_post("/hook", hearing.hear)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield hearing, f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    await runner.cleanup()


def test_signatures_are_those_of_standard_webhooks() -> None:
    # The example of the specification's reference libraries.
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(read_secret("x", SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body) == expected
    for wrong in ("", "secret", "whsec_", "whsec_AAAA", "whsec_%%%"):
        with pytest.raises(ConfigurationError, match=r"server\.webhooks\.x"):
            read_secret("x", wrong)


async def noted(caller: Caller, count: int) -> list[dict[str, Any]]:
    """Wait until so many deliveries are noted, a moment after they were heard: what is not noted is sent again by the next server."""
    async with asyncio.timeout(PATIENCE):
        while True:
            shown: list[dict[str, Any]] = (await caller.ok("GET", "/webhooks"))["deliveries"]
            if len(shown) == count and all(one["delivered_at"] for one in shown):
                return shown
            await asyncio.sleep(0.01)


async def test_a_webhook_hears_of_each_end_once_after_failures_and_restarts(
    tmp_path: Path, receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing, url = receiver
    hearing.statuses = [500, 503]
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setattr("ziggurat.doors.api.webhooks.RETRIES", (0.01,) * 5)
    monkeypatch.setattr("ziggurat.doors.api.webhooks.LOOK_EVERY", 0.02)
    hooks = {"crm": {"url": url, "secret": "env:HOOK_SECRET", "events": ["completed"]}}
    async with api(tmp_path, *PROGRAM, webhooks=hooks) as first:
        await first.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": "one"})
        await first.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": "two"})
        await first.ok("POST", "/runs/two/cancel")  # Not of the events that it wants.
        await first.ok("POST", "/runs/one/signal", {"name": "decision", "value": {"verdict": "approve"}})
        async with asyncio.timeout(PATIENCE):
            while len(hearing.heard) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        shown = await noted(first, 1)
        assert [(one["run"], one["event"], one["webhook"]) for one in shown] == [("one", "run.completed", "crm")]
        await first.server.hub.webhooks.close()
        await first.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": "three"})
        await first.ok("POST", "/runs/three/signal", {"name": "decision", "value": {"verdict": "reject"}})
        await first.until("three", "completed")
    async with api(tmp_path, *PROGRAM, webhooks=hooks) as second:
        async with asyncio.timeout(PATIENCE):
            while len(hearing.heard) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        again = (await second.ok("GET", "/webhooks"))["deliveries"]
        assert {one["run"] for one in again} == {"one", "three"}
        await second.ok("POST", f"/webhooks/{again[0]['id']}/redeliver")
        async with asyncio.timeout(PATIENCE):
            while len(hearing.heard) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    ids = [headers["webhook-id"] for headers, _ in hearing.heard]
    assert ids[0] == ids[1] == ids[2] and len(set(ids)) == 2
    headers, body = hearing.heard[0]
    signed = sign(read_secret("crm", SECRET), headers["webhook-id"], headers["webhook-timestamp"], body)
    assert headers["webhook-signature"] == signed
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["status"]) == ("run.completed", "one", "completed")


async def test_a_webhook_hears_of_runs_that_stand_still_once_each_time(
    tmp_path: Path, receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing, url = receiver
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setattr("ziggurat.doors.api.webhooks.LOOK_EVERY", 0.02)
    hooks = {"desk": {"url": url, "secret": "env:HOOK_SECRET", "events": ["parked", "waiting"], "workflows": ["review", "spend"]}}

    async def heard(count: int) -> list[tuple[str, str]]:
        async with asyncio.timeout(PATIENCE):
            while len(hearing.heard) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        bodies = [json.loads(body) for _, body in hearing.heard]
        return [(body["type"], body["data"]["id"]) for body in bodies]

    program = (*PROGRAM, spend)
    inference = {
        "endpoints": {"desk": {"kind": "scripted", "prices": {"scribe": {"output": 1000.0}}}},
        "models": {"default": {"routes": ["desk:scribe"]}},
        "ledger": str(tmp_path / "ledger.db"),
        "answers": {"path": str(tmp_path / "answers.db")},
        "switches": str(tmp_path / "models.json"),
    }
    more: dict[str, Any] = {"more": {"inference": inference}}
    async with api(tmp_path, *program, **more) as before:
        await before.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": "old"})
        await before.until("old", "waiting")
    async with api(tmp_path, *program, webhooks=hooks, **more) as first:
        # Nothing is told of what stood still before anybody listened.
        async with asyncio.timeout(PATIENCE):
            while not first.server.hub.file.rows("SELECT 1 FROM marks WHERE name = 'standstills.waiting'"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await first.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": "asks"})
        assert await heard(1) == [("run.waiting", "asks")]
        _, body = hearing.heard[0]
        assert json.loads(body)["data"]["awaits"][0]["signal"] == "decision"
        await first.ok("POST", "/runs", {"workflow": "spend", "id": "poor", "budget": "$0.001"})
        assert (await heard(2))[1] == ("run.parked", "poor")
        parked = json.loads(hearing.heard[1][1])["data"]
        assert parked["error"]["budget"] == "run:poor" and "resume" in parked["reason"]
        # Resumed without more money, it is parked again, which is another standstill.
        await first.ok("POST", "/runs/poor/resume")
        assert (await heard(3))[2] == ("run.parked", "poor")
        await noted(first, 3)
    async with api(tmp_path, *program, webhooks=hooks, **more) as second:
        await second.ok("POST", "/runs", {"workflow": "review", "input": {"title": "t"}, "id": "later"})
        assert (await heard(4))[3] == ("run.waiting", "later")
        await second.ok("POST", "/runs/asks/signal", {"name": "decision", "value": {"verdict": "approve"}})
        await second.until("asks", "completed")
        async with asyncio.timeout(PATIENCE):
            while len(second.server.hub.file.rows("SELECT 1 FROM standstills WHERE event = 'waiting'")) != 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert len(hearing.heard) == 4
    assert len({headers["webhook-id"] for headers, _ in hearing.heard}) == 4


async def test_a_webhook_gives_up_in_the_end_and_says_so(caller: Caller, receiver: tuple[Receiver, str]) -> None:
    hearing, url = receiver
    hub = caller.server.hub
    wanted = Settings.model_validate({"server": {"webhooks": {"x": {"url": url, "secret": "env:HOOK"}}}}).server.webhooks
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOOK", SECRET)
        hooks = Webhooks(wanted, hub.file, hub.orchestrator, SystemClock())
    hearing.statuses = [410, *[500] * (len(RETRIES) + 1)]
    async with aiohttp.ClientSession() as session:
        for attempts, gone in ((0, True), (0, False), (len(RETRIES), True)):
            next_at, delivered, error, _ = await hooks._send(session, "msg_1", "x", b"{}", attempts)
            assert (next_at is None, delivered) == (gone, None)
            assert "answered" in error
        next_at, _, error, _ = await hooks._send(session, "msg_1", "gone", b"{}", 0)
        assert next_at is None and "no webhook" in error
