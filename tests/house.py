"""The rules of the house, as pure functions over a source tree.

Each rule takes a `House` (the parsed tree) and returns its violations as sentences; an empty list means that the rule
holds. Imports are counted wherever they stand: at the top, under TYPE_CHECKING, inside a function. That an import is
deferred hides a cycle from Python, not from the reader. The import of a parent package, which every `import a.b`
implies, is not counted.

import-linter checks the same floors from pyproject.toml. This walk adds what import-linter does not know: cycles inside
a room, sizes, dead files, forbidden words and the names of backends.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: From the roof to the ground. A module may import from lower floors and from its own room; rooms that share a floor
#: are strangers. Ground-floor modules may know each other, as long as there is no cycle.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("doors", "integrations"),
    ("client",),
    ("assembly",),
    ("orchestrator", "workers", "planner"),
    ("queues", "inference"),
    ("program",),
    ("records", "errors", "clock", "codec", "units", "settings", "telemetry", "artifacts"),
)
#: Stands outside: it imports what is below the client, and nothing imports it.
OUTSIDE = "testing"
ASSEMBLY = "assembly"
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FORBIDDEN_WORDS = re.compile(r"\b(TODO|FIXME|XXX)\b|\bNotImplementedError\b")
#: Formats that run code or read memory when they load. The wire carries JSON.
FORBIDDEN_IMPORTS = frozenset({"cloudpickle", "dill", "marshal", "pickle", "shelve"})


@dataclass(frozen=True)
class Module:
    """One source file. `imports` are the modules of the same package it imports, with the line of the first import."""

    name: str
    path: Path
    source: str
    tree: ast.Module
    is_package: bool
    imports: dict[str, int] = field(default_factory=dict)
    #: Modules of the same package that a string names, such as an entry of a lazy table.
    named: dict[str, int] = field(default_factory=dict)
    #: Modules of the same package that are imported and do not exist.
    missing: dict[str, int] = field(default_factory=dict)
    #: Top-level names of all other imports, with the line of the first.
    foreign: dict[str, int] = field(default_factory=dict)

    def at(self, line: int) -> str:
        return f"{self.path}:{line}"


@dataclass(frozen=True)
class House:
    package: str
    modules: dict[str, Module]

    def room(self, module: str) -> str:
        """The part below the package: `ziggurat.queues.backends.memory` is in `queues`; the package itself in ''."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else ""


def read(root: Path) -> House:
    """Parse the package in the folder `root`; the folder's name is the package's name."""
    package = root.name
    modules: dict[str, Module] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root.parent).with_suffix("")
        is_package = relative.name == "__init__"
        name = ".".join(relative.parent.parts if is_package else relative.parts)
        source = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path.relative_to(root.parent), source, ast.parse(source, str(path)), is_package)
    house = House(package, modules)
    for module in modules.values():
        _connect(house, module)
    return house


def _connect(house: House, module: Module) -> None:
    known = house.modules
    dotted = re.compile(rf"{re.escape(house.package)}(\.\w+)+")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _add(house, module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            for alias in node.names:
                child = f"{base}.{alias.name}"
                _add(house, module, child if child in known else base, node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            for match in dotted.finditer(node.value):
                target = _deepest(known, match.group())
                if target not in ("", house.package, module.name):
                    module.named.setdefault(target, node.lineno)


def _base(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of what `from … import` names, with relative dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def _add(house: House, module: Module, name: str, line: int) -> None:
    if name in house.modules:
        if name != module.name:
            module.imports.setdefault(name, line)
    elif name.startswith(house.package + "."):
        module.missing.setdefault(name, line)
    else:
        module.foreign.setdefault(name.partition(".")[0], line)


def _deepest(known: dict[str, Module], name: str) -> str:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


# -- the rules -------------------------------------------------------------------------------------------------------


def upward_imports(house: House, floors: Sequence[Sequence[str]] = FLOORS) -> list[str]:
    """Imports that do not look down, imports between strangers, and rooms that have no floor."""
    floor_of = {room: number for number, rooms in enumerate(floors) for room in rooms}
    ground = len(floors) - 1
    found = []
    for module in house.modules.values():
        room = house.room(module.name)
        if room and room != OUTSIDE and room not in floor_of:
            found.append(f"{module.path}: the room '{room}' has no floor; give it one in tests/house.py.")
            continue
        for target, line in module.imports.items():
            if complaint := _looks_up(room, house.room(target), floor_of, ground):
                found.append(f"{module.at(line)}: {module.name} imports {target}: {complaint}")
    return found


def _looks_up(room: str, other: str, floor_of: dict[str, int], ground: int) -> str:
    if room in ("", other):
        return ""
    if other == OUTSIDE:
        return "nothing that ships to production imports testing."
    client = floor_of.get("client", -1)
    if other == "":
        # What stands above the client may use the package as its users do.
        is_above = floor_of.get(room, ground) < client
        return "" if is_above else "the package's front door is for users; import the module that defines the name."
    if room == OUTSIDE:
        return "" if floor_of.get(other, ground) > client else "testing stands below the client."
    if other not in floor_of:
        return ""  # Reported once, at the room itself.
    if floor_of[room] == floor_of[other]:
        return "" if floor_of[room] == ground else "rooms on one floor are strangers."
    return "" if floor_of[room] < floor_of[other] else "imports only look down."


def missing_modules(house: House) -> list[str]:
    """Imports of modules that are not there; a deferred one would fail only when its function is called."""
    return [
        f"{module.at(line)}: {module.name} imports {name}, which does not exist."
        for module in house.modules.values()
        for name, line in module.missing.items()
    ]


def cycles(house: House) -> list[str]:
    """Groups of modules that import each other, by Tarjan's algorithm; each group is one violation."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in house.modules[name].imports:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(f"these modules import each other: {', '.join(sorted(group))}.")

    for name in house.modules:
        if name not in index:
            visit(name)
    return found


def long_files(house: House, lines_max: int = FILE_LINES_MAX) -> list[str]:
    counted = ((module, len(module.source.splitlines())) for module in house.modules.values())
    return [f"{module.path} has {lines} lines; {lines_max} is the most." for module, lines in counted if lines > lines_max]


def long_functions(house: House, lines_max: int = FUNCTION_LINES_MAX) -> list[str]:
    """Functions counted from their `def` to their last line, docstring included, decorators not."""
    found = []
    for module in house.modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > lines_max:
                    found.append(f"{module.at(node.lineno)}: {node.name} has {lines} lines; {lines_max} is the most.")
    return found


def forbidden_words(house: House) -> list[str]:
    """Unfinished work, in code or in comments. An abstract method is abstract; it does not raise."""
    found = []
    for module in house.modules.values():
        for number, line in enumerate(module.source.splitlines(), 1):
            if match := FORBIDDEN_WORDS.search(line):
                found.append(f"{module.at(number)}: '{match.group()}' marks unfinished work.")
    return found


def forbidden_imports(house: House) -> list[str]:
    return [
        f"{module.at(line)}: {module.name} imports {name}; the wire carries JSON."
        for module in house.modules.values()
        for name, line in module.foreign.items()
        if name in FORBIDDEN_IMPORTS
    ]


def named_backends(house: House) -> list[str]:
    """Backends named, by import or by string, outside assembly. Backends of one room may share a helper module."""
    found = []
    for module in house.modules.values():
        if house.room(module.name) in (ASSEMBLY, OUTSIDE):
            continue
        for target, line in (module.imports | module.named).items():
            drawer, is_backend, _ = target.partition(".backends.")
            if is_backend and not module.name.startswith(drawer + ".backends"):
                found.append(f"{module.at(line)}: {module.name} names {target}; only assembly names backends.")
    return found


def dead_files(house: House) -> list[str]:
    """Modules that no door, integration, front door or `__main__` reaches, by import or by a string that names them."""
    entries = {
        name
        for name in house.modules
        if house.room(name) in ("", "integrations") or name.endswith(".__main__") or _is_door(house, name)
    }
    alive: set[str] = set()
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name not in alive:
            alive.add(name)
            module = house.modules[name]
            todo += [*module.imports, *module.named, *_parents(house, name)]
    return [
        f"{module.path}: nothing reaches this module; import it or delete it."
        for name, module in house.modules.items()
        if name not in alive and house.room(name) != OUTSIDE
    ]


def _is_door(house: House, name: str) -> bool:
    """`doors.api` is an entry, whatever is beside it in `doors/cli/` must be reached from there."""
    return house.room(name) == "doors" and name.count(".") <= 2


def _parents(house: House, name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        if name in house.modules:
            yield name


def folders_without_init(root: Path) -> list[str]:
    folders = sorted({path.parent for path in root.rglob("*.py")})
    return [
        f"{folder.relative_to(root.parent)} holds modules but no __init__.py; a wheel or an import may miss it."
        for folder in folders
        if not (folder / "__init__.py").exists()
    ]


def undocumented_modules(house: House) -> list[str]:
    """Modules without a docstring. A package's `__init__.py` that holds nothing at all needs none."""
    return [
        f"{module.path}: the module does not say what it is; give it a docstring."
        for module in house.modules.values()
        if module.source.strip() and ast.get_docstring(module.tree) is None
    ]


def all_violations(root: Path) -> Iterable[str]:
    """Every rule over the package in `root`."""
    house = read(root)
    yield from upward_imports(house)
    yield from missing_modules(house)
    yield from cycles(house)
    yield from long_files(house)
    yield from long_functions(house)
    yield from forbidden_words(house)
    yield from forbidden_imports(house)
    yield from named_backends(house)
    yield from dead_files(house)
    yield from folders_without_init(root)
    yield from undocumented_modules(house)
