"""Token counts without a tokenizer: bytes over four, times what each model has taught.

A tokenizer per model would be a download per model, and slower than the call that it serves. A guess is needed only before a call, to
choose a route and to reserve capacity, and for the few endpoints that report no usage; whatever is reported replaces it.
"""

from __future__ import annotations

from typing import Any

from ziggurat.inference.parts import part_tokens
from ziggurat.records import ChatMessage, Completion, Embeddings, Prompt

#: Bytes of a token in English prose, by most tokenizers.
BYTES_PER_TOKEN = 4.0
#: Tokens that a message's frame costs, by OpenAI's cookbook.
TOKENS_PER_MESSAGE = 4
#: How much one observation of a long prompt moves the ratio. Short prompts move it less: what their chat template adds is no ratio.
_LEARNING, _LONG = 0.1, 500.0


#: An answer's tokens before a model has given one, and the longest that is reckoned with where nothing bounds it.
USUAL_ANSWER, LONGEST_ANSWER = 256, 16_384
#: How much longer than estimated a prompt may turn out: byte counts are off by a third for code and for other scripts than Latin.
PROMPT_MARGIN = 1.5


class TokenEstimator:
    """Estimates token counts of prompts and texts, and learns each upstream model's ratio from reported usage.

    Reads and writes of one float in a dictionary: safe from several threads, and a lost update costs nothing.
    """

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}
        #: How long answers usually are, and how much of their max_tokens they fill.
        self._answers: dict[str, float] = {}
        self._filled: dict[str, float] = {}
        #: The prompt that was looked at last, and its tokens by the plain rule: an admission asks several times for one prompt.
        self._last: tuple[Prompt | None, float] = (None, 0.0)

    def prompt(self, prompt: Prompt, upstream: str) -> int:
        """Return about how many tokens the prompt is for the model, at least 1."""
        last, raw = self._last
        if last is not prompt:
            raw = raw_tokens(prompt)
            self._last = (prompt, raw)
        return max(1, int(raw * self._ratios.get(upstream, 1.0)))

    def answer(self, size: int, upstream: str) -> int:
        """Return about how many tokens an answer of so many bytes is for the model."""
        return int(size / BYTES_PER_TOKEN * self._ratios.get(upstream, 1.0) + 0.5)

    def likely(self, prompt: Prompt, upstream: str) -> int:
        """Return about how many tokens the prompt and its answer will be: of the answer, what is usual for the model and asked for."""
        usual = self._answers.get(upstream)
        if prompt.max_tokens is None:
            answer = usual if usual is not None else float(USUAL_ANSWER)
        else:
            # As much of its max_tokens as is usual. Not less by what answers were before: those that are cut off would all be estimated
            # too low, and a process has many of them under way.
            answer = prompt.max_tokens * self._filled.get(upstream, 1.0)
            if usual is not None:
                answer = min(answer, 2 * usual + 1)
        return self.prompt(prompt, upstream) + int(answer + 0.5)

    def most(self, prompt: Prompt, upstream: str, context: int) -> tuple[int, int]:
        """Return how many tokens the prompt and its answer can be at most, as far as can be told: what a budget must allow for."""
        outputs = prompt.max_tokens or min(context or LONGEST_ANSWER, LONGEST_ANSWER)
        return int(self.prompt(prompt, upstream) * PROMPT_MARGIN) + 1, outputs

    def answered(self, prompt: Prompt, upstream: str, tokens: int) -> None:
        """Take in how long an answer of a model was."""
        known = self._answers.get(upstream)
        self._answers[upstream] = float(tokens) if known is None else known + _LEARNING * (tokens - known)
        if prompt.max_tokens:
            filled = self._filled.get(upstream, 1.0)
            self._filled[upstream] = filled + _LEARNING * (min(1.0, tokens / prompt.max_tokens) - filled)

    def learn(self, raw: float, upstream: str, tokens: int) -> None:
        """Take in that a prompt of `raw` tokens by the plain rule was `tokens` for the model."""
        if tokens > 0 and raw > 0:
            known = self._ratios.get(upstream, 1.0)
            seen = min(8.0, max(0.125, tokens / raw))
            self._ratios[upstream] = known + _LEARNING * min(1.0, raw / _LONG) * (seen - known)


def raw_tokens(prompt: Prompt) -> float:
    """Return the tokens of a prompt by the plain rule, tools and schema included."""
    total = 0.0
    for message in prompt.messages:
        total += TOKENS_PER_MESSAGE + _content(message)
    for tool in prompt.tools:
        total += (len(tool.name) + len(tool.description)) / BYTES_PER_TOKEN + _json_length(tool.parameters) / BYTES_PER_TOKEN
    if prompt.schema is not None:
        total += _json_length(prompt.schema) / BYTES_PER_TOKEN
    return total


def _content(message: ChatMessage) -> float:
    content = message.content
    total = 0.0
    if isinstance(content, str):
        total = byte_length(content) / BYTES_PER_TOKEN
    elif content is not None:
        for part in content:
            text = part.get("text")
            total += byte_length(text) / BYTES_PER_TOKEN if isinstance(text, str) else part_tokens(part)
    for call in message.tool_calls:
        total += (len(call.name) + len(call.arguments)) / BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
    return total


def byte_length(text: str) -> int:
    """Return the length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _json_length(value: Any) -> int:
    """Return about the length of a schema as JSON, without writing it."""
    if isinstance(value, dict):
        return 2 + sum(len(key) + 4 + _json_length(item) for key, item in value.items())
    if isinstance(value, list):
        return 2 + sum(_json_length(item) + 1 for item in value)
    return len(value) + 2 if isinstance(value, str) else 4


def size_of(answer: Completion | Embeddings) -> int:
    """Return the bytes of what a model wrote."""
    if isinstance(answer, Embeddings):
        return 0
    return (
        byte_length(answer.text) + byte_length(answer.reasoning) + sum(len(c.name) + len(c.arguments) for c in answer.tool_calls)
    )
