"""What the layers log, on stderr: warnings for commands that end, all of it with the time for processes that stay."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from ziggurat.telemetry.logs import JsonLines


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: the live view stands in for it while it draws."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def show_logs(*, staying: bool = False, verbose: bool = False, as_json: bool = False) -> None:
    """Show the logs of Ziggurat, from warnings on; with `staying` or `verbose` from information on; `as_json` for machines."""
    handler = _Stderr()
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(message)s" if staying else "%(name)s %(levelname)s: %(message)s")
        )
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())
    logger = logging.getLogger("ziggurat")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if staying or verbose else logging.WARNING)
    logger.propagate = False
