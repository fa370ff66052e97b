"""A person decides: a refund waits up to three days for an approval, without holding a process, a thread or a connection.

ziggurat run examples.human_approval:refund --id refund-17 --input '{"request": {"customer": "Ada", "amount": 480}}'
ziggurat signal refund-17 approval '{"approved": true, "by": "Grace"}'
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from ziggurat import SignalTimeout, now, signal, state, task, workflow

#: Refunds up to this amount need nobody's approval.
SMALL = 50.0


class Request(BaseModel):
    customer: str
    amount: float = Field(gt=0)


class Approval(BaseModel):
    approved: bool
    by: str
    reason: str = ""


class Receipt(BaseModel):
    customer: str
    amount: float
    paid: bool
    decided_by: str
    at: str


@task
async def ask_for_approval(request: Request) -> str:
    """Tell the people who may approve. Here it only says what it would post."""
    return f"A refund of ${request.amount:,.2f} to {request.customer} waits for your approval."


@task(retry=5)
async def pay(customer: str, amount: float) -> str:
    """Pay the money out. A real one passes `task_info().idempotency_key` on, so that a retry pays once."""
    return f"${amount:,.2f} to {customer}"


@workflow
async def refund(request: Request) -> Receipt:
    """Pay a refund once somebody approves it, or turn it down after three days of silence."""
    decision = Approval(approved=True, by="policy: small amount")
    if request.amount > SMALL:
        state(waiting_for="approval", message=await ask_for_approval(request))
        try:
            decision = await signal("approval", Approval, timeout="3d")
        except SignalTimeout:
            decision = Approval(approved=False, by="nobody within three days")
    if decision.approved:
        await pay(request.customer, request.amount)
    return Receipt(
        customer=request.customer,
        amount=request.amount,
        paid=decision.approved,
        decided_by=decision.by,
        at=now().isoformat(timespec="seconds"),
    )
