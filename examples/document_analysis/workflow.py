"""Analyse a document: extract its text, then classify and summarize it side by side, read its fields, report.

    ziggurat run examples.document_analysis.workflow:analyze --input '{"document": "invoice.pdf"}'

Awaited outside a run, ``analyze`` is an ordinary coroutine: ``asyncio.run(analyze("invoice.pdf"))``.
"""

from __future__ import annotations

import asyncio
from pathlib import PurePath

from ziggurat import Retry, llm, task, workflow

from . import fields, prompts
from .extract import DocumentError, read_text
from .schemas import Kind, Label, Report, Value

#: The alias of the model that answers; ziggurat.toml says which model that is.
MODEL = "fast"


@task(timeout="2m", retry=Retry(attempts=5, non_retryable=[DocumentError]))
def extract_text(document: str) -> str:
    """Read a file as text. A plain function: a worker runs it in a thread. An unreadable file is not tried again."""
    return read_text(document)


@task
async def classify(text: str) -> Label:
    """Let the model say which kind of document this is."""
    return await llm.parse(Label, prompts.classify(text), model=MODEL, max_tokens=prompts.LABEL_TOKENS, temperature=0)


@task
async def summarize(text: str) -> str:
    """Let the model sum the document up in a sentence; where it says what the document does not, quote the document."""
    answer = await llm.text(prompts.summarize(text), model=MODEL, max_tokens=prompts.SUMMARY_TOKENS, temperature=0)
    draft = prompts.first_sentence(answer)
    return draft if prompts.grounded(draft, text) else prompts.quotation(draft, text)


@task
async def read_fields(kind: Kind, text: str) -> dict[str, Value]:
    """Read the fields of a document of this kind by rules, and let the model fill in what they leave open."""
    found = fields.read_fields(kind, text)
    open_fields = prompts.questions(kind, text, found)
    if open_fields is not None:
        messages, schema = open_fields
        answers = await llm.parse(schema, messages, model=MODEL, max_tokens=prompts.FIELDS_TOKENS, temperature=0)
        found = type(found).model_validate(found.model_dump() | answers.model_dump())
    return fields.as_values(found)


@workflow(budget="$0.05")
async def analyze(document: str) -> Report:
    """Report the kind, the fields and a summary of the document at this path."""
    text = await extract_text(document)
    label, summary = await asyncio.gather(classify(text), summarize(text))
    values = await read_fields(label.kind, text)
    return Report(document=PurePath(document).name, kind=label.kind, fields=values, summary=summary)
