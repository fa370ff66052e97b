"""Who may do what over HTTP: every route, every role, another tenant; logins, other sites' pages, and what the audit log says."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.api_server import Caller, api
from ziggurat import signal, workflow
from ziggurat.doors.api.app import build_app
from ziggurat.errors import LayerUnreachable


@workflow
async def wait_for_word(question: str = "?") -> str:
    return await signal("word", str)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    async with api(tmp_path, wait_for_word, auth="always") as served:
        yield served


#: Every route: who may call it ("anyone", or the least role), whether it shows the whole system, and a body that fits. {run} stands for
#: a run of the tenant "acme". A route that is not here fails the test.
MATRIX: dict[tuple[str, str], tuple[str, bool, Any]] = {
    ("GET", "/api/v1/runs"): ("viewer", False, None),
    ("GET", "/api/v1/runs/counts"): ("viewer", False, None),
    ("POST", "/api/v1/runs"): ("operator", False, {"workflow": "wait_for_word"}),
    ("GET", "/api/v1/runs/{id}"): ("viewer", False, None),
    ("GET", "/api/v1/runs/{id}/history"): ("viewer", False, None),
    ("GET", "/api/v1/runs/{id}/steps"): ("viewer", False, None),
    ("GET", "/api/v1/runs/{id}/events"): ("viewer", False, None),
    ("POST", "/api/v1/runs/{id}/signal"): ("operator", False, {"name": "other", "value": 1}),
    ("POST", "/api/v1/runs/{id}/pause"): ("operator", False, {}),
    ("POST", "/api/v1/runs/{id}/resume"): ("operator", False, {}),
    ("POST", "/api/v1/runs/{id}/retry"): ("operator", False, None),
    ("POST", "/api/v1/runs/{id}/fork"): ("operator", False, {"step": 1}),
    ("POST", "/api/v1/runs/{id}/cancel"): ("operator", False, {}),
    ("DELETE", "/api/v1/runs/{id}"): ("admin", False, None),
    ("POST", "/api/v1/bulk"): ("operator", False, {"verb": "pause", "search": "nothing-like-it"}),
    ("GET", "/api/v1/bulk"): ("viewer", False, None),
    ("GET", "/api/v1/bulk/{id}"): ("viewer", False, None),
    ("GET", "/api/v1/workflows"): ("viewer", False, None),
    ("GET", "/api/v1/workflows/{name}"): ("viewer", False, None),
    ("POST", "/api/v1/workflows/{name}/files"): ("operator", False, None),
    ("GET", "/api/v1/approvals"): ("viewer", False, None),
    ("GET", "/api/v1/deadletters"): ("viewer", False, None),
    ("POST", "/api/v1/deadletters/redrive"): ("operator", False, {"all": True}),
    ("POST", "/api/v1/deadletters/discard"): ("operator", False, {"all": True}),
    ("GET", "/api/v1/costs"): ("viewer", False, None),
    ("GET", "/api/v1/budgets"): ("viewer", False, None),
    ("GET", "/api/v1/limits"): ("viewer", False, None),
    ("GET", "/api/v1/schedules"): ("viewer", False, None),
    ("GET", "/api/v1/schedules/{name}"): ("viewer", False, None),
    ("PUT", "/api/v1/schedules/{name}"): ("operator", False, {"workflow": "wait_for_word", "cron": ["0 5 1 1 *"]}),
    ("DELETE", "/api/v1/schedules/{name}"): ("operator", False, None),
    ("POST", "/api/v1/schedules/{name}/pause"): ("operator", False, {}),
    ("POST", "/api/v1/schedules/{name}/resume"): ("operator", False, None),
    ("POST", "/api/v1/schedules/{name}/trigger"): ("operator", False, None),
    ("POST", "/api/v1/schedules/{name}/backfill"): (
        "operator",
        False,
        {"since": "2026-05-01T00:00Z", "until": "2026-05-02T00:00Z"},
    ),
    ("GET", "/api/v1/queues"): ("viewer", True, None),
    ("GET", "/api/v1/workers"): ("viewer", True, None),
    ("GET", "/api/v1/models"): ("viewer", True, None),
    ("GET", "/api/v1/models/{alias}/switches"): ("viewer", True, None),
    ("PUT", "/api/v1/models/{alias}"): ("operator", True, {"routes": ["local:smollm2"]}),
    ("POST", "/api/v1/models/{alias}/rollback"): ("operator", True, None),
    ("GET", "/metrics"): ("viewer", True, None),
    ("GET", "/metrics/targets"): ("viewer", True, None),
    ("GET", "/api/v1/session"): ("viewer", False, None),
    ("POST", "/api/v1/session"): ("anyone", False, {"key": "zk_wrong"}),
    ("DELETE", "/api/v1/session"): ("anyone", False, None),
    ("GET", "/api/v1/keys"): ("admin", False, None),
    ("POST", "/api/v1/keys"): ("admin", False, {"name": "{unique}", "role": "viewer"}),
    ("DELETE", "/api/v1/keys/{name}"): ("admin", False, None),
    ("GET", "/api/v1/audit"): ("admin", False, None),
    ("GET", "/api/v1/webhooks"): ("admin", True, None),
    ("POST", "/api/v1/webhooks/{id}/redeliver"): ("admin", True, None),
    ("GET", "/healthz"): ("anyone", False, None),
    ("GET", "/readyz"): ("anyone", False, None),
}
ROLES = ("viewer", "operator", "admin")


def routes(caller: Caller) -> set[tuple[str, str]]:
    """Every route of the app, as it is served."""
    paths = build_app(caller.server.hub, open_here=False).openapi()["paths"]
    return {(method.upper(), path) for path, operations in paths.items() for method in operations}


async def test_the_matrix_names_every_route_and_says_of_each_what_it_declares(caller: Caller) -> None:
    assert routes(caller) == set(MATRIX), "a new route needs a line in MATRIX: who may call it?"
    paths = build_app(caller.server.hub, open_here=False).openapi()["paths"]
    declared = {(m.upper(), p): (o["x-role"], o["x-system"]) for p, operations in paths.items() for m, o in operations.items()}
    assert declared == {route: (role, system) for route, (role, system, _) in MATRIX.items()}


async def ask(caller: Caller, method: str, path: str, body: Any, run: str, unique: str) -> int:
    place = path.replace("{id}", run).replace("{name}", "wait_for_word").replace("{alias}", "fast")
    if isinstance(body, dict):
        body = {key: unique if value == "{unique}" else value for key, value in body.items()}
    if path.endswith("/events"):
        async with caller.session.get(f"{caller.server.url}{place}", headers=caller.headers) as response:
            return response.status  # The stream goes on; its status is enough.
    return (await caller.ask(method, f"/{place}", body)).status


async def test_every_route_for_every_role_and_another_tenant(caller: Caller) -> None:
    callers = {("", "nobody"): caller}
    for namespace in ("*", "acme", "other"):
        for role in ROLES:
            callers[namespace, role] = caller.key(f"{role} of {namespace}", role, namespace)
    wrong: list[str] = []
    for number, ((method, path), (least, system, body)) in enumerate(MATRIX.items()):
        run = f"run-{number}"
        if "/runs/{id}" in path:
            await callers["acme", "admin"].ok("POST", "/runs", {"workflow": "wait_for_word", "id": run})
        for (namespace, role), who in callers.items():
            status = await ask(who, method, path, body, run, unique=f"{run} of {namespace} {role}")
            said = f"{method} {path} as {role} of {namespace or 'nowhere'}: {status}"
            if least == "anyone":
                allowed = status not in (403, 404)
            elif role == "nobody":
                allowed = status == 401
            elif ROLES.index(role) < ROLES.index(least) or (system and namespace != "*"):
                allowed = status == 403
            elif "/runs/{id}" in path and namespace == "other":
                allowed = status == 404
            else:
                # What it came to is other tests' business; here it was let in, and met nothing unexpected.
                allowed = status not in (401, 403, 405) and status < 500 and (status != 404 or "{" in path)
            if not allowed:
                wrong.append(said)
    assert not wrong, "\n".join(wrong)


async def test_a_tenant_sees_its_own_and_nothing_else(caller: Caller) -> None:
    acme, other, all_ = caller.key("a", "admin", "acme"), caller.key("o", "admin", "other"), caller.key("all", "admin")
    await acme.ok("POST", "/runs", {"workflow": "wait_for_word", "id": "secret-plan"})
    await acme.until("secret-plan", "waiting")
    assert (await acme.ok("GET", "/runs"))["runs"][0]["namespace"] == "acme"
    assert (await other.ok("GET", "/runs"))["runs"] == []
    assert (await other.ok("GET", "/runs?search=secret"))["runs"] == []
    assert (await other.ok("GET", "/runs/counts"))["counts"] == {}
    assert (await other.ok("GET", "/approvals"))["approvals"] == []
    assert [a["signal"] for a in (await acme.ok("GET", "/approvals"))["approvals"]] == ["word"]
    assert (await other.get("/runs?namespace=acme")).status == 404
    # What is not there and what is not theirs look alike.
    there, nowhere = await other.get("/runs/secret-plan"), await other.get("/runs/secret-plam")
    assert there.json["error"]["message"].replace("plan", "plam") == nowhere.json["error"]["message"]
    assert (await other.post("/runs", {"workflow": "wait_for_word", "id": "secret-plan"})).status == 409
    assert (await other.post("/runs", {"workflow": "wait_for_word", "namespace": "acme"})).status == 404
    assert (await other.post("/bulk", {"verb": "cancel", "ids": ["secret-plan"]})).status == 404
    bulk = await other.ok("POST", "/bulk", {"verb": "cancel", "status": ["waiting"]})
    assert bulk["total"] == 0
    assert (await acme.get(f"/bulk/{bulk['id']}")).status == 404
    assert (await acme.ok("GET", "/runs/secret-plan"))["status"] == "waiting"
    assert {run["id"] for run in (await all_.ok("GET", "/runs"))["runs"]} == {"secret-plan"}
    # Keys and the audit log are a tenant's own too.
    assert {key["name"] for key in (await other.ok("GET", "/keys"))["keys"]} == {"o"}
    assert (await other.post("/keys", {"name": "x", "role": "viewer", "namespace": "acme"})).status == 404
    assert (await other.ask("DELETE", "/keys/a")).status == 404
    assert {entry["namespace"] for entry in (await other.ok("GET", "/audit"))["entries"]} == {"other"}


async def test_keys_are_hashed_revoked_and_end(caller: Caller, tmp_path: Path) -> None:
    admin = caller.key("root", "admin")
    made = await admin.ok("POST", "/keys", {"name": "ci", "role": "operator", "days": 1})
    ci = caller.with_key(made["key"])
    assert (await ci.ok("GET", "/session"))["role"] == "operator"
    files = [tmp_path / f"control.db{suffix}" for suffix in ("", "-wal")]
    written = b"".join([await asyncio.to_thread(file.read_bytes) for file in files])
    assert made["key"].encode() not in written and made["key"][-43:].encode() not in written
    assert made["key"] not in (await admin.get("/keys")).body.decode()
    assert (await admin.post("/keys", {"name": "ci", "role": "viewer"})).status == 409
    other = made["key"][:-1] + ("A" if made["key"][-1] != "A" else "E")
    assert (await caller.with_key(other).get("/runs")).status == 401
    await admin.ok("DELETE", "/keys/ci")
    assert (await ci.get("/runs")).error == "Unauthorized"


async def test_a_login_is_a_cookie_and_its_verbs_need_the_token(caller: Caller) -> None:
    key = caller.server.hub.keyring.create("ann", "operator", "*")[1]
    jar = aiohttp.CookieJar(unsafe=True)  # It keeps cookies of addresses.
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        browser = Caller(caller.server, session, {})
        assert (await browser.get("/runs")).status == 401
        answer = await browser.post("/session", {"key": key})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and key not in cookie
        token = answer.json["csrf_token"]
        assert (await browser.ok("GET", "/session"))["via"] == "session"
        order = {"workflow": "wait_for_word", "id": "mine"}
        assert (await browser.post("/runs", order)).error == "CsrfTokenMissing"
        assert (await browser.post("/runs", order, headers={"x-csrf-token": "wrong"})).status == 403
        assert (await browser.post("/runs", order, headers={"x-csrf-token": token})).status == 201
        crossed = {"x-csrf-token": token, "origin": "https://evil.example"}
        assert (await browser.post("/runs/mine/cancel", {}, headers=crossed)).error == "CrossSite"
        assert (
            await browser.post("/runs/mine/cancel", {}, headers={"x-csrf-token": token, "sec-fetch-site": "cross-site"})
        ).status == 403
        assert (await browser.ok("GET", "/runs/mine"))["status"] != "cancelled"
        ours = {"x-csrf-token": token, "origin": browser.server.url}
        assert (await browser.post("/runs/mine/pause", {}, headers=ours)).status == 200
        assert (await browser.ask("DELETE", "/session")).status == 204
        assert (await browser.get("/runs")).status == 401
        # The cookie itself is dead, not only forgotten.
        await browser.post("/session", {"key": key})
        caller.server.hub.keyring.revoke("ann")
        assert (await browser.get("/runs")).status == 401


async def test_wrong_logins_are_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.doors.api.gate.LOGIN_EVERY", 3600.0)
    async with api(tmp_path, wait_for_word, auth="always") as caller:
        statuses = [(await caller.post("/session", {"key": f"zk_{n}"})).status for n in range(7)]
        assert statuses == [401] * 5 + [429] * 2
        answer = await caller.post("/session", {"key": caller.server.hub.keyring.create("k", "viewer")[1]})
        assert answer.status == 429 and int(answer.headers["retry-after"]) > 0


async def test_every_verb_is_audited_refused_ones_too(caller: Caller) -> None:
    admin, viewer = caller.key("root", "admin"), caller.key("eve", "viewer")
    await admin.ok("POST", "/runs", {"workflow": "wait_for_word", "id": "r"})
    assert (await admin.post("/runs/r/retry")).status == 409
    assert (await viewer.post("/runs/r/cancel")).status == 403
    await admin.ok("GET", "/runs")
    entries = (await admin.ok("GET", "/audit"))["entries"]
    told = [(e["actor"], e["action"], e["target"], e["status"]) for e in entries]
    assert told == [
        ("", "refused", "POST /api/v1/runs/r/cancel", 403),
        ("root", "retry_run", "/api/v1/runs/r/retry", 409),
        ("root", "start_run", "/api/v1/runs", 201),
    ]
    assert entries[1]["address"] == "127.0.0.1" and "only a failed run" in entries[1]["detail"]
    assert (await admin.ok("GET", "/audit?limit=1"))["next"] == entries[0]["n"]
    assert len((await admin.ok("GET", f"/audit?before={entries[0]['n']}"))["entries"]) == 2


async def test_on_loopback_nobody_needs_a_key_but_strange_names_and_proxies_do(tmp_path: Path) -> None:
    async with api(tmp_path, wait_for_word) as here:
        assert (await here.ok("GET", "/session"))["via"] == "loopback"
        assert (await here.get("/runs", headers={"host": "evil.example"})).status == 421
        assert (await here.get("/runs", headers={"host": "127.0.0.1.evil.example:80"})).status == 421
        assert (await here.get("/runs", headers={"host": "localhost:1"})).status == 200
        assert (await here.get("/runs", headers={"x-forwarded-for": "10.0.0.1"})).status == 401
        assert (await here.post("/runs", {"workflow": "wait_for_word"}, headers={"origin": "http://evil.example"})).status == 403
        # What a form of another site can send without asking first: no JSON, and its origin with it.
        form = {"content-type": "text/plain", "origin": "null"}
        assert (await here.ask("POST", "/runs", data=b'{"workflow": "wait_for_word"}', headers=form)).status == 403
        bad = base64.b64encode(b"user:password").decode()
        assert (await here.get("/runs", headers={"authorization": f"Basic {bad}"})).status == 401
        assert "access-control-allow-origin" not in (await here.get("/runs", headers={"origin": "http://evil.example"})).headers


async def test_what_a_caller_sends_never_becomes_a_header(tmp_path: Path) -> None:
    evil = "x\r\nset-cookie: evil=1\r\n\r\n<script>"
    async with api(tmp_path, wait_for_word) as here:
        orders: list[tuple[str, str, Any]] = [
            ("POST", "/runs", {"workflow": "wait_for_word", "id": evil}),
            ("POST", "/runs", {"workflow": evil}),
            ("POST", "/runs", {"workflow": "wait_for_word", "tags": {"note": evil}}),
            ("POST", "/runs", {"workflow": "wait_for_word", "tags": {evil: "x"}}),
            ("POST", "/runs", {"workflow": "wait_for_word", "namespace": evil}),
            ("POST", "/bulk", {"verb": "cancel", "search": "x", "id": evil}),
            ("POST", "/bulk", {"verb": "cancel", "search": "x", "reason": evil}),
            ("POST", "/keys", {"name": evil, "role": "viewer"}),
            ("POST", "/session", {"key": evil}),
        ]
        for method, path, body in orders:
            answer = await here.ask(method, path, body)
            assert 400 <= answer.status < 500, (path, body)
            assert "set-cookie" not in answer.headers and b"\r\n" not in answer.body
        coded = "x%0d%0aset-cookie:%20evil=1%0d%0a%0d%0a"
        places = (
            f"runs/{coded}",
            f"runs/{coded}/events",
            f"workflows/{coded}",
            f"schedules/{coded}",
            f"bulk/{coded}",
            f"models/{coded}/switches",
        )
        for place in (*places, f"runs?search={coded}", f"runs?after={coded}", f"approvals?workflow={coded}"):
            # As it stands, past a client that would correct it.
            reader, writer = await asyncio.open_connection("127.0.0.1", here.server.port)
            writer.write(f"GET /api/v1/{place} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
            said = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            head = said.partition(b"\r\n\r\n")[0].lower()
            assert head.startswith(b"http/1.1 ") and b"set-cookie" not in head, place
        assert (await here.ok("GET", "/runs"))["runs"] == []


async def test_a_server_with_a_public_name_wants_keys(tmp_path: Path) -> None:
    async with api(tmp_path, wait_for_word, hosts=["agents.example"], origins=["https://app.example"]) as served:
        assert (await served.get("/runs", headers={"host": "agents.example"})).status == 401
        key = served.key("k", "operator")
        assert (await key.get("/runs", headers={"host": "agents.example"})).status == 200
        assert (await key.get("/runs", headers={"host": "other.example"})).status == 421
        asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
        preflight = await served.ask("OPTIONS", "/runs", headers={**asked, "access-control-request-headers": "authorization"})
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in preflight.headers
        made = await key.post("/runs", {"workflow": "wait_for_word"}, headers={"origin": "https://app.example"})
        assert made.status == 201
        assert (await served.ask("OPTIONS", "/runs", headers={**asked, "origin": "https://evil.example"})).status == 400


async def test_a_port_that_is_taken_is_said_so_unless_it_was_nobodys_choice(tmp_path: Path) -> None:
    async with api(tmp_path / "one", wait_for_word) as first:
        with pytest.raises(LayerUnreachable, match="cannot listen on"):
            async with api(tmp_path / "two", wait_for_word, port=first.server.port):
                pass


async def test_two_processes_may_write_the_control_file(caller: Caller, tmp_path: Path) -> None:
    from ziggurat.clock import SystemClock
    from ziggurat.doors.api.control_file import ControlFile
    from ziggurat.doors.api.keys import Keyring

    beside = Keyring(ControlFile(tmp_path / "control.db"), SystemClock())
    await asyncio.to_thread(beside.create, "from-the-command-line", "admin")
    assert {key.name for key in caller.server.hub.keyring.every_key()} == {"from-the-command-line"}
