"""Compare reports with the truth: accuracy of kinds and fields, and how much of what matters a summary says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from .schemas import Kind, Report, Value

#: How much of two names' words must agree: "Nordwind Logistics" is the same as "Nordwind Logistics GmbH".
OVERLAP_MIN = 0.6


class Truth(BaseModel):
    """What a reader found in one document."""

    file: str
    kind: Kind
    fields: dict[str, Value]
    #: A reference summary, for people who compare.
    summary: str
    #: Expressions of which a good summary holds as many as it can.
    keywords: list[str]
    #: Two passages that a faithful extraction of the text contains.
    phrases: list[str]


class Score(NamedTuple):
    """How well one report, or the mean of many, agrees with the truth. Each number lies between 0 and 1."""

    kind: float
    fields: float
    summary: float


class Row(NamedTuple):
    """One row of the accuracy table: what it counts, over how many documents, and the mean score."""

    name: str
    documents: int
    score: Score


def load_truth(path: Path) -> list[Truth]:
    """Read a truth file, one JSON object a line."""
    return [Truth.model_validate(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]


def same(found: Value, true: Value) -> bool:
    """Whether a value that was found says the same as the true one.

    Numbers agree to the cent. Text agrees when case, punctuation and order of words are left out of account and most
    words are shared. An address or a number of a document must agree entirely.
    """
    if found is None or true is None:
        return found is true
    if isinstance(true, int | float):
        return isinstance(found, int | float) and abs(found - true) < 0.005
    words = [re.findall(r"\w+", str(value).casefold()) for value in (found, true)]
    if re.search(r"[\d@]", str(true)):
        return words[0] == words[1]
    a, b = map(set, words)
    return bool(a & b) and len(a & b) / len(a | b) >= OVERLAP_MIN


def recall(summary: str, keywords: Sequence[str]) -> float:
    """The share of keywords that a summary contains, without regard to case and punctuation."""
    said = " ".join(re.findall(r"\w+", summary.casefold()))
    wanted = (" ".join(re.findall(r"\w+", keyword.casefold())) for keyword in keywords)
    return sum(keyword in said for keyword in wanted) / len(keywords)


def score(report: Report, truth: Truth) -> Score:
    """Compare one report with the truth. A report with the wrong kind has the wrong fields, by definition."""
    right = report.kind == truth.kind
    hits = sum(same(report.fields.get(name), value) for name, value in truth.fields.items())
    return Score(float(right), hits / len(truth.fields) if right else 0.0, recall(report.summary, truth.keywords))


def table(reports: Iterable[Report], truths: Iterable[Truth]) -> list[Row]:
    """The accuracy of each kind of document, in the order of ``Kind``, and of all together, in the last row.

    A document of the truth without a report counts as wrong; a report that the truth does not know is left out.
    """
    by_name = {report.document: report for report in reports}
    scores: dict[Kind, list[Score]] = {kind: [] for kind in Kind}
    for truth in truths:
        report = by_name.get(truth.file)
        scores[truth.kind].append(score(report, truth) if report else Score(0.0, 0.0, 0.0))
    rows = [Row(kind.value, len(found), _mean(found)) for kind, found in scores.items() if found]
    everything = [one for found in scores.values() for one in found]
    return [*rows, Row("all", len(everything), _mean(everything))]


def _mean(scores: Sequence[Score]) -> Score:
    if not scores:
        return Score(0.0, 0.0, 0.0)
    return Score(*(sum(column) / len(scores) for column in zip(*scores, strict=True)))
