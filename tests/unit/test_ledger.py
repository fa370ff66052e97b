"""The ledger: every call once, whatever is recorded again, killed or migrated, and costs told by any dimension."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

import ziggurat
from tests.unit.embedded_system import PATIENCE, system
from ziggurat import Client, llm, workflow
from ziggurat.errors import ConfigurationError, StateUnusable
from ziggurat.inference.ledger import Attribution, CostFilter, Ledger, attributing, costs, spent
from ziggurat.orchestrator.embedded import store
from ziggurat.program.llm import use_models
from ziggurat.records import CallRecord, Progress, Usage
from ziggurat.testing.models import scripted_models

DAY = 86_400.0


async def until(so: Callable[[], bool]) -> None:
    """Wait until another thread has done its part."""
    async with asyncio.timeout(PATIENCE):
        while not so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def call(
    id: str, cost: float = 0.01, *, at: float = 0.0, status: str = "ok", held: float = 0.0, model: str = "fast"
) -> CallRecord:
    usage = Usage(calls=1, input_tokens=10, output_tokens=5, cost_usd=cost) if status == "ok" else Usage()
    return CallRecord(id=id, model=model, endpoint="e", upstream="u", usage=usage, started_at=at, status=status, held_usd=held)


def test_a_call_recorded_again_is_billed_once_and_costs_are_told_by_any_dimension(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.db"
    ledger = Ledger(path)
    for _ in range(3):
        ledger.record(call("a", 0.02), Attribution(workflow="w", namespace="acme"))
    ledger.record(call("b", 0.03, at=DAY), Attribution(workflow="v", namespace="acme", key="k"))
    ledger.record(call("c", at=DAY, status="unanswered", held=0.5), Attribution(workflow="v"))
    ledger.flush()
    [total] = costs([path], ())
    assert (total.calls, total.unanswered, total.input_tokens) == (2, 1, 20)
    assert total.cost_usd == pytest.approx(0.05)
    assert total.held_usd == 0.5
    assert [(r.group, round(r.cost_usd, 4)) for r in costs([path], ("workflow",))] == [(("v",), 0.03), (("w",), 0.02)]
    assert [r.group for r in costs([path], ("day", "tenant"))] == [
        ("1970-01-01", "acme"), ("1970-01-02", "acme"), ("1970-01-02", "default"),
    ]  # fmt: skip
    assert [r.cost_usd for r in costs([path], (), CostFilter(since=DAY, namespace="acme"))] == [0.03]
    assert costs([path], (), CostFilter(until=0.0)) == []
    assert spent([path], CostFilter(workflow="v")) == pytest.approx(0.53)
    ledger.close()
    ledger.record(call("d"))
    ledger.close()
    assert costs([path], ())[0].calls == 3


def test_files_without_calls_are_passed_over_and_an_id_in_two_files_counts_once(tmp_path: Path) -> None:
    paths = [tmp_path / "a.db", tmp_path / "b.db", tmp_path / "none.db"]
    for path in paths[:2]:
        ledger = Ledger(path)
        ledger.record(call("same", 1.0))
        ledger.close()
    assert costs(paths, ())[0].cost_usd == 1.0
    assert costs([tmp_path / "none.db"], ()) == []
    with pytest.raises(ConfigurationError, match="they can by: workflow, model"):
        costs(paths, ("colour",))
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database at all, but a file that is long enough" * 100)
    with pytest.raises(StateUnusable, match=r"broken\.db cannot be read"):
        costs([broken], ())


def test_a_ledger_that_cannot_be_written_says_so_once_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "ledger.db")
    ledger.record(call("a"))
    with pytest.raises(StateUnusable, match="could not be written within"):
        ledger.flush(0.1)
    ledger.close()
    assert "1 calls were not written" in caplog.text


def test_what_flush_returned_for_survives_a_kill(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from tests.unit.test_ledger import call
        from ziggurat.inference.ledger import Ledger
        ledger = Ledger(Path(sys.argv[1]))
        for n in range(500):
            ledger.record(call(f"{sys.argv[2]}-{n}"))
        ledger.flush()
        print("flushed", flush=True)
        sys.stdin.read()
    """
    path = tmp_path / "ledger.db"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen([*command, name], **pipes) for name in ("x", "y")]  # type: ignore[call-overload]
    for writer in writers:
        assert writer.stdout.readline() == b"flushed\n"
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    assert costs([path], ())[0].calls == 1_000


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["ok", "unanswered"])), max_size=30))
def test_the_sum_is_that_of_the_first_record_of_each_id(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[int, str]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    ledger = Ledger(path)
    first: dict[int, str] = {}
    for number, status in records:
        first.setdefault(number, status)
        ledger.record(call(str(number), 1.0 + number, status=status, held=2.0 if status == "unanswered" else 0.0))
    ledger.close()
    totals = costs([path], ())
    bought = [n for n, status in first.items() if status == "ok"]
    assert sum(row.cost_usd for row in totals) == sum(1.0 + n for n in bought)
    assert sum(row.held_usd for row in totals) == 2.0 * (len(first) - len(bought))


@workflow
async def asks_twice() -> str:
    return await llm.text("one") + await llm.text("two")


async def test_the_calls_of_a_run_are_in_the_transaction_of_the_step_and_outlive_the_run(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    async with Client.local(state) as client:
        use_models(scripted_models())
        handle = await client.start(asks_twice)
        await handle.result(20)
        [row] = costs([state], ("workflow", "run", "tenant", "model"))
        assert (row.group, row.calls) == (("asks_twice", handle.id, "default", "default"), 2)
        assert await client.purge() == 1
        assert costs([state], ())[0].calls == 2


async def test_an_older_state_file_gets_its_calls_from_its_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, newer = tmp_path / "state.db", tmp_path / "newer.db"
    async with Client.local(newer) as client:
        use_models(scripted_models())
        await (await client.start(asks_twice)).result(20)
    before = costs([newer], ("workflow", "upstream", "status", "day"))
    with monkeypatch.context() as then:
        then.setattr(store, "SCHEMA_VERSION", 1)
        connection = store.connect(state, write=True)
    connection.execute("ATTACH ? AS newer", (str(newer),))
    for table in ("runs", "events"):
        columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
        connection.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM newer.{table}")
    connection.close()
    assert costs([state], ()) == []
    store.connect(state, write=True).close()
    assert costs([state], ("workflow", "upstream", "status", "day")) == before


@workflow
async def waits() -> int:
    await ziggurat.signal("go", int)
    return 1


async def test_calls_that_no_outcome_carries_are_recorded_once(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    told = [call("x", 0.5), call("y", 0.25)]
    async with system(state) as world:
        run = await world.start(waits)
        await world.rests(run)
        for calls in (told, told, told[:1]):
            await world.queue.publish([Progress(run=run, kind="calls", step=7, data=Raw(msgspec.json.encode(calls)))])
        await world.queue.publish([Progress(run=run, kind="calls", data=Raw(b"[3]"))])
        await until(lambda: bool(costs([state], ())))
        await world.signal(run, "go", 1)
        found = await world.engine.wait(run, PATIENCE)
        assert found.usage.cost_usd == 0.75
        # The run has ended: what is told of it now is a bill without a history.
        await world.queue.publish([Progress(run=run, kind="calls", data=Raw(msgspec.json.encode([*told, call("z", 1.0)])))])
        await until(lambda: costs([state], ("workflow",))[0].calls == 3)
    [row] = costs([state], ("workflow", "run"))
    assert (row.group, row.cost_usd) == (("waits", run), 1.75)


async def test_a_script_of_a_project_records_its_calls_and_one_without_a_project_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ziggurat.assembly import ledger_files, script_models
    from ziggurat.settings import load_settings

    monkeypatch.chdir(tmp_path)
    toml = '[inference.endpoints.s]\nkind = "scripted"\n[inference.models.default]\nroutes = ["s:m"]\n'
    (tmp_path / "ziggurat.toml").write_text(toml)
    use_models(script_models())
    with attributing(Attribution(key="team")):
        await llm.text("hello")
    files = ledger_files(load_settings())
    await until(lambda: bool(costs(files, ())))
    assert [(r.group, r.calls) for r in costs(files, ("key", "model"))] == [(("team", "default"), 1)]
    bare = tmp_path / "bare"
    bare.mkdir()
    monkeypatch.chdir(bare)
    script_models()
    assert list(bare.iterdir()) == []
    use_models(None)
