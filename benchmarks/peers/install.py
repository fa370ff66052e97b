"""Installs the peers that versions.toml pins, each into an environment of its own under build/peers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build" / "peers"


def wanted() -> dict[str, dict[str, Any]]:
    """Return what versions.toml pins, by environment."""
    found: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "versions.toml").read_text())
    return found


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return PEERS / environment / "bin" / "python"


def install(environment: str) -> str:
    """Install one environment, unless it is as pinned already. Returns why it cannot be, or nothing."""
    pins = wanted()[environment]
    folder, stamp = PEERS / environment, PEERS / environment / "pins.json"
    if stamp.exists() and json.loads(stamp.read_text()) == pins:
        return ""
    if pins.get("npm") and shutil.which("npm") is None:
        return "npm is not installed"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        return "uv is not installed"
    commands = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
    ]
    if pins.get("pip"):
        packages = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python_of(environment))]
        commands.append([*packages, *pins["pip"]])
    if pins.get("npm"):
        commands.append(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder / "npm"), *pins["npm"]])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{command[0]} failed: {done.stderr.strip()[-500:]}"
    stamp.write_text(json.dumps(pins))
    return ""


if __name__ == "__main__":
    for name in sys.argv[1:] or wanted():
        print(f"{name}: {install(name) or 'installed'}")
