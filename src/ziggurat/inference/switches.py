"""Switches: aliases pointed elsewhere while everything runs, weighted, shadowed, and taken back.

A switch replaces the routes of one alias. Switches live in a book that all who make calls share, a file of one machine or a key in
Redis, and every process looks at it every LOOK seconds: programs, workers and gateways follow within that time, without a restart. The
book keeps the last KEPT switches of each alias, so that a rollback knows what was before, and who changed it when. Without a switch, or
after a rollback past the first one, an alias means what the settings say.

A book that cannot be read changes nothing: calls go on by what was read last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.errors import Conflict, InvalidData, LayerUnreachable, UnknownName, ZigguratError
from ziggurat.inference.interface import ModelConfig
from ziggurat.telemetry import events

#: Seconds between two looks at the book.
LOOK = 2.0
#: Switches of an alias that are remembered.
KEPT = 50
#: How often a change is tried again when another came between.
_TRIES = 20


class Switch(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where an alias is served from now on."""

    #: "endpoint:upstream model", best first; after the one that the weights choose, the others follow in this order.
    routes: list[str] = []
    #: The share of calls that begin with each route; empty for all with the first.
    weights: list[float] = []
    #: A route that gets a copy of each whole call, whose answer nobody waits for.
    shadow: str = ""
    #: Counts up over all aliases; recorded with each call.
    version: int = 0
    at: float = 0.0
    #: Who changed it.
    by: str = ""


class Book(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All switches: the newest of an alias is the last. An empty `routes` means what the settings say."""

    version: int = 0
    aliases: dict[str, list[Switch]] = {}

    def standing(self) -> dict[str, Switch]:
        """Return the switches that hold, by alias."""
        return {alias: past[-1] for alias, past in self.aliases.items() if past and past[-1].routes}

    def switched(self, alias: str, switch: Switch, *, at: float, by: str) -> Book:
        """Return the book after a switch."""
        version = self.version + 1
        past = [*self.aliases.get(alias, []), replace(switch, version=version, at=at, by=by)][-KEPT:]
        return Book(version=version, aliases={**self.aliases, alias: past})

    def rolled_back(self, alias: str, *, at: float, by: str) -> Book:
        """Return the book with an alias as it was before its last switch. Raises Conflict if there was none.

        What is taken back is forgotten, so that two rollbacks go back two switches.
        """
        past = self.aliases.get(alias, [])
        if not past:
            raise Conflict(f"The model {alias!r} was never switched; it is what the settings say.")
        before = replace(past[-2], version=self.version + 1, at=at, by=by) if len(past) > 1 else None
        rest = [*past[:-2], before] if before is not None else []
        return Book(version=self.version + 1, aliases={**self.aliases, alias: rest})


def parse_switch(text: str, shadow: str = "") -> Switch:
    """Return the switch that "ROUTE[,ROUTE…]" or "80%:ROUTE,20%:ROUTE" means. Raises InvalidData."""
    routes: list[str] = []
    weights: list[float] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)%:)?([^:\s]+:\S+)\s*", part)
        if match is None:
            raise InvalidData(
                f"The route {part.strip()!r} cannot be read; write endpoint:model, or 80%:endpoint:model,20%:endpoint:model."
            )
        if match.group(1) is not None:
            weights.append(float(match.group(1)) / 100)
        routes.append(match.group(2))
    return check_switch(Switch(routes=routes, weights=weights, shadow=shadow))


def check_switch(switch: Switch) -> Switch:
    """Return a switch whose shares make a whole. Raises InvalidData otherwise."""
    if not switch.routes:
        raise InvalidData("A switch needs a route, such as gmi:deepseek-ai/DeepSeek-V4-Pro.")
    if switch.weights and len(switch.weights) != len(switch.routes):
        raise InvalidData("Either every route has a share, or none has.")
    if switch.weights and abs(sum(switch.weights) - 1.0) > 0.005:
        raise InvalidData(f"The shares make {sum(switch.weights):.0%} together, and must make 100%.")
    return switch


def applied(models: Mapping[str, ModelConfig], book: Book) -> dict[str, ModelConfig]:
    """Return the aliases of the settings with the switches on top; an alias may exist by its switch alone."""
    found = dict(models)
    for alias, switch in book.standing().items():
        base = found.get(alias, ModelConfig(routes=[]))
        found[alias] = replace(base, routes=switch.routes, weights=switch.weights, shadow=switch.shadow, version=switch.version)
    return found


def check_routes(routes: list[str], endpoints: Mapping[str, object]) -> None:
    """Raise UnknownName if a route names an endpoint that does not exist."""
    for route in routes:
        endpoint = route.partition(":")[0]
        if endpoint not in endpoints:
            raise UnknownName(
                f"The route {route!r} names the endpoint {endpoint!r}, which is not defined; the endpoints are: {', '.join(endpoints)}."
            )


# -- where the book lies --------------------------------------------------------------------------------------------


class SwitchStore(ABC):
    """Keeps the book. All verbs may block, and raise LayerUnreachable."""

    @abstractmethod
    def read(self) -> Book:
        """Return the book; an empty one if there is none."""

    @abstractmethod
    def write(self, book: Book, over: int) -> bool:
        """Keep a book in the place of that of version `over`; False if another came between."""

    def change(self, change: Callable[[Book], Book]) -> Book:
        """Change the book and return it, whoever else changes it at the same time."""
        for _ in range(_TRIES):
            before = self.read()
            after = change(before)
            if self.write(after, before.version):
                return after
        raise LayerUnreachable("The book of model switches is being changed by others all the time; try again.")

    def close(self) -> None:
        """Let go."""
        return


class FileSwitches(SwitchStore):
    """The book in a JSON file. Writers take turns by a lock beside it; a reader sees the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._book = Book()

    def read(self) -> Book:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return Book()
        except OSError as error:
            raise LayerUnreachable(f"The model switches in {self._path} cannot be read: {error.strerror}.") from error
        mark = (found.st_mtime_ns, found.st_ino)
        if mark != self._seen:
            try:
                self._book = msgspec.json.decode(self._path.read_bytes(), type=Book)
            except (OSError, msgspec.MsgspecError) as error:
                raise LayerUnreachable(
                    f"The model switches in {self._path} cannot be read: {error}. Remove the file to go by the settings."
                ) from error
            self._seen = mark
        return self._book

    def write(self, book: Book, over: int) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (self._path.with_name(f"{self._path.name}.lock")).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # What is in the file counts, not what was read before: within a tick of the clock an inode may come again.
                self._seen = None
                if self.read().version != over:
                    return False
                fresh = self._path.with_name(f"{self._path.name}.new")
                with fresh.open("wb") as file:
                    file.write(msgspec.json.format(msgspec.json.encode(book), indent=2))
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self._path)
                return True
        except OSError as error:
            raise LayerUnreachable(f"The model switches in {self._path} cannot be written: {error.strerror}.") from error


# -- following it ---------------------------------------------------------------------------------------------------


class Follower:
    """Looks at the book from a thread of its own, and says what it came to.

    Args:
        store: where the book lies.
        changed: called with each new book, in that thread, the first one included. What it raises is logged.
        every: seconds between two looks.
    """

    def __init__(self, store: SwitchStore, changed: Callable[[Book], None], every: float = LOOK) -> None:
        self._store, self._changed, self._every = store, changed, every
        self._book = Book()
        self._ending = threading.Event()
        self._silent = False
        self._thread = threading.Thread(target=self._run, name="ziggurat-switches", daemon=True)

    def start(self) -> None:
        """Look once, now, and then from the thread."""
        self.look()
        self._thread.start()

    def look(self) -> None:
        """Look at the book now."""
        try:
            book = self._store.read()
            if book.version < self._book.version:
                # A Redis that was emptied: versions only go up, so whoever still knows the book puts it back.
                self._store.write(self._book, book.version)
                return
        except LayerUnreachable as error:
            if not self._silent:
                events.SWITCHES_NOT_READ(error=error)
            self._silent = True
            return
        self._silent = False
        if book.version != self._book.version:
            self._book = book
            try:
                self._changed(book)
            except ZigguratError as error:
                # A switch that names an endpoint which this process does not have; its calls go on as before.
                events.SWITCH_NOT_FOLLOWED(error=error)

    def close(self) -> None:
        """Look no more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        with contextlib.suppress(LayerUnreachable):
            self._store.close()

    def _run(self) -> None:
        while not self._ending.wait(self._every):
            self.look()
