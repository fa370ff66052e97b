"""One life of an engine in a process of its own, to be killed: `python -m tests.chaos.victim FOLDER SEED [COMMIT before|after]`.

With a commit it kills itself there; without, somebody else does. Ends with 0 once every run has ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.chaos.world import World


async def live(folder: Path, seed: int, commit: int, when: str) -> bool:
    """Go on with the program until all is done or this process is not."""

    def strikes(n: int, at: str) -> bool:
        if (n, at) == (commit, when):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    world = World(folder, seed)
    return await world.live(fault=strikes)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "0", ""] if len(sys.argv) == 3 else sys.argv[1:]
    done = asyncio.run(live(Path(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]))
    raise SystemExit(0 if done else 1)
