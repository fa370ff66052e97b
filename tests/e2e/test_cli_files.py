"""Files and keys from the command line, as people give them, rightly and wrongly."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Project

PROGRAM = """
    from pydantic import BaseModel

    from ziggurat import Artifact, signal, task, workflow


    class Order(BaseModel):
        paper: Artifact
        copies: int = 1


    @task
    def describe(paper: Artifact) -> str:
        return f"{paper.name} {paper.media_type} {len(paper.read_bytes())}"


    @task
    async def shout(paper: Artifact) -> Artifact:
        return await Artifact.save((await paper.text()).upper(), name="loud.txt")


    @workflow
    async def measure(paper: Artifact) -> str:
        return await describe(paper)


    @workflow
    async def order(wanted: Order) -> list[str]:
        return [await describe(wanted.paper)] * wanted.copies


    @workflow
    async def several(papers: list[Artifact], title: str = "") -> str:
        return title + "; ".join([await describe(paper) for paper in papers])


    @workflow
    async def louder(paper: Artifact) -> Artifact:
        return await shout(paper)


    @workflow
    async def waits(text: str) -> str:
        return text + await signal("more", str)
"""


@pytest.fixture
def papers(project: Project) -> Project:
    project.write("papers.py", PROGRAM)
    project.write("a.txt", "alpha\n")
    project.write("b.pdf", "beta!!\n")
    return project


def _objects(project: Project) -> list[Path]:
    return [path for path in (project.folder / ".ziggurat" / "artifacts").rglob("zg*") if path.is_file()]


def test_a_file_is_given_where_the_type_asks_for_one_and_nowhere_else(papers: Project) -> None:
    assert papers.ok("run", "papers:measure", "-i", '{"paper": "@a.txt"}', "--json").json["result"] == "a.txt text/plain 6"
    said = papers.ok("run", "papers:order", "-i", '{"paper": "@b.pdf", "copies": 2}', "--json").json["result"]
    assert said == ["b.pdf application/pdf 7"] * 2
    both = json.dumps({"papers": ["@a.txt", "@b.pdf"], "title": "@me: "})
    result = papers.ok("run", "papers:several", "-i", both, "--json").json["result"]
    assert result == "@me: a.txt text/plain 6; b.pdf application/pdf 7"


def test_what_a_run_made_is_got_by_its_key_and_goes_with_the_run(papers: Project) -> None:
    made = papers.ok("run", "papers:louder", "-i", '{"paper": "@a.txt"}', "--json").json["result"]
    assert (made["name"], made["size"]) == ("loud.txt", 6)
    assert papers.ok("artifacts", "get", made["key"], "-o", "-").out == "ALPHA\n"
    papers.ok("artifacts", "get", made["key"], "-o", "loud.txt")
    assert (papers.folder / "loud.txt").read_text() == "ALPHA\n"
    saved = papers.ok("artifacts", "save", "b.pdf").json
    assert papers.ok("run", "papers:measure", "-i", json.dumps({"paper": saved}), "--json").json["result"].endswith(" 7")
    assert len(_objects(papers)) == 3
    assert papers.ok("purge", "--all", "--json").json == {"purged": 2}
    assert _objects(papers) == []


def test_a_batch_over_files_is_resumed_without_saving_them_again(papers: Project) -> None:
    command = ("batch", "papers:measure", "a.txt", "b.pdf", "-o", "out.jsonl", "--json")
    assert papers.ok(*command).json["completed"] == 2
    lines = [json.loads(line) for line in (papers.folder / "out.jsonl").read_text().splitlines()]
    assert {line["source"]: line["result"] for line in lines} == {
        "a.txt": "a.txt text/plain 6",
        "b.pdf": "b.pdf application/pdf 7",
    }
    before = {path.name for path in _objects(papers)}
    (papers.folder / "out.jsonl").unlink()
    again = papers.ok(*command)
    assert again.json["completed"] == 2
    assert {path.name for path in _objects(papers)} == before
    assert {json.loads(line)["id"] for line in (papers.folder / "out.jsonl").read_text().splitlines()} == {
        line["id"] for line in lines
    }


def test_mistakes_with_files_are_said_in_one_sentence(papers: Project) -> None:
    for arguments, code, said in (
        (["run", "papers:measure", "-i", '{"paper": "@nope.txt"}'], 2, "nope.txt cannot be saved"),
        (["run", "papers:measure", "-i", '{"paper": "@."}'], 2, "cannot be saved as an artifact"),
        (["run", "papers:measure", "-i", '{"paper": "a.txt"}'], 2, "do not fit the workflow 'measure'"),
        (["run", "papers:measure", "-i", '{"paper": {"key": "x", "size": 1, "sha256": ""}}'], 2, "not an artifact"),
        (
            ["run", "papers:measure", "-i", json.dumps({"paper": {"key": "zga_" + "0" * 32, "size": 1, "sha256": ""}})],
            2,
            "was deleted, or saved to another store",
        ),
        (["artifacts", "get", "../../etc/passwd"], 2, "is not the key of an artifact"),
        (["artifacts", "get", "zga_" + "0" * 32], 1, "was deleted"),
        (["artifacts", "save", "nope.txt"], 2, "nope.txt cannot be saved"),
    ):
        finished = papers.run(*arguments)
        assert finished.code == code, (arguments, finished)
        assert said in finished.error


def test_keys_are_changed_and_missed_without_losing_a_run(papers: Project) -> None:
    old, new = (base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))
    settings = '[encryption]\nuse = "{}"\n[encryption.keys]\n'
    papers.write("ziggurat.toml", settings.format("old") + 'old = "env:OLD"\n')
    missing = papers.run("run", "papers:waits", "-i", '{"text": "secret"}')
    assert (missing.code, "variable OLD is not set" in missing.error) == (2, True)
    assert papers.run("list", OLD="short").code == 2
    papers.ok("start", "papers:waits", "-i", '{"text": "secret-"}', "--id", "w", OLD=old)
    stored = b"".join(path.read_bytes() for path in (papers.folder / ".ziggurat").rglob("*") if path.is_file())
    assert b"secret-" not in stored
    # The old key is taken away: the run is parked, says so, and is not lost.
    papers.write("ziggurat.toml", settings.format("new") + 'new = "env:NEW"\n')
    parked = papers.run("watch", "w", NEW=new)
    assert parked.code == 1
    assert "parked" in parked.error and "key 'old'" in parked.error
    assert papers.ok("show", "w", "--json", NEW=new).json["status"] == "parked"
    # Both keys, as while keys are changed.
    papers.write("ziggurat.toml", settings.format("new") + 'new = "env:NEW"\nold = "env:OLD"\n')
    papers.ok("resume", "w", NEW=new, OLD=old)
    papers.ok("signal", "w", "more", '"more"', NEW=new, OLD=old)
    assert papers.ok("watch", "w", "--json", NEW=new, OLD=old).json["result"] == "secret-more"
    for text in (missing.err, parked.err):
        assert old not in text and new not in text
