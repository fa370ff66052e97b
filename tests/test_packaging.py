"""What is shipped: the wheel's contents, the lock, and a core that imports without any extra."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip._internal.models.index import PyPI

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What the extras bring, by import name. None of it may be needed to import the core.
EXTRA_IMPORTS = (
    "aio_pika", "boto3", "bs4", "cryptography", "docx", "fastapi", "genai_prices", "google.cloud.tasks_v2", "obstore",
    "opentelemetry", "prometheus_client", "pypdf", "redis", "starlette", "temporalio", "uvicorn", "xllamacpp",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    info = f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}.dist-info"
    shipped = {name for name in wheel.namelist() if not name.startswith(info + "/")}
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "ziggurat").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == expected
    assert "ziggurat/py.typed" in shipped
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_the_wheel_says_who_it_is(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = email.message_from_bytes(wheel.read(path))
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "ziggurat = ziggurat.doors.cli:main" in wheel.read(scripts).decode()


def test_the_extra_all_is_every_other_extra() -> None:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])
    assert everything.extras == extras.keys() - {"all"}


def test_install_hints_name_extras_that_exist() -> None:
    """Every `pip install 'ziggurat-agents[x]'` and MissingExtra(…, "x") in the sources names an extra of pyproject.toml."""
    hint = re.compile(rf"{PROJECT['name']}\[([\w,-]+)\]|MissingExtra\([^()]*,\s*[\"']([\w-]+)[\"']\s*\)")
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = {extra for path in files for match in hint.finditer(path.read_text()) for extra in (match[1] or match[2]).split(",")}
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_lock_is_fresh_and_names_the_public_registry_only() -> None:
    text = (ROOT / "uv.lock").read_text()
    hosts = set(re.findall(r"https?://([^/\"]+)", text))
    assert hosts == {PyPI.netloc, PyPI.file_storage_domain}, "the lock holds addresses of one machine's own mirror"
    assert "file:" not in text
    lock = tomllib.loads(text)
    (ours,) = (package for package in lock["package"] if package["name"] == PROJECT["name"])
    assert ours["version"] == PROJECT["version"]
    locked = {_locked(entry) for entry in ours["metadata"]["requires-dist"]}
    assert locked == _declared(), "pyproject.toml changed: run 'make lock'"


def _locked(entry: dict[str, Any]) -> tuple[str, str, str]:
    extra = re.search(r"extra == '([\w-]+)'", entry.get("marker", ""))
    return canonicalize_name(entry["name"]), _sorted(entry.get("specifier", "")), extra[1] if extra else ""


def _declared() -> set[tuple[str, str, str]]:
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {
        (canonicalize_name(requirement.name), _sorted(str(requirement.specifier)), extra)
        for extra, texts in groups.items()
        for requirement in map(Requirement, texts)
    }


def _sorted(specifier: str) -> str:
    return ",".join(sorted(specifier.replace(" ", "").split(",")))


@pytest.mark.parametrize("module", ["ziggurat", "ziggurat.client", "ziggurat.assembly", "ziggurat.doors.cli"])
def test_the_core_imports_without_any_extra(module: str) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({EXTRA_IMPORTS!r})); import {module}"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr


def test_importing_ziggurat_loads_nothing_heavy() -> None:
    """The import budget, as a fact that does not depend on the machine: what a small script needs is all that loads."""
    program = "import sys, ziggurat; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())
    heavy = {"aiohttp", "rich", "sqlite3", "typer", *EXTRA_IMPORTS} & loaded
    assert not heavy, f"'import ziggurat' loads {', '.join(sorted(heavy))}; import them where they are used"
