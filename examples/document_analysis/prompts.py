"""The prompts of the example, as pure functions from a document's text to chat messages, and the checks of the answers.

They are written for two readers: a small model on this machine (135 million parameters, which follows examples but
hardly any instructions) and a large one behind an API. Four findings shaped them; ``README.md`` has the numbers.

- Solved examples that resemble the document, the most similar last, make the difference for the kind.
- The answer is held to a schema, so a small model can only be wrong, not talk.
- Values are chosen among candidates that stand in the document, so a model cannot invent one.
- A summary is checked against the document. Where it says what the document does not, the sentence of the document
  that comes nearest to it takes its place.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model

from .samples import SAMPLES, Sample
from .schemas import FIELDS, Fields, Kind

Message = dict[str, str]

#: Characters of a document that are shown for its kind. The first screen tells; more only dilutes it for a small model.
HEAD_CHARS = 250
#: Characters of a document that are shown for a summary and for open fields.
BODY_CHARS = 800
#: Solved examples in a prompt for the kind.
EXAMPLES = 2
#: Tokens that an answer may take.
LABEL_TOKENS, SUMMARY_TOKENS, FIELDS_TOKENS = 24, 48, 96


def opening(text: str, chars: int) -> str:
    """The first whole lines of a text, at most ``chars`` characters; an e-mail's long headers are left out."""
    text = re.sub(r"^(?:To|Cc|Date): .*\n", "", text, flags=re.MULTILINE) if text.startswith("From: ") else text
    lines = re.sub(r"\n{2,}", "\n", re.sub(r"[*_=#-]{2,}", "", text)).strip()
    if len(lines) <= chars:
        return lines
    cut = lines.rfind("\n", 0, chars)
    return lines[: cut if cut > chars // 2 else chars].strip()


# -- the kind --------------------------------------------------------------------------------------------------------


def nearest(text: str, count: int = EXAMPLES) -> list[Sample]:
    """The samples that share the most telling words with a text, one of a kind, the most similar last.

    In-context examples that resemble the question help most, and the last one most of all (Liu et al. 2022, "What Makes
    Good In-Context Examples for GPT-3?"). Similarity is the cosine of word vectors weighted by rarity among the samples.
    """
    weights, vectors = _index()
    query = _vector(text, weights)
    scores = [sum(query.get(word, 0.0) * weight for word, weight in vector.items()) for vector in vectors]
    chosen: dict[Kind, Sample] = {}
    for position in sorted(range(len(SAMPLES)), key=lambda n: -scores[n]):
        chosen.setdefault(SAMPLES[position].kind, SAMPLES[position])
    return list(reversed(list(chosen.values())[:count]))


@cache
def _index() -> tuple[dict[str, float], list[dict[str, float]]]:
    frequency = Counter(word for sample in SAMPLES for word in set(_words(sample.text)))
    weights = {word: math.log(1 + len(SAMPLES) / count) for word, count in frequency.items()}
    return weights, [_vector(sample.text, weights) for sample in SAMPLES]


def _vector(text: str, weights: dict[str, float]) -> dict[str, float]:
    counts = Counter(word for word in _words(text) if word in weights)
    vector = {word: (1 + math.log(count)) * weights[word] for word, count in counts.items()}
    length = math.sqrt(sum(value * value for value in vector.values())) or 1.0
    return {word: value / length for word, value in vector.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{3,}", text.lower())


def classify(text: str) -> list[Message]:
    """Ask for the ``Label`` of a document."""
    kinds = ", ".join(Kind)
    messages = [_system(f"You sort documents. Answer with the kind of the document. Kinds: {kinds}.")]
    for sample in nearest(text):
        messages += [_user(opening(sample.text, HEAD_CHARS)), _assistant(f'{{"kind": "{sample.kind}"}}')]
    return [*messages, _user(opening(text, HEAD_CHARS))]


# -- the summary -----------------------------------------------------------------------------------------------------


def summarize(text: str) -> list[Message]:
    """Ask for a summary of a document in one sentence."""
    return [
        _system(
            "Extract and present the main key point of the input text in one very short sentence, including essential "
            "details like names, dates or amounts if necessary."
        ),
        _user(opening(text, BODY_CHARS)),
    ]


def first_sentence(answer: str) -> str:
    """The first sentence of a model's answer, without a heading such as "Summary:"."""
    line = " ".join(answer.split()).removeprefix("Summary:").strip(' "*')
    match = re.match(r".{20,}?[.!?](?=\s+[A-Z\"“(]|$)", line)
    return match[0] if match else line


def grounded(summary: str, text: str) -> bool:
    """Whether a summary says only what the document says, as far as words can tell.

    It must be a whole sentence of six to sixty words that does not repeat itself and does not speak for the author. Every
    number and every name in it must stand in the document, and so must four of five of its longer words, in some form.
    """
    words = re.findall(r"[\w'’]+(?:[.,]\d+)*", summary)
    telling = [word.casefold() for word in words if len(word) > 4 or word[0].isdigit()]
    if not 6 <= len(words) <= 60 or summary[-1] not in ".!" or "I" in words or not telling:
        return False
    folded = summary.casefold().split()
    threes = Counter(zip(folded, folded[1:], folded[2:], strict=False))
    if max(Counter(telling).values()) > 2 or max(threes.values(), default=0) > 1:
        return False
    said = text.casefold()
    if any(word.casefold() not in said for word in words[1:] if word[0].isdigit() or word[0].isupper()):
        return False
    return sum(word[: max(5, len(word) - 3)] in said for word in telling) >= 0.8 * len(telling)


def quotation(draft: str, text: str) -> str:
    """The heading of a document and the sentence of it that says most of what a draft tried to say.

    Rare words count more than common ones, early sentences more than late ones. A document without prose is its heading.
    """
    title, found = heading(text), sentences(text)
    if not found:
        return title
    frequency = Counter(word for sentence in found for word in set(_words(sentence)))
    weights = {word: math.log(1 + len(found) / count) for word, count in frequency.items() if len(word) > 3}
    query = _vector(draft, weights)
    scores = [
        sum(query.get(word, 0.0) * weight for word, weight in _vector(sentence, weights).items()) - 0.03 * position
        for position, sentence in enumerate(found)
    ]
    best = found[max(range(len(found)), key=scores.__getitem__)]
    return best if title.casefold() in best.casefold() else f"{title}: {best}"


def heading(text: str) -> str:
    """The subject of a message or ticket, or the first line of any other document."""
    subject = re.search(r"^Subject: +(.+)", text[:BODY_CHARS], re.MULTILINE)
    line = subject[1] if subject else next(_paragraphs(text), "")
    return line[:120].strip(" .:*")


def sentences(text: str, count: int = 12) -> list[str]:
    """The first statements of a document that could stand alone: prose, from eight to fifty words."""
    found = (
        sentence
        for paragraph in _paragraphs(text)
        for sentence in re.split(r"(?<=[.!?][\"”’)]) |(?<=[a-z0-9)][.!?]) (?=[A-Z\"“])", paragraph)
        if 8 <= len(sentence.split()) <= 50 and not re.search(r" [|·] |@", sentence) and sentence[-1] in '.!"”'
    )
    return list(islice(found, count))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs as single lines. A line that is much shorter than the longest ends its paragraph."""
    body = re.sub(r"\A(?:(?:From|To|Cc|Date|Subject): .*\n)+|\A---\n(?:.*\n)*?---\n", "", text)
    width = min(max((len(line) for line in body.splitlines()), default=0), 100)
    paragraph: list[str] = []
    for line in [*body.splitlines(), ""]:
        bare = re.sub(r"\*\*|__|`|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)", "", re.sub(r"^\s*(?:[#>]+|[-*•]|\d+\.)\s+", "", line)).strip()
        if paragraph and (not bare or bare != line.strip()):
            yield " ".join(paragraph)
            paragraph = []
        if bare:
            paragraph.append(bare)
        if paragraph and len(line) < 0.6 * width:
            yield " ".join(paragraph)
            paragraph = []


# -- open fields -----------------------------------------------------------------------------------------------------


def questions(kind: Kind, text: str, fields: Fields) -> tuple[list[Message], type[BaseModel]] | None:
    """Ask for the fields that the rules left open; None if there are none that a model should judge.

    Text is chosen among the names that stand in the document; a field with fixed choices keeps them. Dates, amounts and
    addresses are never asked: where no rule finds one, a guess would be worth less than nothing.
    """
    names = candidates(text, fields)
    asked: dict[str, Any] = {}
    for name, info in FIELDS[kind].model_fields.items():
        if getattr(fields, name) is not None:
            continue
        choices = _choices(info.annotation) or (names if info.annotation == str | None else [])
        if choices:
            asked[name] = (_one_of(choices), Field(description=info.description))
    if not asked:
        return None
    wanted = "; ".join(f"{name}: {info.description or name.replace('_', ' ')}" for name, (_, info) in asked.items())
    prompt = f"{opening(text, BODY_CHARS)}\n\nThe text is a {kind}. Fill in as JSON: {wanted}"
    return [_user(prompt)], create_model("Answers", **asked)


def _one_of(choices: Sequence[str]) -> Any:
    """The type whose values are these texts; it is known at run time only, so type checkers cannot see it."""
    return Literal[tuple(choices)]


def _choices(annotation: Any) -> list[str]:
    """The fixed choices of an annotation such as ``Literal["low", "high"] | None``."""
    found: list[str] = []
    for part in getattr(annotation, "__args__", ()):
        found += [choice for choice in getattr(part, "__args__", ()) if isinstance(choice, str)]
    return found


def candidates(text: str, fields: Fields, count: int = 12) -> list[str]:
    """The names of two or more words in a document, most frequent first, without those that are known fields already."""
    known = {str(value).casefold() for value in fields.model_dump().values() if value}
    names = Counter(re.findall(r"\b[A-Z][\w’'-]+(?: (?:[A-Z][\w’'-]*|\d[\w.]*))+", opening(text, BODY_CHARS)))
    return [name for name, _ in names.most_common() if name.casefold() not in known][:count]


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def of(messages: Sequence[Message]) -> str:
    """A conversation as one text, for tests and for counting its length."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
