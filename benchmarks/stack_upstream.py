"""A stand-in for a provider that takes as long as one: `python -m benchmarks.stack_upstream` prints its base URL and answers.

An answer takes 0.5 to 1.5 s, the same for the same question on every side. A question with a JSON schema is answered with the smallest
value that fits it.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any

from benchmarks.gateway_upstream import Upstream, serve

#: Seconds that the fastest answer takes, and by how much others are slower.
FASTEST, SPREAD = 0.5, 1.0
_SUMMARY = "The document says what was agreed, between whom, and by when it is to be done."


class Thoughtful(Upstream):
    """One connection to a provider that takes its time."""

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            super()._answer(head, body)
            return
        task = asyncio.get_running_loop().create_task(self._think(json.loads(body)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _think(self, asked: dict[str, Any]) -> None:
        said = json.dumps(asked["messages"])
        await asyncio.sleep(FASTEST + SPREAD * (zlib.crc32(said.encode()) % 1000) / 1000)
        schema = asked.get("response_format", {}).get("json_schema", {}).get("schema")
        text = json.dumps(smallest(schema, schema)) if schema else _SUMMARY
        usage = {"prompt_tokens": len(said) // 4, "completion_tokens": len(text) // 4}
        answer = json.dumps(
            {
                "id": "chatcmpl-0123456789abcdef",
                "object": "chat.completion",
                "created": 1790000000,
                "model": asked["model"],
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            }
        ).encode()
        self._write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))


def smallest(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Return a small value that fits a JSON schema of the kinds that pydantic makes of the example's types."""
    if "$ref" in schema:
        return smallest(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema:
        return schema["enum"][0]
    for either in schema.get("anyOf", []):
        if either.get("type") == "null":
            return None
    kind = schema.get("type")
    if kind == "object":
        return {name: smallest(part, root) for name, part in schema.get("properties", {}).items()}
    return {"string": "", "integer": 0, "number": 0.0, "boolean": False, "array": [], "null": None}[kind or "null"]


if __name__ == "__main__":
    asyncio.run(serve(0, Thoughtful))
