"""The documentation is under test: its snippets run, its links resolve, its reference pages match the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml

from scripts import reference
from tests.page_runner import SHELLS
from tests.pages import Block, Page, commands, read_page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
#: Blocks that only show something. Any other language is checked, so that a misspelt one is not skipped in silence.
SHOWN = {"", "text", "yaml", "mermaid", "diff", "dockerfile", "sql", "http"}
CHECKED = {"python", "toml", "json", *SHELLS}
#: A page may explain away a few blocks, not its substance.
NOT_RUN_MAX = 25


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: read_page(path) for path in LINKED}


def _run_page(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120"}
    command = [sys.executable, "-W", "error", "-m", "tests.page_runner", str(path)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_every_snippet_runs(path: Path, tmp_path: Path) -> None:
    finished = _run_page(path, tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_blocks_are_of_known_languages_and_markers_belong_to_blocks(pages: dict[Path, Page]) -> None:
    wrong = [
        f"{_name(page.path)}:{block.line}: no test knows the language '{block.language}'"
        for page in pages.values()
        for block in page.blocks
        if block.language not in CHECKED | SHOWN and block.verb != "file"
    ]
    wrong += [f"{_name(page.path)}:{line}: this marker does nothing" for page in pages.values() for line in page.lost_markers]
    assert not wrong, "\n".join(wrong)


def test_few_blocks_are_not_run_and_each_says_why(pages: dict[Path, Page]) -> None:
    left_out = [(page, block) for page in pages.values() for block in page.blocks if not block.runs]
    silent = [f"{_name(page.path)}:{block.line}" for page, block in left_out if len(block.argument.split()) < 2]
    assert not silent, f"say in words why these are not run: {', '.join(silent)}"
    assert len(left_out) <= NOT_RUN_MAX, "too much of the documentation is not run: " + ", ".join(
        f"{_name(page.path)}:{block.line} ({block.argument})" for page, block in left_out
    )


def test_internal_links_resolve(pages: dict[Path, Page]) -> None:
    broken = []
    for page in pages.values():
        for target, line in page.links:
            if re.match(r"[a-z]+:", target):
                continue  # The outside world may change; a test that calls it fails for no fault of ours.
            name, _, anchor = unquote(target).partition("#")
            linked = (page.path.parent / name).resolve() if name else page.path
            if not linked.exists():
                broken.append(f"{_name(page.path)}:{line}: there is no {target}")
            elif anchor and linked in pages and anchor not in pages[linked].anchors:
                broken.append(f"{_name(page.path)}:{line}: there is no heading #{anchor} in {_name(linked)}")
    assert not broken, "\n".join(broken)


def test_the_navigation_names_every_page_once() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = sorted(_leaves(navigation))
    there = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.name != "template.md")
    assert named == there


def _leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []
    return [leaf for child in children for leaf in _leaves(child)]


def test_make_targets_named_in_the_documentation_exist(pages: dict[Path, Page]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word
        for block in _shell_blocks(pages)
        for command, _ in commands(block)
        if command.startswith("make ")
        for word in command.split()[1:]
        if "=" not in word
    }
    assert named <= targets


def test_commands_and_options_named_in_the_documentation_exist(pages: dict[Path, Page]) -> None:
    """Counts the blocks that are not run too: a command that needs a server must at least be one."""
    from ziggurat.doors import cli

    group: Any = typer.main.get_command(cli.app)
    wrong = []
    for block in _shell_blocks(pages):
        for text, line in commands(block):
            words = shlex.split(text)
            if words[0] == "ziggurat" and (unknown := _unknown_word(group, words[1:])):
                wrong.append(f"line {line}: '{text}': there is no {unknown}")
    assert not wrong, "\n".join(wrong)


def _unknown_word(command: Any, words: list[str]) -> str:
    """The first word that names no command or option; arguments and values are not judged."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            return f"command {name}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts} | {"--help"}
    named = (word.partition("=")[0] for word in words if word.startswith("--"))
    return next((f"option {word}" for word in named if word not in options), "")


def _shell_blocks(pages: dict[Path, Page]) -> list[Block]:
    return [block for page in pages.values() for block in page.blocks if block.language in SHELLS]


def test_the_changelog_has_an_entry_for_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(reference.PAGES), ids=str)
def test_reference_pages_match_the_code(path: str) -> None:
    page = DOCS / path
    assert page.read_text(encoding="utf-8") == reference.render(page), f"docs/{path} is stale: run 'make reference'"


# -- the tests of these tests ----------------------------------------------------------------------------------------


def _page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\n```python\nassert 1 == 2\n```\n", "page.md:3"),
        ("```python\nimport asyncio\nawait asyncio.sleep(0)\nraise ValueError('spoken')\n```\n", "spoken"),
        ("```python\na = 1\n```\n```python\nassert a == 2\n```\n", "page.md:5"),
        ("```bash\npython -c 'raise SystemExit(3)'\n```\n", "ended with 3, not 0"),
        ("<!-- docs: exit 1 -->\n```bash\npython -c 'pass'\n```\n", "ended with 0, not 1"),
        ("```bash\nrm -rf things\n```\n", "no test runs 'rm -rf things'"),
        ("```toml\n[broken\n```\n", "page.md:2"),
        ("```json\n{'a': 1}\n```\n", "page.md:2"),
    ],
)
def test_a_wrong_snippet_fails(tmp_path: Path, text: str, said: str) -> None:
    finished = _run_page(_page(tmp_path, text), tmp_path)
    assert finished.returncode == 1
    assert said in finished.stderr


def test_a_right_page_runs_in_order(tmp_path: Path) -> None:
    text = """
        1. In a list:

            <!-- docs: file shop/prices.py -->
            ```python
            PRICE = 3
            ```

        <!-- docs: no-run: it would call home -->
        ```python
        raise SystemExit
        ```
        ```python
        from shop.prices import PRICE
        ```
        ```console
        $ python -c 'import shop.prices; \\
            print(shop.prices.PRICE)'
        3
        ```
        <!-- docs: exit 4 -->
        ```bash
        # A comment.
        export LEFT=4
        python -c 'import os, sys; sys.exit(int(os.environ["LEFT"]))'
        ```
        ```python
        import asyncio, os
        await asyncio.sleep(0)
        assert (PRICE, os.environ["LEFT"]) == (3, "4")
        ```
    """
    finished = _run_page(_page(tmp_path, re.sub(r"^ {8}", "", text, flags=re.MULTILINE)), tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "5 blocks ran\n"


def test_markers_that_belong_to_no_block_are_found(tmp_path: Path) -> None:
    text = "<!-- docs: no-run: why -->\nprose\n\n<!-- docs: norun: why -->\n\n<!-- docs: file -->\n```python\n```\n"
    assert read_page(_page(tmp_path, text)).lost_markers == (1, 4, 6)
