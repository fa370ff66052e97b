"""Secrets of the settings, read where they are used."""

from __future__ import annotations

from ziggurat.settings import Secret


def plain(value: str | Secret | None) -> str:
    """Return a setting's value, read from its variable if that is where it is. Raises SettingsError."""
    return value.resolve() if isinstance(value, Secret) else value or ""
