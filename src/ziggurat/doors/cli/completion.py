"""What a shell can complete: ids of runs and names of workflows. Quick, silent, and never wrong in the user's way."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

#: Runs that are offered; a shell with more choices than a screen helps nobody.
_OFFERED_MAX = 50


def run_ids(incomplete: str) -> list[str]:
    """Return ids of the newest runs that begin with what was typed, read straight from the state file."""
    import asyncio

    from ziggurat.client import Client
    from ziggurat.settings import load_settings

    async def newest() -> list[str]:
        async with Client(load_settings(), mode="observe") as client:
            runs = await client.runs(search=incomplete, limit=_OFFERED_MAX * 4)
        return [run.id for run in runs if run.id.startswith(incomplete)][:_OFFERED_MAX]

    with contextlib.suppress(Exception):
        return asyncio.run(newest())
    return []


def workflow_names(incomplete: str) -> list[str]:
    """Return MODULE:WORKFLOW of the modules in [app] and in this folder. Sources are read and never run."""
    with contextlib.suppress(Exception):
        return [name for name in _workflows_of(Path.cwd()) if name.startswith(incomplete)]
    return []


def _workflows_of(folder: Path) -> list[str]:
    from ziggurat.settings import load_settings

    modules = {path.stem: path for path in sorted(folder.glob("*.py"))}
    for module in load_settings().app.modules:
        stem = folder.joinpath(*module.split("."))
        path = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
        if path is not None:
            modules[module] = path
    return [f"{module}:{name}" for module, path in modules.items() for name in _decorated(path)]


def _decorated(path: Path) -> list[str]:
    with contextlib.suppress(SyntaxError, OSError, UnicodeDecodeError):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return [
            node.name
            for node in tree.body
            if isinstance(node, ast.AsyncFunctionDef)
            and any("workflow" in ast.unparse(d).split("(")[0] for d in node.decorator_list)
        ]
    return []
