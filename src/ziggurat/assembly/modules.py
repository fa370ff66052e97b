"""The app's modules: found, imported, and imported later when a run names one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigurationError, UnknownName
from ziggurat.program.registry import Registry, import_module
from ziggurat.settings import Settings


def make_importable(folder: Path | str) -> None:
    """Make modules in a folder importable."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def reach_entry(entry: str, folder: str) -> None:
    """Make the module of a workflow importable that another process of this user asks for. Raises ConfigurationError if none can be."""
    module, _, name = entry.partition(":")
    if module == "__main__":
        raise ConfigurationError(
            f"The workflow {name!r} is defined in a script, and another process runs the system, which cannot import a script; "
            "put the workflow into a module."
        )
    make_importable(folder)


def open_registry(settings: Settings) -> AppRegistry:
    """Return what the app's modules define. Raises ConfigurationError if one cannot be imported."""
    make_importable(settings.folder)
    return AppRegistry(settings.app.modules)


class AppRegistry(Registry):
    """Imports the module that a run remembers when its workflow is not known yet: a run without its program would be parked.

    The names come from the state file and the control socket, which only this user can write.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        super().__init__(modules)
        #: Called after an import.
        self.loaded: Callable[[], None] | None = None

    def workflow(self, name: str, entry: str = "") -> Any:
        try:
            return super().workflow(name)
        except UnknownName:
            module = entry.partition(":")[0]
            if not module or module == "__main__" or module in sys.modules:
                raise
        try:
            import_module(module)
        except ConfigurationError as error:
            raise UnknownName(f"There is no workflow {name!r} here, and its module is no help: {error}") from error
        if self.loaded is not None:
            self.loaded()
        return super().workflow(name)
