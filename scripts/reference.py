"""Writes the generated parts of the reference pages from the code, so that the two cannot disagree.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else on a page is written by
hand. The page of the settings is generated as a whole. `make reference` rewrites the pages in place; tests/test_docs.py
fails while one is stale.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

import ziggurat
from ziggurat import errors
from ziggurat.settings import settings_reference
from ziggurat.telemetry.catalogue import metrics_reference
from ziggurat.telemetry.events import events_reference

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS_PAGE = "reference/settings.md"
_PART = re.compile(r"(?P<open><!-- generated: (?P<name>\w+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)


def render(page: Path) -> str:
    """The page as it should be: its own text with every generated part made anew, or made as a whole."""
    if page == DOCS / SETTINGS_PAGE:
        return settings_reference()
    text = page.read_text(encoding="utf-8")
    return _PART.sub(lambda part: f"{part['open']}\n{GENERATORS[part['name']]().strip()}\n\n{part['close']}", text)


def error_tree() -> str:
    """The tree from the docstring of ziggurat.errors, then one section per family with what each error means."""
    _, _, tree = (errors.__doc__ or "").partition("\n\n")
    lines = ["```text", inspect.cleandoc("\n" + tree), "```", "", "| Error | Exit code | Meaning |", "|---|---|---|"]
    lines += [f"| `{e.__name__}` | {e.exit_code} | {_one_line(e)} |" for e in _subclasses(errors.ZigguratError)]
    return "\n".join(lines)


def _subclasses(root: type[errors.ZigguratError]) -> list[type[errors.ZigguratError]]:
    """The root and everything below it that ziggurat.errors defines, in the order of the file."""
    return [thing for thing in vars(errors).values() if inspect.isclass(thing) and issubclass(thing, root)]


def public_names() -> str:
    """One section for each public name: its signature and its docstring."""
    sections = []
    for name in sorted(ziggurat.__all__, key=str.casefold):
        thing = getattr(ziggurat, name)
        if inspect.ismodule(thing):
            functions = [f for f in vars(thing).values() if inspect.isfunction(f) and f.__module__ == thing.__name__]
            sections += [_section(f"{name}.{f.__name__}", f) for f in functions if not f.__name__.startswith("_")]
        elif inspect.isclass(thing) or inspect.isroutine(thing) or inspect.getdoc(type(thing)):
            sections.append(_section(name, thing))
    return "\n\n".join(sections)


def _section(name: str, thing: object) -> str:
    parts = [f"### {name}", f"```text\n{_declared(name, thing)}\n```", _markdown(inspect.getdoc(thing) or "")]
    if isinstance(thing, type) and not issubclass(thing, BaseException):
        methods = [(n, _callable(m)) for n, m in vars(thing).items() if not n.startswith("_")]
        rows = [f"- `{_declared(n, m)}`: {_one_line(m)}" for n, m in methods if callable(m) and inspect.getdoc(m)]
        parts += ["**Methods**", "\n".join(rows)] if rows else []
    return "\n\n".join(parts)


def _callable(attribute: object) -> object:
    """The function behind a class method or a static method; anything else as it is."""
    return attribute.__func__ if isinstance(attribute, classmethod | staticmethod) else attribute


def _declared(name: str, thing: object) -> str:
    """How the thing is declared: its kind, its name and its parameters, or an error's bases."""
    if isinstance(thing, type) and issubclass(thing, BaseException):
        return f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})"
    is_async = inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(thing)
    kind = "class " if isinstance(thing, type) else "async def " if is_async else "def " if inspect.isfunction(thing) else ""
    return f"{kind}{name}{_signature(thing)}"


def _signature(thing: object) -> str:
    if not callable(thing):
        return ""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    if isinstance(thing, type):
        text = text.removesuffix(" -> 'None'").removesuffix(" -> None")
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # Annotations are kept as text.
    text = re.sub(r"\((?:self|cls)(?:, )?", "(", text, count=1)
    # Defaults that are objects print an address, which differs from process to process.
    return re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "…", text)


def _markdown(docstring: str) -> str:
    """A docstring's `Args:` list as a Markdown list; the rest as it is."""
    lines: list[str] = []
    in_arguments = False
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields|Attributes):", line):
            lines += [f"**{line[:-1]}**", ""]
            in_arguments = True
        elif in_arguments and (entry := re.match(r" {4}(\*{0,2}\w+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif in_arguments and line.startswith("     "):
            lines[-1] += " " + line.strip()
        else:
            in_arguments = in_arguments and line == ""
            lines.append(line)
    return "\n".join(lines)


def _one_line(thing: object) -> str:
    """The first paragraph of the docstring on one line."""
    paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def command_line() -> str:
    """One section for each command: its usage, its help and its options, from the same app that parses them."""
    from ziggurat.doors import cli

    sections: list[str] = []
    _describe("ziggurat", typer.main.get_command(cli.app), sections)
    return "\n\n".join(sections)


def _describe(path: str, command: Any, sections: list[str]) -> None:
    """Add the command's own section, unless it is a group that only holds others, then those of the commands below it."""
    children = getattr(command, "commands", {})
    if not children or (command.invoke_without_command and path != "ziggurat"):
        sections.append(_command_section(path, command))
    for name, child in children.items():
        if not child.hidden:
            _describe(f"{path} {name}", child, sections)


def _command_section(path: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    words = [a.metavar or a.name.upper() for a in arguments]
    usage = " ".join([path, *(word if a.required else f"[{word}]" for a, word in zip(arguments, words, strict=True))])
    lines = [f"### {path}", "", "```text", usage + " [OPTIONS]", "```", "", inspect.cleandoc(command.help or ""), ""]
    if shown:
        lines += ["| Argument or option | Default | Meaning |", "|---|---|---|"]
        lines += [_row(parameter) for parameter in shown]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = ", ".join(parameter.opts + parameter.secondary_opts)
        name += f" {parameter.metavar}" if parameter.metavar else ""
    default = "" if parameter.default in (None, False, "", [], ()) or callable(parameter.default) else f"`{parameter.default}`"
    meaning = " ".join((parameter.help or "").split()).replace("\\[", "[").replace("|", "\\|")
    return f"| `{name}` | {default} | {meaning} |"


#: The name of a generated part, and what makes it.
GENERATORS: dict[str, Callable[[], str]] = {
    "commands": command_line,
    "errors": error_tree,
    "events": events_reference,
    "metrics": metrics_reference,
    "names": public_names,
}
#: Pages that are generated, in part or as a whole, relative to docs/.
PAGES = (
    "reference/cli.md",
    "reference/errors.md",
    "reference/events.md",
    "reference/metrics.md",
    "reference/program-model.md",
    SETTINGS_PAGE,
)


def main() -> int:
    for path in PAGES:
        page = DOCS / path
        page.write_text(render(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
