"""Markdown pages as the documentation tests see them: fenced blocks with their markers, headings and links.

A comment on the line before a block says what to do with it:

    <!-- docs: file NAME -->         write the block to NAME, in the page's folder, before the next block runs
    <!-- docs: exit 1 -->            the shell block's last command ends with this exit code
    <!-- docs: no-run: REASON -->    do not run it, because of REASON
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*)")
_MARKER = re.compile(r"^\s*<!-- docs: (?P<verb>no-run|file|exit)(?::| |$)(?P<rest>.*?)-->\s*$")
_LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#{1,6} +(?P<text>.+?)\s*(?:\{#(?P<id>[\w-]+)\})?\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is the line of its first line of content, counted from 1."""

    language: str
    text: str
    line: int
    verb: str = ""
    argument: str = ""

    @property
    def runs(self) -> bool:
        return self.verb != "no-run"


@dataclass(frozen=True)
class Page:
    path: Path
    blocks: tuple[Block, ...]
    #: Link targets outside blocks, with their lines.
    links: tuple[tuple[str, int], ...]
    anchors: frozenset[str]
    #: Markers that no block follows, or that say nothing.
    lost_markers: tuple[int, ...]


def read_page(path: Path) -> Page:
    blocks: list[Block] = []
    links: list[tuple[str, int]] = []
    anchors: set[str] = set()
    lost: list[int] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    marker: tuple[str, str, int] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if fence := _FENCE.match(line):
            end = _end_of_block(lines, number, fence["ticks"])
            verb, argument, _ = marker or ("", "", 0)
            text = textwrap.dedent("\n".join(lines[number:end]) + "\n")
            blocks.append(Block(fence["language"], text, number + 1, verb, argument))
            number, marker = end + 1, None
        elif line.strip():
            if marker:
                lost.append(marker[2])
                marker = None
            if "<!-- docs" in line:
                found = _MARKER.match(line)
                if found and (argument := found["rest"].strip()):
                    marker = (found["verb"], argument, number)
                else:
                    lost.append(number)
            links += [(match["target"], number) for match in _LINK.finditer(re.sub(r"`[^`]*`", "", line))]
            if heading := _HEADING.match(line):
                anchors.add(heading["id"] or _slug(heading["text"]))
    if marker:
        lost.append(marker[2])
    return Page(path, tuple(blocks), tuple(links), frozenset(anchors), tuple(lost))


def _end_of_block(lines: list[str], start: int, ticks: str) -> int:
    for number in range(start, len(lines)):
        if lines[number].strip() == ticks:
            return number
    raise ValueError(f"The block that opens on line {start} is never closed.")


def _slug(heading: str) -> str:
    """The anchor that Markdown's toc extension gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    text = re.sub(r"[^\w\s-]", "", text).strip().lower()
    return re.sub(r"[-\s]+", "-", text)


def commands(block: Block) -> Iterator[tuple[str, int]]:
    """The commands of a shell block with their lines: joined over backslashes, prompts stripped, output left out."""
    console = block.language == "console"
    pending, first = "", 0
    for offset, line in enumerate(block.text.splitlines()):
        if not pending:
            if console and not line.startswith("$ "):
                continue  # What a command printed.
            line = line.removeprefix("$ ").strip()
            if not line or line.startswith("#"):
                continue
            first = block.line + offset
        pending += line.strip() + " "
        if line.endswith("\\"):
            pending = pending.rstrip(" \\") + " "
            continue
        yield pending.strip(), first
        pending = ""
