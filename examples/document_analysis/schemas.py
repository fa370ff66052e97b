"""What the example knows about documents: their kinds, the fields of each kind, and the report on one document."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Kind(StrEnum):
    """The kinds of document. The values are what a model answers, so each says in full what it means."""

    INVOICE = "invoice"
    CONTRACT = "contract"
    TICKET = "support request"
    RESUME = "resume"
    MINUTES = "meeting minutes"
    INCIDENT = "incident report"
    RESEARCH = "research paper"
    PRESS = "press release"


class Label(BaseModel):
    """A model's answer to "which kind of document is this?"."""

    kind: Kind


class Fields(BaseModel):
    """Facts that were read from a document; a fact that is not in it is None."""

    model_config = ConfigDict(extra="forbid")


class InvoiceFields(Fields):
    """Who bills whom, how much, and until when."""

    vendor: str | None = None
    customer: str | None = None
    number: str | None = None
    total: float | None = Field(None, description="The amount to pay, taxes included.")
    currency: str | None = Field(None, description="ISO 4217 code, such as EUR.")
    due_date: dt.date | None = None


class ContractFields(Fields):
    """Between whom, from when, and for how long."""

    first_party: str | None = None
    second_party: str | None = None
    start_date: dt.date | None = None
    term_months: int | None = None


Urgency = Literal["low", "normal", "high", "urgent"]


class TicketFields(Fields):
    """Who asks for help with what, and how soon it is needed."""

    customer: str | None = None
    email: str | None = None
    product: str | None = Field(None, description="The product or service that the customer needs help with.")
    urgency: Urgency | None = Field(None, description="How soon the customer needs help.")


class ResumeFields(Fields):
    """Whose career it is."""

    name: str | None = None
    email: str | None = None
    role: str | None = Field(None, description="The profession or present position.")


class MinutesFields(Fields):
    """Who met, when, and when next."""

    organisation: str | None = None
    date: dt.date | None = None
    chair: str | None = None
    next_meeting: dt.date | None = None


class IncidentFields(Fields):
    """When and where it happened, and how bad it was."""

    date: dt.date | None = None
    where: str | None = Field(None, description="The system or the place that was affected.")
    severity: str | None = None


class ResearchFields(Fields):
    """What was published, by whom, and when."""

    title: str | None = None
    first_author: str | None = None
    date: dt.date | None = None


class PressFields(Fields):
    """Who announces, when, where, and whom to ask."""

    organisation: str | None = None
    date: dt.date | None = None
    place: str | None = None
    contact_email: str | None = None


FIELDS: dict[Kind, type[Fields]] = {
    Kind.INVOICE: InvoiceFields,
    Kind.CONTRACT: ContractFields,
    Kind.TICKET: TicketFields,
    Kind.RESUME: ResumeFields,
    Kind.MINUTES: MinutesFields,
    Kind.INCIDENT: IncidentFields,
    Kind.RESEARCH: ResearchFields,
    Kind.PRESS: PressFields,
}

#: A field's value once it is in a report: text, number, or a date as YYYY-MM-DD.
Value = str | float | int | None


class Report(BaseModel):
    """What the workflow found out about one document."""

    document: str
    kind: Kind
    fields: dict[str, Value]
    summary: str
