"""The settings of a system: `load_settings` reads them, `settings_reference` documents them."""

from __future__ import annotations

from ziggurat.settings.inference import (
    CapabilitySettings,
    EndpointSettings,
    InferenceSettings,
    ModelSettings,
    PriceSettings,
    TimeoutSettings,
)
from ziggurat.settings.limits import LimitSettings
from ziggurat.settings.reading import load_settings, local_settings
from ziggurat.settings.reference import settings_reference
from ziggurat.settings.schedules import ScheduleSettings
from ziggurat.settings.server import ClientSettings, ServerSettings, WebhookSettings
from ziggurat.settings.table import FILE_NAME, Settings
from ziggurat.settings.telemetry import TelemetrySettings
from ziggurat.settings.types import Secret
from ziggurat.settings.workers import WorkerSettings

__all__ = [
    "FILE_NAME",
    "CapabilitySettings",
    "ClientSettings",
    "EndpointSettings",
    "InferenceSettings",
    "LimitSettings",
    "ModelSettings",
    "PriceSettings",
    "ScheduleSettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "TelemetrySettings",
    "TimeoutSettings",
    "WebhookSettings",
    "WorkerSettings",
    "load_settings",
    "local_settings",
    "settings_reference",
]
