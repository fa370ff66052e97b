"""Read the fields of a document that stand in it in so many words: labelled values, dates, amounts, addresses.

A rule that reads "Due date: 2 April 2025" is cheaper and surer than any model. So rules come first, and only what they
leave open is asked of the model (``prompts.questions``). The rules know how documents of a kind are usually labelled;
they know nothing of single documents. All functions are pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from itertools import pairwise

from .schemas import FIELDS, Fields, Kind, Value

# -- the pieces ------------------------------------------------------------------------------------------------------

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "(?:" + "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS if month != "may") + "|may)"
_DATE = re.compile(
    rf"\b(\d{{4}})-(\d\d)-(\d\d)\b"
    rf"|\b(\d{{1,2}})(?:st|nd|rd|th)? ({_MONTH})\.?,? (\d{{4}})\b"
    rf"|\b({_MONTH})\.? (\d{{1,2}}),? (\d{{4}})\b"
    rf"|\b(\d{{1,2}})[/.](\d{{1,2}})[/.](\d{{4}})\b",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_SYMBOLS = {"€": "EUR", "$": "USD", "£": "GBP"}
_CURRENCY = re.compile(r"\b(EUR|USD|GBP|CHF|NOK|SEK|DKK|PLN)\b|[€$£]")
_AMOUNT = re.compile(r"\d{1,3}(?:[ ,]\d{3})*\.\d\d\b|\d+(?:,\d{3})*(?:\.\d\d)?\b")
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
#: A name: words that begin with a capital, joined by blanks or by small words.
_NAME = r"[A-Z][\w&.'’-]*(?: (?:of |for |and |the |de |van )?(?:[A-Z&][\w&.'’-]*|&))*"
_PERSON = r"[A-Z][\w.'’-]+(?: (?:de|van|von|den|der|el|al|[A-Z][\w.'’-]*))* [A-Z][\w'’-]+"


def dates(text: str) -> list[date]:
    """All dates in a text, in reading order. Of 03/04/2025 the day comes first, as in most of the world."""
    found = []
    for match in _DATE.finditer(text):
        g = match.groups()
        if g[0]:
            parts = g[0], g[1], g[2]
        elif g[3]:
            parts = g[5], _month(g[4]), g[3]
        elif g[6]:
            parts = g[8], _month(g[6]), g[7]
        else:
            day_first = int(g[10]) <= 12
            parts = (g[11], g[10], g[9]) if day_first else (g[11], g[9], g[10])
        try:
            found.append(date(*(int(part) for part in parts)))
        except ValueError:  # 31 February, or a number that only looks like a date.
            continue
    return found


def _month(name: str) -> str:
    return str(1 + next(i for i, month in enumerate(_MONTHS) if month.startswith(name.lower()[:3])))


def amount(text: str) -> float | None:
    """The last amount of money in a text, or None."""
    found = _AMOUNT.findall(text)
    return float(re.sub(r"[ ,]", "", found[-1])) if found else None


def currency(text: str) -> str | None:
    """The ISO code of the currency that a text names most often, or None."""
    found = Counter(_SYMBOLS.get(match[0], match[0]) for match in _CURRENCY.finditer(text))
    return found.most_common(1)[0][0] if found else None


def months(text: str) -> int | None:
    """The length of the first period of months or years in a text, in months."""
    match = re.search(rf"\b(\d+|{'|'.join(_NUMBERS[1:])})(?: \(\d+\))? (month|year)s?\b", text, re.IGNORECASE)
    if match is None:
        return None
    word = match[1].lower()
    count = int(word) if word.isdigit() else _NUMBERS.index(word)
    return count * (12 if match[2].lower() == "year" else 1)


def labels(text: str) -> Iterator[tuple[str, str]]:
    """Labels and their values, in reading order: "Due date: …", a table row of two cells, or a label above its value."""
    lines = [_plain(line) for line in text.splitlines()]
    for line, after in pairwise([*lines, ""]):
        cells = [cell.strip() for cell in line.split(" | ")]
        if len(cells) == 2 and len(cells[0]) <= 40:
            yield cells[0].rstrip(":"), cells[1]
        for part in cells:
            match = re.match(r"([A-Za-z][\w .'/()-]{1,34}?)\s*[:?](?: +(.+))?$|([A-Z][\w .'/-]{1,34}?)  +(.+)$", part)
            if match is not None:
                yield (match[1] or match[3]).strip(), (match[2] or match[4] or after).strip()


def _plain(line: str) -> str:
    """A line without the marks of Markdown."""
    line = re.sub(r"\*\*|__|`", "", re.sub(r"^\s*(?:[#>]+|[-*•]|\d+\.)\s+", "", line)).strip()
    return line.strip("| ") if line.startswith("|") else line


def labelled(text: str, *wanted: str) -> Iterator[str]:
    """The values whose label matches one of the expressions, best expression first."""
    found = [(label.lower(), value) for label, value in labels(text) if value]
    for expression in wanted:
        yield from (value for label, value in found if re.fullmatch(expression, label))


def _body(text: str) -> str:
    """A text without the headers of an e-mail or the front matter of a page."""
    return re.sub(r"\A(?:(?:From|To|Cc|Date|Subject): .*\n)+|\A---\n(?:.*\n)*?---\n", "", text)


def _lines(text: str) -> list[str]:
    """The lines of a text's body that say something."""
    body = _body(text)
    return [line for raw in body.splitlines() if re.search(r"\w", line := _plain(raw))]


def _first_date(values: Iterable[str]) -> date | None:
    return next((found[0] for value in values if (found := dates(value))), None)


def _name_in(value: str) -> str:
    """The name at the head of a value: what comes before the address, a role in brackets or an e-mail address."""
    value = re.split(r", | \(| <| \| |; ", value)[0].strip(" .\"'")
    return re.sub(r"^(?:Cllr|Dr|Mr|Ms|Mrs|Prof)\.? (?!and )(?=\S+ \S)", "", value) if "@" not in value else ""


def _first_name(values: Iterable[str]) -> str | None:
    return next((name for value in values if (name := _name_in(value)) and re.search("[A-Za-z]{2}", name)), None)


def _email_in(values: Iterable[str]) -> str | None:
    return next((match[0] for value in values if (match := _EMAIL.search(value))), None)


# -- the kinds -------------------------------------------------------------------------------------------------------


def _invoice(text: str) -> dict[str, object]:
    heads = (line for line in _lines(text) if not re.search(r"\b(invoice|receipt|bill|statement)\b", line, re.IGNORECASE))
    letterhead = _first_name(re.split(r" {2,}| \| ", line)[0] for line in heads)
    totals = list(labelled(text, r"(total|amount|balance) (due|payable|to pay)", r"((grand|invoice) )?total.*"))
    totals += re.findall(r"(?:total|amount) (?:due|payable)\W.{0,20}", text, re.IGNORECASE)
    number = re.search(r"invoice(?: no\.?| number)?[ |:#]+([A-Z]{0,4}[-/]?\d[\w/-]*)", text, re.IGNORECASE)
    due = re.search(rf"\b(?:due|pay(?:able)?)\b[^.\n]{{0,40}}?({_DATE.pattern})", text, re.IGNORECASE)
    return {
        "vendor": _first_name([*labelled(_body(text), "from", "seller", "vendor", "supplier"), letterhead or ""]),
        "customer": _first_name(labelled(text, r"bill(ed)? to", "customer", "client", "invoice to", "to")),
        "number": number[1] if number else next(labelled(text, r"invoice (no\.?|number)"), None),
        "total": amount(totals[0]) if totals else None,
        "currency": next(labelled(text, "currency"), None) or (currency(totals[0]) if totals else None) or currency(text),
        "due_date": _first_date([*labelled(text, "due date", "payment due", r"(please )?pay by", "due"), due[1] if due else ""]),
    }


def _contract(text: str) -> dict[str, object]:
    joined = " ".join(" ".join(_plain(line) for line in text.splitlines()).split())
    # Parties are defined terms: a name, an address, and in brackets what the contract calls it from there on.
    defined = re.findall(rf"({_NAME})(?=[ ,])[^()\"“]{{0,160}}?\((?:hereinafter |the |called )*[\"“](?:the )?[A-Z]", joined)
    between = re.search(rf"\b(?:[Bb]etween|BETWEEN)\W+({_NAME})\W.{{0,500}}?[,)]? ?\band ({_NAME})", joined)
    parties = (between[1], between[2]) if between else defined[:2] if len(defined) > 1 else (None, None)
    start = re.search(
        rf"\b(?:commences|starts|begins|with effect|effective)(?: on| from| as of)? ({_DATE.pattern})", joined, re.IGNORECASE
    )
    term = re.search(r"\b(?:(?:period|term) of|(?:lasts?|runs?|continues?) for) (.{1,30})", joined)
    start_labels = r"(start|commencement|effective|begin) date", "effective from", "commencement"
    first, second = parties
    terms = [*labelled(text, r"(initial )?term", r"duration.*"), term[1] if term else ""]
    return {
        "first_party": _name_in(first) if first else None,
        "second_party": _name_in(second) if second else None,
        "start_date": _first_date([*labelled(text, *start_labels), start[1] if start else ""]),
        "term_months": next((length for value in terms if (length := months(value))), None),
    }


def _ticket(text: str) -> dict[str, object]:
    sender = [*labelled(text, "customer", "requester", "client", "reported by", "name", "from")]
    stated = re.search(r"\b(low|normal|high) (?:priority|urgency)\b|^\W*(urgent)\b", text, re.IGNORECASE | re.MULTILINE)
    level = next(labelled(text, "urgency", "priority"), (stated[1] or stated[2]) if stated else "").lower().strip()
    return {
        "customer": _first_name(sender),
        "email": _email_in([*sender, *labelled(text, "e-?mail.*"), text]),
        "product": next(labelled(text, "product", "service", "application"), None),
        "urgency": level if level in ("low", "normal", "high", "urgent") else None,
    }


def _resume(text: str) -> dict[str, object]:
    lines = [line for line in _lines(text) if not re.fullmatch(r"(curriculum vitae|cv|resum[eé]|résumé)", line, re.IGNORECASE)]
    name = next((line for line in lines[:4] if re.fullmatch(r"[^\W\d_][^\d@|:,]{3,40}", line)), None)
    after = lines[lines.index(name) + 1 : lines.index(name) + 4] if name else []
    role = next((line for line in after if not re.search(r"[\d@|:·]", line)), None)
    return {
        "name": next(labelled(text, r"(full )?name"), name),
        "email": _email_in([text]),
        "role": next(labelled(text, r"(job title|position|profession|occupation|role)"), role),
    }


def _minutes(text: str) -> dict[str, object]:
    heads = (line for line in _lines(text) if not re.search(r"\b(minutes|meeting|retrospective)\b|:", line, re.IGNORECASE))
    upcoming = re.search(rf"\bnext [\w ]{{3,40}}?\b[^.\n]{{0,30}}?({_DATE.pattern})", text, re.IGNORECASE)
    held = re.search(rf"\b(?:held|met)\b[^.]{{0,60}}?({_DATE.pattern})", text, re.IGNORECASE)
    in_the_chair = re.search(rf"({_PERSON}) \((?:in the )?[Cc]hair\w*\)", text)
    chair = _first_name(labelled(text, r"chair\w*", "facilitator"))
    return {
        "organisation": _first_name([*labelled(text, "organi[sz]ation", "company", "body"), *heads]),
        "date": _first_date([*labelled(text, "date", "held on"), held[1] if held else "", text]),
        "chair": chair or (_name_in(in_the_chair[1]) if in_the_chair else None),
        "next_meeting": _first_date([upcoming[1] if upcoming else ""]),
    }


def _incident(text: str) -> dict[str, object]:
    places = r"affected (system|service)", "system", "service", "location", "site", "place", r"where.*"
    severity = next(labelled(text, "severity", "how serious.*", "impact level", "level"), "")
    return {
        "date": _first_date([*labelled(text, "(date of incident|incident date)", "date"), text]),
        "where": next(labelled(text, *places), None),
        "severity": severity.split(" (")[0] or None,
    }


def _research(text: str) -> dict[str, object]:
    lines = _lines(text)
    by = next((n for n, line in enumerate(lines[1:6], 1) if _is_authors(line)), None)
    authors = next(labelled(text, r"authors?"), "") or (lines[by] if by else "")
    title = " ".join(lines[: by or 1])
    person = re.search(_PERSON, authors)
    return {
        "title": title or None,
        "first_author": person[0] if person else None,
        "date": _first_date([*labelled(text, "submitted", "published", "date", "received"), text]),
    }


def _is_authors(line: str) -> bool:
    """Whether a line lists at least two persons, with or without marks of their institutes."""
    names = re.split(r", | and ", re.sub(r"^Authors?: *|\(\d+\)|[\d*†]", "", line))
    return len(names) > 1 and all(re.fullmatch(r"[A-Z][\w.'’-]*(?: [A-Z][\w.'’-]*)+", name.strip()) for name in names)


def _press(text: str) -> dict[str, object]:
    line = re.search(rf"^\W*([^\W\d][\w .'-]{{1,30}}), ({_DATE.pattern})\W*\s?[-—–]", text, re.IGNORECASE | re.MULTILINE)
    about = re.search(rf"^\W*About (?!this|us)({_NAME})", text, re.MULTILINE)
    mentions = Counter(re.findall(rf"(?<![.!?\"] )(?<!\n)\b(?:the |The )?({_NAME})", text))
    often = next((name for name, count in mentions.most_common() if " " in name and count > 1), None)
    addresses = [row for row in text.splitlines() if re.search(r"contact|press|media", row, re.IGNORECASE)]
    return {
        "organisation": about[1] if about else often,
        "date": _first_date([line[2] if line else "", *labelled(text, "date"), text]),
        "place": line[1] if line else None,
        "contact_email": _email_in([*reversed(addresses), text]),
    }


_READERS: dict[Kind, Callable[[str], dict[str, object]]] = {
    Kind.INVOICE: _invoice,
    Kind.CONTRACT: _contract,
    Kind.TICKET: _ticket,
    Kind.RESUME: _resume,
    Kind.MINUTES: _minutes,
    Kind.INCIDENT: _incident,
    Kind.RESEARCH: _research,
    Kind.PRESS: _press,
}


def read_fields(kind: Kind, text: str) -> Fields:
    """The fields of a document of this kind, as far as rules can read them; the others are None."""
    return FIELDS[kind].model_validate(_READERS[kind](text))


def as_values(fields: Fields) -> dict[str, Value]:
    """Fields as plain JSON values; dates become YYYY-MM-DD."""
    values: dict[str, Value] = fields.model_dump(mode="json")
    return values
