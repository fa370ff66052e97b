"""DBOS: a library in this process over SQLite, or over a Postgres server when BENCH_DBOS is "postgres". With its defaults."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
import glob
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks.side import HOUR, STARTED, Side, free_port, main, step_started, until_listening


@DBOS.step()
async def step(number: int) -> int:
    return number


@DBOS.step()
async def slow_step(run: int, number: int, step_ms: int) -> int:
    step_started(run, number)
    await asyncio.sleep(step_ms / 1e3)
    return number


@DBOS.workflow()
async def sequential(steps: int) -> int:
    for number in range(steps):
        await step(number)
    return steps


@DBOS.workflow()
async def parallel(steps: int) -> int:
    return sum(await asyncio.gather(*[step(number) for number in range(steps)]))


@DBOS.workflow()
async def waiter(number: int) -> int:
    await DBOS.sleep_async(HOUR)
    return number


@DBOS.workflow()
async def slow(run: int, steps: int, step_ms: int) -> int:
    for number in range(steps):
        await slow_step(run, number, step_ms)
    return steps


def launch(url: str) -> None:
    config: DBOSConfig = {"name": "bench", "system_database_url": url, "log_level": "ERROR", "application_version": "1"}
    DBOS(config=config)
    DBOS.launch()


class Dbos(Side):
    _launched = False

    async def open(self) -> None:
        await self._open_database()
        launch(self._url)
        self._launched = True

    async def _open_database(self) -> None:
        self._url = f"sqlite:///{self.folder / 'dbos.sqlite'}"
        if os.environ.get("BENCH_DBOS") == "postgres":
            port = free_port()
            await until_listening(port, await asyncio.to_thread(self._start_postgres, port))
            await asyncio.sleep(0.5)
            self._url = f"postgresql://postgres@127.0.0.1:{port}/bench"

    def _start_postgres(self, port: int) -> subprocess.Popen[bytes]:
        tools, data = postgres_tools(), self.folder / "postgres"
        assert tools is not None
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # Postgres refuses to run as root.
            user = {"user": "postgres"}
            owner = pwd.getpwnam("postgres")
            self.folder.chmod(0o755)
            data.mkdir()
            os.chown(data, owner.pw_uid, owner.pw_gid)
        command = [str(tools / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **user)
        command = [str(tools / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
        return self.spawn("server", command, **user)

    async def close(self) -> None:
        if self._launched:
            DBOS.destroy(workflow_completion_timeout_sec=0)

    async def sequential(self, runs: int, steps: int) -> None:
        handles = await asyncio.gather(*[DBOS.start_workflow_async(sequential, steps) for _ in range(runs)])
        await asyncio.gather(*[handle.get_result() for handle in handles])

    async def parallel(self, steps: int) -> None:
        await (await DBOS.start_workflow_async(parallel, steps)).get_result()

    async def wait(self, runs: int) -> None:
        at_once = asyncio.Semaphore(200)

        async def start(number: int) -> None:
            async with at_once:
                await DBOS.start_workflow_async(waiter, number)

        await asyncio.gather(*[start(number) for number in range(runs)])

    async def begin_slow(self, runs: int, steps: int, step_ms: int) -> subprocess.Popen[bytes]:
        await self._open_database()
        self._sizes = f"{runs} {steps} {step_ms}"
        return self._host("begin")

    async def resume_slow(self) -> None:
        if await asyncio.to_thread(self._host("resume").wait):
            raise RuntimeError(f"The resumed host failed; see {self.folder}/host.log.")

    def _host(self, verb: str) -> subprocess.Popen[bytes]:
        return self.spawn("host", [sys.executable, "-m", "benchmarks.peers.dbos", verb, self._url, self._sizes, str(self.folder)])


def postgres_tools() -> Path | None:
    """Return the folder of a Postgres server's programs, or None if there is none on this machine."""
    found = shutil.which("postgres")
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin")) if found is None else [str(Path(found).parent)]
    return Path(folders[-1]) if folders else None


async def _begin(url: str, folder: Path, runs: int, steps: int, step_ms: int) -> None:
    launch(url)
    handles = []
    for run in range(runs):
        with SetWorkflowID(f"slow-{run}"):
            handles.append(await DBOS.start_workflow_async(slow, run, steps, step_ms))
    (folder / STARTED).touch()
    await asyncio.gather(*[handle.get_result() for handle in handles])


async def _resume(url: str, runs: int) -> None:
    launch(url)
    handles = [await DBOS.retrieve_workflow_async(f"slow-{run}") for run in range(runs)]
    await asyncio.gather(*[handle.get_result() for handle in handles])
    DBOS.destroy(workflow_completion_timeout_sec=0)


if __name__ == "__main__":
    if sys.argv[1] == "begin":
        asyncio.run(_begin(sys.argv[2], Path(sys.argv[4]), *map(int, sys.argv[3].split())))
    elif sys.argv[1] == "resume":
        asyncio.run(_resume(sys.argv[2], int(sys.argv[3].split()[0])))
    else:
        main(Dbos)
