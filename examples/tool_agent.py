"""An agent loop: the model decides, the tools are tasks. After a crash no answer is bought twice and no tool runs twice.

    ziggurat run examples.tool_agent:support --input '{"question": "Where is order 1042?"}'

Needs a model that can call tools, for example with GMI_API_KEY set; the small local model cannot.
"""

from __future__ import annotations

from pydantic import BaseModel

from ziggurat import emit, llm, task, workflow
from ziggurat.records import ChatMessage

#: Rounds after which the agent must answer with what it knows.
ROUNDS_MAX = 6

ORDERS = {"1042": "shipped on Monday with parcel 77-A", "1043": "waiting for stock until Friday"}


class Answer(BaseModel):
    text: str
    tools_used: list[str]


@task(timeout="10s")
async def find_order(number: str) -> str:
    """Look up an order by its number and say how it stands."""
    return ORDERS.get(number, f"There is no order {number}.")


@task(timeout="10s", retry=5)
async def open_ticket(summary: str, urgent: bool = False) -> str:
    """Open a ticket for a person of the support team. Use it when the order system cannot answer."""
    return f"Ticket opened{' as urgent' if urgent else ''}: {summary}"


TOOLS: list[llm.ToolLike] = [find_order, open_ticket]


@workflow(budget="$0.05")
async def support(question: str, model: str = "default") -> Answer:
    """Answer a customer's question with the help of tools."""
    messages = [
        ChatMessage(role="system", content="You help customers of a shop. Use the tools; answer in one short paragraph."),
        ChatMessage(role="user", content=question),
    ]
    used: list[str] = []
    for _ in range(ROUNDS_MAX):
        reply = await llm.chat(messages, model=model, tools=TOOLS)
        messages.append(reply.message)
        if not reply.tool_calls:
            return Answer(text=reply.text, tools_used=used)
        for call in reply.tool_calls:
            emit({"tool": call.name, "arguments": call.arguments})
            used.append(call.name)
            messages.append(await llm.call_tool(call, TOOLS))
    messages.append(ChatMessage(role="user", content="Answer now, with what you know."))
    reply = await llm.chat(messages, model=model)
    return Answer(text=reply.text, tools_used=used)
