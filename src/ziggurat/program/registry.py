"""Which tasks and workflows this process knows, by name.

Decorators note every definition in one table of weak references, so that a definition made inside a test dies with it. A `Registry` is
a view of the table that resolves a name, preferring the modules of the app where a name is defined twice.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigurationError, UnknownName

_defined: dict[tuple[str, str], list[weakref.ref[Any]]] = {}
#: Counts definitions, so that a registry knows when what it looked up may have changed.
_version = 0


def definitions_made() -> int:
    """Return how many definitions were made in this process, so that whoever looked through them knows when to look again."""
    return _version


def define(definition: Any) -> None:
    """Note a definition. A module that is loaded again replaces its own earlier definition of that name."""
    global _version
    _version += 1
    entries = _defined.setdefault((definition.kind, definition.name), [])
    entries[:] = [e for e in entries if (old := e()) is not None and old.entry != definition.entry]
    entries.append(weakref.ref(definition))


class Registry:
    """Resolves names of tasks and workflows among what is defined in this process.

    Args:
        modules: names of the app's modules; they are imported, and win where a name is defined twice.

    Raises ConfigurationError if a module cannot be imported.
    """

    def __init__(self, modules: Iterable[str] = ()) -> None:
        self.modules = tuple(modules)
        self._pinned: dict[tuple[str, str], Any] = {}
        self._cache: dict[tuple[str, str], weakref.ref[Any]] = {}
        self._cached_version = -1
        for module in self.modules:
            import_module(module)

    def add(self, definition: Any) -> None:
        """Prefer this definition for its name."""
        key = (definition.kind, definition.name)
        if self._pinned.get(key) is not definition:
            self._pinned[key] = definition
            self._cache.clear()

    def task(self, name: str) -> Any:
        """Return the task of that name. Raises UnknownName."""
        return self._find("task", name)

    def workflow(self, name: str, entry: str = "") -> Any:
        """Return the workflow of that name. Raises UnknownName.

        `entry` is the "module:workflow" that a run remembers. Nothing is imported for it here; a registry that may do so overrides this.
        """
        return self._find("workflow", name)

    def workflows(self) -> list[Any]:
        """Return all workflows, by name."""
        names = sorted({name for kind, name in _defined if kind == "workflow"})
        return [found for name in names if (found := self._find_or_none("workflow", name)) is not None]

    def tasks(self) -> list[Any]:
        """Return all tasks, by name."""
        names = sorted({name for kind, name in _defined if kind == "task"})
        return [found for name in names if (found := self._find_or_none("task", name)) is not None]

    def _find(self, kind: str, name: str) -> Any:
        if self._cached_version != _version:
            self._cache.clear()
            self._cached_version = _version
        cached = self._cache.get((kind, name))
        found = cached() if cached is not None else None
        if found is None:
            found = self._find_or_none(kind, name)
            if found is not None:
                self._cache[kind, name] = weakref.ref(found)
        if found is None:
            # A name that is defined twice is known, too.
            alive = {n for (k, n), entries in _defined.items() if k == kind and any(entry() is not None for entry in entries)}
            known = sorted(n for n in alive | {n for k, n in self._pinned if k == kind} if not n.startswith("ziggurat."))
            listed = f"Known here: {', '.join(known[:10])}." if known else f"No {kind} is defined here."
            raise UnknownName(f"There is no {kind} {name!r}. {listed} Add its module to [app] modules in ziggurat.toml.")
        return found

    def _find_or_none(self, kind: str, name: str) -> Any:
        pinned = self._pinned.get((kind, name))
        if pinned is not None:
            return pinned
        alive = [d for entry in _defined.get((kind, name), ()) if (d := entry()) is not None]
        if len(alive) > 1:
            ours = [d for d in alive if d.entry.partition(":")[0] in self.modules]
            alive = ours or alive
        if len({d.entry for d in alive}) > 1:
            places = " and ".join(sorted(d.entry for d in alive))
            raise ConfigurationError(f"Two {kind}s are named {name!r}: {places}. Give one of them @{kind}(name=...).")
        return alive[0] if alive else None


def import_module(name: str) -> Any:
    """Import a module, looking in the current folder too. Raises ConfigurationError with the cause in one sentence."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigurationError(f"There is no module {name!r} in {here} or among the installed packages.") from error
        raise ConfigurationError(
            f"The module {name!r} cannot be imported: it needs {error.name!r}, which is not installed."
        ) from error
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"The module {name!r} cannot be imported: {type(error).__name__}: {error}.") from error


def load_workflow(reference: str, registry: Registry) -> Any:
    """Return the workflow that "MODULE:WORKFLOW", "path/to/file.py:WORKFLOW" or a known name means. Raises ConfigurationError."""
    module_name, _, name = reference.rpartition(":")
    if not module_name:
        return registry.workflow(name)
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise ConfigurationError(f"There is no file {module_name}.")
        sys.path.insert(0, str(path.resolve().parent))
        module_name = path.stem
    found = getattr(import_module(module_name), name, None)
    if found is None or getattr(found, "kind", "") != "workflow":
        names = sorted(d.name for d in registry.workflows() if d.entry.startswith(f"{module_name}:"))
        listed = f"It has: {', '.join(names)}." if names else "It has none; put @workflow on an async function."
        raise UnknownName(f"The module {module_name!r} has no workflow {name!r}. {listed}")
    registry.add(found)
    return found
