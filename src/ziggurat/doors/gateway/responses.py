"""POST /v1/responses: OpenAI's newer door, for text, tools and structured output; whole and streamed.

The events of a stream follow https://platform.openai.com/docs/api-reference/responses-streaming: an answer is a list of items, a message
or a call of a tool each; an item is added, written, and done.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ziggurat.doors.gateway.answers import encode
from ziggurat.doors.gateway.chat import relay
from ziggurat.doors.gateway.exchange import Exchange
from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.doors.gateway.responses_in import ResponsesRequest, responses_prompt
from ziggurat.inference.router import Router
from ziggurat.records import Chunk, Completion, Usage


async def responses(x: Exchange, models: Router) -> web.StreamResponse:
    """Answer a response request, whole or as a stream."""
    asked, prompt = responses_prompt(await x.body())
    x.admit(prompt.model)
    prompt = x.demanding(prompt)
    head = _Head(x, asked)
    if asked.stream:
        writer = ResponseStream(head)
        return await relay(x, models, prompt, writer.chunk, writer.refused, writer.failed)
    completion = await models.complete(prompt)
    return x.served(encode(head.whole(_items(head, completion), completion.finish, completion.usage)), completion.call)


class _Head:
    """What every shape of one response has."""

    def __init__(self, x: Exchange, asked: ResponsesRequest) -> None:
        self.id = x.id
        self._fields: dict[str, Any] = {
            "id": f"resp_{x.id}",
            "object": "response",
            "created_at": x.created,
            "model": asked.model,
            "instructions": asked.instructions,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "max_output_tokens": asked.max_output_tokens,
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "text": asked.text if asked.text is not None and asked.text.format is not None else {"format": {"type": "text"}},
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
        }

    def shape(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return the response as it stands."""
        return {
            **self._fields,
            "status": status,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **more,
        }

    def whole(self, output: list[dict[str, Any]], finish: str, usage: Usage) -> dict[str, Any]:
        """Return the ended response."""
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish)
        details = {"reason": reason} if reason else None
        return self.shape("incomplete" if reason else "completed", output, incomplete_details=details, usage=_usage(usage))


def _items(head: _Head, completion: Completion) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if completion.text or completion.refusal or not completion.tool_calls:
        part = _refusal(completion.refusal) if completion.refusal else _text(completion.text)
        items.append(_message(f"msg_{head.id}", "completed", [part]))
    for number, call in enumerate(completion.tool_calls):
        items.append(_call(f"fc_{head.id}_{number}", call.id, call.name, call.arguments, "completed"))
    return items


def _message(id_: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id_, "type": "message", "role": "assistant", "status": status, "content": content}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _refusal(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def _call(id_: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {"id": id_, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


class _Open:
    """An item that is being written."""

    def __init__(self, index: int, id_: str, call_id: str = "", name: str = "") -> None:
        self.index, self.id, self.call_id, self.name = index, id_, call_id, name
        self.pieces: list[str] = []

    @property
    def said(self) -> str:
        return "".join(self.pieces)


class ResponseStream:
    """Writes one streamed response, event by event."""

    def __init__(self, head: _Head) -> None:
        self._head = head
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._message: _Open | None = None
        self._calls: dict[int, _Open] = {}
        self._count = 0

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk; those of the last one end the response."""
        out = self._begin()
        if chunk.text:
            out += self._write(chunk.text)
        for index, call_id, name, arguments in chunk.tool_calls:
            out += self._write_call(index, call_id, name, arguments)
        if chunk.finish is not None:
            if self._count == 0:
                out += self._write("")
            out += self._close_message() + self._close_calls()
            ended = self._head.whole(sorted_items(self._items), chunk.finish, chunk.usage or Usage())
            out += self._event(f"response.{ended['status']}", response=ended)
        return out

    def refused(self, text: str) -> bytes:
        """Return the events of a model that declined."""
        out = self._begin() + self._close_message() + self._close_calls()
        index, id_ = self._count, f"msg_{self._head.id}_{self._count}"
        self._count += 1
        part = _refusal(text)
        out += self._event("response.output_item.added", output_index=index, item=_message(id_, "in_progress", []))
        place = {"item_id": id_, "output_index": index, "content_index": 0}
        out += self._event("response.content_part.added", **place, part=_refusal(""))
        out += self._event("response.refusal.delta", **place, delta=text)
        out += self._event("response.refusal.done", **place, refusal=text)
        out += self._event("response.content_part.done", **place, part=part)
        self._items.append({**_message(id_, "completed", [part]), "output_index": index})
        out += self._event("response.output_item.done", output_index=index, item=_message(id_, "completed", [part]))
        return out + self._event("response.completed", response=self._head.whole(sorted_items(self._items), "stop", Usage()))

    def failed(self, refusal: Refusal) -> bytes:
        """Return the events of a call that broke off."""
        error = {"code": "server_error", "message": refusal.message}
        failed = self._head.shape("failed", sorted_items(self._items), error=error)
        return self._event("response.failed", response=failed)

    def _begin(self) -> bytes:
        if self._number:
            return b""
        response = self._head.shape("in_progress", [])
        return self._event("response.created", response=response) + self._event("response.in_progress", response=response)

    def _write(self, text: str) -> bytes:
        out = b""
        if self._message is None:
            self._message = _Open(self._count, f"msg_{self._head.id}_{self._count}")
            self._count += 1
            item = _message(self._message.id, "in_progress", [])
            out = self._event("response.output_item.added", output_index=self._message.index, item=item)
            out += self._event("response.content_part.added", **self._place(self._message), part=_text(""))
        self._message.pieces.append(text)
        if text:
            out += self._event("response.output_text.delta", **self._place(self._message), delta=text, logprobs=[])
        return out

    def _close_message(self) -> bytes:
        message, self._message = self._message, None
        if message is None:
            return b""
        part = _text(message.said)
        item = _message(message.id, "completed", [part])
        self._items.append({**item, "output_index": message.index})
        out = self._event("response.output_text.done", **self._place(message), text=message.said, logprobs=[])
        out += self._event("response.content_part.done", **self._place(message), part=part)
        return out + self._event("response.output_item.done", output_index=message.index, item=item)

    def _write_call(self, index: int, call_id: str, name: str, arguments: str) -> bytes:
        out = b""
        call = self._calls.get(index)
        if call is None:
            out = self._close_message()
            call = self._calls[index] = _Open(self._count, f"fc_{self._head.id}_{self._count}", call_id, name)
            self._count += 1
            item = _call(call.id, call_id, name, "", "in_progress")
            out += self._event("response.output_item.added", output_index=call.index, item=item)
        if arguments:
            call.pieces.append(arguments)
            out += self._event(
                "response.function_call_arguments.delta", item_id=call.id, output_index=call.index, delta=arguments
            )
        return out

    def _close_calls(self) -> bytes:
        out = b""
        for call in self._calls.values():
            item = _call(call.id, call.call_id, call.name, call.said, "completed")
            self._items.append({**item, "output_index": call.index})
            done = {"item_id": call.id, "output_index": call.index, "name": call.name, "arguments": call.said}
            out += self._event("response.function_call_arguments.done", **done)
            out += self._event("response.output_item.done", output_index=call.index, item=item)
        self._calls.clear()
        return out

    @staticmethod
    def _place(item: _Open) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.index, "content_index": 0}

    def _event(self, type_: str, **fields: Any) -> bytes:
        body = encode({"type": type_, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + type_.encode() + b"\ndata: " + body + b"\n\n"


def sorted_items(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items in the order in which they were begun, without the number that says so."""
    ordered = sorted(items, key=lambda item: item["output_index"])
    return [{key: value for key, value in item.items() if key != "output_index"} for item in ordered]
