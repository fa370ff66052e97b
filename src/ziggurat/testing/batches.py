"""The Batch API of a scripted upstream: files and batches that take as long as a test says, and fail as it says.

    desk = upstream.batches
    desk.takes = 600.0                 seconds until a batch is done, by `desk.clock`; None: until `finish` is called
    desk.faults["create"] = ["made"]   the next creation is made, and answered with a 500

`bought` counts how often each line was bought, by its custom_id: a test's proof that nothing was bought twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ziggurat.clock import Clock, SystemClock

#: Returns the status and body of one request's answer.
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class BatchDesk:
    """Files and batches in memory.

    Args:
        answer: answers the body of a line.
        refuse: returns an answer that refuses a request, or None.
    """

    def __init__(self, answer: Answer, refuse: Callable[[web.Request], web.Response | None]) -> None:
        self._answer, self._refuse = answer, refuse
        self.clock: Clock = SystemClock()
        #: Seconds until a batch has ended; None: until `finish` is called.
        self.takes: float | None = 0.0
        #: How batches end, and the share of their lines that is answered by then: those at the front of the file.
        self.ends, self.share = "completed", 1.0
        #: Seconds that a cancellation takes, and the share of the lines that is answered by its end.
        self.cancel_takes, self.cancel_share = 0.0, 0.0
        #: What goes wrong next, by verb (upload, create, list, look, cancel, content): "fails" is a 500 before anything is done; "made" is
        #: a 500 after it was done; "cut" hangs up before the answer; "hangs" does it and never answers; "limited" is a 429.
        self.faults: dict[str, list[str]] = {}
        #: Requests that hang, or hung until their client was gone.
        self.hanging = 0
        self.files: dict[str, bytes] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.bought: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._number = 0

    def add_to(self, app: web.Application) -> None:
        """Answer under these paths."""
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_delete("/v1/files/{id}", self._delete)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._look)
        app.router.add_post("/v1/batches/{id}/cancel", self._cancel)

    def finish(self, how: str = "completed", share: float = 1.0) -> None:
        """End every batch that is under way."""
        for batch in self.made.values():
            if batch["status"] in ("in_progress", "cancelling"):
                self._end(batch, how, share)

    def lines_of(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the lines of a batch."""
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines() if line]

    # -- handlers ----------------------------------------------------------------------------------------------------

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        part: Any = form["file"]
        data = part.file.read()
        part.file.close()
        return await self._do(request, "upload", lambda: self._stored(data))

    def _stored(self, data: bytes) -> dict[str, Any]:
        name = self._name("file")
        self.files[name] = data
        return {"id": name, "object": "file", "bytes": len(data), "purpose": "batch"}

    async def _content(self, request: web.Request) -> web.StreamResponse:
        data = self.files.get(request.match_info["id"])
        if data is None:
            return _error(404, "No such File object.")
        return await self._do(request, "content", lambda: data)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        # The text of a line is asked for by tests after the file is gone, so input files stay readable to them under another name.
        name = request.match_info["id"]
        return await self._do(request, "delete", lambda: {"id": name, "deleted": True})

    async def _create(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        if asked["input_file_id"] not in self.files:
            return _error(400, f"No such file: {asked['input_file_id']}.")
        return await self._do(request, "create", lambda: self._begun(asked))

    def _begun(self, asked: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": self._name("batch"),
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "metadata": asked.get("metadata"),
            "status": "in_progress",
            "created_at": int(self.clock.time()),
        }
        self.made[batch["id"]] = batch
        for line in self.lines_of(batch):
            self.bought[line["custom_id"]] += 1
        batch["began"] = self.clock.time()
        return batch

    async def _list(self, request: web.Request) -> web.StreamResponse:
        newest = list(self.made.values())[::-1]
        after = request.query.get("after")
        at = next((n + 1 for n, batch in enumerate(newest) if batch["id"] == after), 0)
        limit = int(request.query.get("limit", "20"))
        page = newest[at : at + limit]
        return await self._do(request, "list", lambda: {"object": "list", "data": page, "has_more": len(newest) > at + limit})

    async def _look(self, request: web.Request) -> web.StreamResponse:
        batch = self.made.get(request.match_info["id"])
        if batch is None:
            return _error(404, "No batch found with that id.")
        return await self._do(request, "look", lambda: self._now(batch))

    def _now(self, batch: dict[str, Any]) -> dict[str, Any]:
        now = self.clock.time()
        if batch["status"] == "cancelling" and now - batch["cancelling"] >= self.cancel_takes:
            self._end(batch, "cancelled", self.cancel_share)
        elif batch["status"] == "in_progress" and self.takes is not None and now - batch["began"] >= self.takes:
            self._end(batch, self.ends, self.share)
        return batch

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        batch = self.made.get(request.match_info["id"])
        if batch is None:
            return _error(404, "No batch found with that id.")

        def cancel() -> dict[str, Any]:
            if batch["status"] == "in_progress":
                batch.update(status="cancelling", cancelling=self.clock.time())
            return batch

        return await self._do(request, "cancel", cancel)

    def _end(self, batch: dict[str, Any], how: str, share: float) -> None:
        lines = self.lines_of(batch)
        answered: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            row: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": line["custom_id"], "error": None}
            if number >= round(share * len(lines)):
                if how == "expired":
                    failed.append({**row, "response": None, "error": {"code": "batch_expired", "message": "It expired."}})
                continue
            status, body = self._answer(line["body"])
            row["response"] = {"status_code": status, "request_id": "r", "body": body}
            (answered if status == 200 else failed).append(row)
            self.answered[line["custom_id"]] += status == 200
        batch["status"] = how
        if how == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": "invalid_file", "message": "The file is no good."}]}
            return
        for name, rows in (("output_file_id", answered), ("error_file_id", failed)):
            if rows:
                batch[name] = self._name("file")
                self.files[batch[name]] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    async def _do(self, request: web.Request, verb: str, act: Callable[[], dict[str, Any] | bytes]) -> web.StreamResponse:
        refused = self._refuse(request)
        if refused is not None:
            return refused
        faults = self.faults.get(verb)
        fault = faults.pop(0) if faults else ""
        if fault == "fails":
            return _error(500, "The server had an error.")
        if fault == "limited":
            return _error(429, "Rate limit reached.")
        found = act()
        if fault == "made":
            return _error(500, "The server had an error.")
        if fault == "hangs":
            self.hanging += 1
            await asyncio.sleep(3600.0)
        if fault == "cut" and request.transport is not None:
            request.transport.abort()
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        return web.Response(body=body, content_type="application/json")

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number}"


def _error(status: int, message: str) -> web.Response:
    body = json.dumps({"error": {"message": message, "type": "error", "code": None}}).encode()
    return web.Response(status=status, body=body, content_type="application/json")
