"""The architecture is a test: the house of src/ziggurat, and planted violations that prove that each rule can fail."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import ziggurat
from tests import house
from tests.house import House

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "ziggurat"

TREE_RULES: list[Callable[[House], list[str]]] = [
    house.upward_imports,
    house.missing_modules,
    house.cycles,
    house.long_files,
    house.long_functions,
    house.forbidden_words,
    house.forbidden_imports,
    house.named_backends,
    house.dead_files,
    house.undocumented_modules,
]


@pytest.fixture(scope="module")
def ziggurat_house() -> House:
    return house.read(SOURCE)


@pytest.mark.parametrize("rule", TREE_RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Callable[[House], list[str]], ziggurat_house: House) -> None:
    violations = rule(ziggurat_house)
    assert not violations, "\n" + "\n".join(violations)


def test_every_folder_is_a_package() -> None:
    assert house.folders_without_init(SOURCE) == []


def test_import_linter_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_import_linter_and_this_walk_have_the_same_floors() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {contract["name"]: contract for contract in settings["tool"]["importlinter"]["contracts"]}
    layers = contracts["imports only look down"]["layers"]
    floors = [{room.strip(" ()") for room in layer.replace(":", "|").split("|")} for layer in layers]
    assert floors == [set(floor) for floor in house.FLOORS]


def test_public_names_are_documented() -> None:
    names = ziggurat.__all__
    assert len(names) == len(set(names)), "a public name is listed twice"
    silent = [name for name in names if not _is_documented(getattr(ziggurat, name))]
    assert not silent, f"these public names have no docstring of their own: {', '.join(silent)}"


def _is_documented(thing: object) -> bool:
    if inspect.isclass(thing):
        return bool((thing.__dict__.get("__doc__") or "").strip())  # An inherited docstring describes the parent.
    if inspect.isroutine(thing) or inspect.ismodule(thing):
        return bool((thing.__doc__ or "").strip())
    return True  # A value, such as a version, is documented where it is defined.


# -- planted violations: a rule that cannot fail proves nothing ------------------------------------------------------


def plant(folder: Path, **files: str) -> House:
    """A package `ziggurat` in `folder`. Keys are paths, with `__` for `/` and `package` for `__init__`."""
    root = folder / "ziggurat"
    for key, source in files.items():
        *folders, stem = key.split("__")
        path = root.joinpath(*folders, "__init__.py" if stem == "package" else f"{stem}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    for path in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        (path / "__init__.py").touch()
    return house.read(root)


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    plant(
        tmp_path,
        errors='"""Errors."""\n',
        queues__interface='"""The interface."""\nfrom ziggurat import errors\n',
        queues__backends__memory='"""A backend."""\nfrom ziggurat.queues.interface import Queue\n',
        assembly='"""Assembly."""\nBACKENDS = {"memory": "ziggurat.queues.backends.memory:MemoryQueue"}\n',
        doors__cli='"""A door."""\nfrom ziggurat import __version__, assembly\n',
        testing__queue_suite='"""A suite."""\nfrom ziggurat.queues import interface\n',
    )
    assert list(house.all_violations(tmp_path / "ziggurat")) == []


@pytest.mark.parametrize(
    ("importer", "statement", "complaint"),
    [
        ("queues__interface", "from ziggurat.workers import worker", "imports only look down"),
        ("queues__interface", "from ..workers.worker import Worker", "imports only look down"),
        ("queues__interface", "def f():\n    import ziggurat.workers.worker", "imports only look down"),
        (
            "queues__interface",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ziggurat.workers.worker import Worker",
            "imports only look down",
        ),
        ("orchestrator__engine", "from ziggurat.workers import worker", "rooms on one floor are strangers"),
        ("errors", "import ziggurat.workers.worker", "imports only look down"),
        ("workers__worker", "from ziggurat import Retry", "front door is for users"),
        ("workers__worker", "from ziggurat.testing import suite", "nothing that ships"),
        ("testing__suite", "from ziggurat import client", "testing stands below the client"),
        ("cellar", "import os", "has no floor"),
    ],
)
def test_upward_imports_are_found(tmp_path: Path, importer: str, statement: str, complaint: str) -> None:
    files = {"workers__worker": "", "testing__suite": "", "client": "", importer: statement}
    (violation,) = house.upward_imports(plant(tmp_path, **files))
    assert complaint in violation


@pytest.mark.parametrize(
    "back",
    [
        "from ziggurat import first",
        "from .first import thing",
        "def f():\n    from ziggurat.first import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ziggurat.first",
    ],
)
def test_cycles_are_found_however_they_are_hidden(tmp_path: Path, back: str) -> None:
    planted = plant(tmp_path, first="import ziggurat.second", second="import ziggurat.third", third=back)
    (violation,) = house.cycles(planted)
    assert "ziggurat.first, ziggurat.second, ziggurat.third" in violation


def test_a_cycle_through_a_package_init_is_found(tmp_path: Path) -> None:
    planted = plant(
        tmp_path,
        queues__package="from ziggurat.queues.interface import Queue",
        queues__interface="from ziggurat.queues import registry_of_the_package",
    )
    (violation,) = house.cycles(planted)
    assert "ziggurat.queues, ziggurat.queues.interface" in violation


@pytest.mark.parametrize(
    "line",
    ["from ziggurat.ghost import spirit", "import ziggurat.ghost", "def f():\n    from ziggurat.queues.ghost import spirit"],
)
def test_imports_of_missing_modules_are_found(tmp_path: Path, line: str) -> None:
    planted = plant(tmp_path, queues__interface="", client=line)
    (violation,) = house.missing_modules(planted)
    assert "which does not exist" in violation
    assert house.upward_imports(planted) == []


def test_long_files_are_found_and_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    planted = plant(tmp_path, fits="x = 1\n" * 500, over="x = 1\n" * 501)
    (violation,) = house.long_files(planted)
    assert "over.py has 501 lines" in violation


def test_long_functions_are_found_and_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    def function(name: str, lines: int) -> str:
        return f"@decorated\nasync def {name}():\n" + "    x = 1\n" * (lines - 1)

    planted = plant(tmp_path, functions=function("fits", 70) + function("over", 71))
    (violation,) = house.long_functions(planted)
    assert "over has 71 lines" in violation


@pytest.mark.parametrize("line", ["# TODO: later", "x = 1  # FIXME", "raise NotImplementedError", "'XXX'"])
def test_unfinished_work_is_found(tmp_path: Path, line: str) -> None:
    assert len(house.forbidden_words(plant(tmp_path, module=line))) == 1


@pytest.mark.parametrize("line", ["import pickle", "from pickle import loads", "def f():\n    import shelve"])
def test_formats_that_run_code_are_found(tmp_path: Path, line: str) -> None:
    assert len(house.forbidden_imports(plant(tmp_path, module=line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from ziggurat.queues.backends import memory",
        "import ziggurat.queues.backends.memory",
        "from ziggurat.queues.backends.memory import MemoryQueue",
        "name = 'ziggurat.queues.backends.memory:MemoryQueue'",
    ],
)
def test_backends_named_outside_assembly_are_found(tmp_path: Path, line: str) -> None:
    planted = plant(tmp_path, queues__backends__memory="", client=line, assembly=line)
    (violation,) = house.named_backends(planted)
    assert "ziggurat.client names ziggurat.queues.backends.memory" in violation


def test_dead_files_are_found(tmp_path: Path) -> None:
    planted = plant(
        tmp_path,
        doors__cli__package="from ziggurat.doors.cli.run import run",
        doors__cli__run="import ziggurat.errors",
        doors__cli__forgotten="",
        errors="",
        kept_by_a_suite_only="",
        testing__suite="import ziggurat.kept_by_a_suite_only",
    )
    violations = house.dead_files(planted)
    assert [violation.partition(":")[0] for violation in violations] == [
        "ziggurat/doors/cli/forgotten.py",
        "ziggurat/kept_by_a_suite_only.py",
    ]


def test_folders_without_init_are_found(tmp_path: Path) -> None:
    plant(tmp_path, queues__interface="")
    (tmp_path / "ziggurat" / "queues" / "__init__.py").unlink()
    (violation,) = house.folders_without_init(tmp_path / "ziggurat")
    assert violation.startswith("ziggurat/queues holds modules")


def test_silent_modules_are_found(tmp_path: Path) -> None:
    (violation,) = house.undocumented_modules(plant(tmp_path, silent="x = 1", speaking='"""Says what it is."""'))
    assert violation.startswith("ziggurat/silent.py")


def test_import_linter_finds_a_planted_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, queues__interface="import ziggurat.workers.worker", workers__worker="")
    contract = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")
    (tmp_path / "linter.toml").write_text(contract[1] + contract[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--config", "linter.toml"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "ziggurat.queues is not allowed to import ziggurat.workers" in finished.stdout
