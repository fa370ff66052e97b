"""The inference layer where no system runs: in plain scripts, and in the children that run process=True tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ziggurat import codec
from ziggurat.artifacts import use_library
from ziggurat.assembly.answering import build_answers
from ziggurat.assembly.artifacts import build_payloads, child_settings
from ziggurat.assembly.batching import open_lanes
from ziggurat.assembly.endpoints import build_models
from ziggurat.assembly.ledgers import baseline, recorder
from ziggurat.assembly.switching import follow_switches
from ziggurat.inference.ledger import Ledger
from ziggurat.program.llm import ModelCaller, use_models
from ziggurat.settings import InferenceSettings, Secret, Settings, TelemetrySettings, load_settings
from ziggurat.telemetry.export import set_up


def script_models() -> ModelCaller:
    """Return the inference layer for a plain script: that of ./ziggurat.toml, or of the defaults. Raises SettingsError."""
    settings = load_settings()
    # Without a settings file there is no project, and a script leaves nothing behind.
    ledger = recorder(settings, Ledger(settings.ledger_path)) if settings.source is not None else None
    models = build_models(settings, ledger=ledger, baseline=baseline(settings))
    if settings.source is not None:
        payloads = build_payloads(settings)
        models.answers = build_answers(settings, payloads)
        open_lanes(models, settings, payloads)
        follow_switches(models, settings)
    return cast(ModelCaller, models)


def child_bootstrap(settings: Settings) -> Any:
    """Return how a child process of a process=True task makes itself ready. It holds names of variables, never secrets."""
    from ziggurat.workers.children import Bootstrap

    config = {
        "inference": {
            **_without_secrets(settings.inference.model_dump()),
            # A child knows no folder of the project.
            "switches": str(settings.resolve(settings.inference.switches)),
            "answers": {
                **settings.inference.answers.model_dump(),
                "path": str(settings.resolve(settings.inference.answers.path)),
            },
            "batches": {
                **settings.inference.batches.model_dump(),
                "path": str(settings.resolve(settings.inference.batches.path)),
            },
        },
        "queue": _without_secrets(settings.queue.model_dump()),
        "payload_limit": settings.orchestrator.payload_limit,
        "telemetry": _without_secrets(settings.telemetry.model_dump()),
        **child_settings(settings),
    }
    return Bootstrap(modules=tuple(settings.app.modules), call="ziggurat.assembly:use_models_in_child", config=config)


def use_models_in_child(config: Mapping[str, Any]) -> None:
    """Make models usable in a child process. Called there, by name, with the config of `child_bootstrap`."""
    codec.PAYLOAD_LIMIT = config["payload_limit"]
    set_up(TelemetrySettings.model_validate(config["telemetry"]))
    inference = InferenceSettings.model_validate(config["inference"])
    settings = Settings.model_validate({name: config[name] for name in ("artifacts", "encryption", "queue")})
    settings = settings.model_copy(update={"inference": inference})
    models, payloads = build_models(settings), build_payloads(settings)
    models.answers = build_answers(settings, payloads)
    open_lanes(models, settings, payloads)
    follow_switches(models, settings)
    use_models(cast(ModelCaller, models))
    use_library(payloads.library)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Secret):
        return f"env:{value.variable}"
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    return value
