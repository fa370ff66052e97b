"""From settings to the book of model switches, and routers that follow it."""

from __future__ import annotations

from typing import cast

from ziggurat.assembly.backends import load_backend
from ziggurat.assembly.secrets import plain
from ziggurat.inference.router import Router
from ziggurat.inference.switches import Book, FileSwitches, Follower, SwitchStore, applied
from ziggurat.settings import Settings

_STORES = {"redis": "ziggurat.inference.backends.switches_redis:RedisSwitches"}


def build_switches(settings: Settings) -> SwitchStore:
    """Return the book of model switches: it reaches as far as the queue does. Raises MissingExtra, SettingsError."""
    queue = settings.queue
    if queue.backend == "redis":
        return cast(SwitchStore, load_backend("model switches", "redis", _STORES)(plain(queue.url), "queue.url"))
    return FileSwitches(settings.resolve(settings.inference.switches))


def follow_switches(router: Router, settings: Settings) -> None:
    """Let a router follow the book from now on, until it is closed."""
    configured = {alias: config for alias in router.aliases() if (config := router.config(alias)) is not None}

    def changed(book: Book) -> None:
        router.set_models(applied(configured, book))

    router.follower = Follower(build_switches(settings), changed)
    router.follower.start()
