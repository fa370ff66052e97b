"""From a file and variables to settings, and every mistake in them as one sentence."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ValidationError

from ziggurat.errors import SettingsError
from ziggurat.settings.demands import unserved
from ziggurat.settings.inference import (
    BUILT_IN_ALIASES,
    BUILT_IN_ENDPOINTS,
    LOCAL_ROUTE,
    EndpointSettings,
    ModelSettings,
    local_endpoint,
)
from ziggurat.settings.table import FILE_NAME, FILE_VARIABLE, PREFIX, Settings, leaves, model_of, value_type
from ziggurat.settings.types import VARIABLE, Secret, Section, did_you_mean
from ziggurat.settings.workers import WorkerSettings

# -- reading --------------------------------------------------------------------------------------------------------


def load_settings(path: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of `path`, or of ./ziggurat.toml if there is one, with the ZIGGURAT_* variables on top.

    Raises SettingsError: one sentence with the file or variable, the key, the cause and the remedy.
    """
    environ = os.environ if environ is None else environ
    source = _find(path, environ)
    data = _parse(source) if source is not None else {}
    origins = _overlay(data, environ)
    name = source.name if source is not None else "the settings"
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(_misfit(error, data, name, origins)) from error
    settings = settings.model_copy(update=_built_in(settings, environ))
    settings._source = source.absolute() if source is not None else None
    _check_together(settings, name)
    return settings


def local_settings(state: Path | str, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the defaults with the state file `state`: no settings file and no ZIGGURAT_* variable counts."""
    path = Path(state).expanduser().absolute()
    settings = Settings.model_validate(
        {"orchestrator": {"path": str(path)}, "artifacts": {"url": str(path.with_name("artifacts"))}}
    )
    return settings.model_copy(update=_built_in(settings, os.environ if environ is None else environ))


def _find(path: Path | str | None, environ: Mapping[str, str]) -> Path | None:
    named = path or environ.get(FILE_VARIABLE) or None
    found = Path(named) if named else Path(FILE_NAME)
    if found.is_file():
        return found
    if named:
        raise SettingsError(f"There is no settings file {found}; make one with `ziggurat init`, or name another.")
    return None


def _parse(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        text = str(error)
        match = re.search(r"^(.*?)\s*\(at (line \d+, column \d+|end of document)\)", text)
        cause, place = (match.group(1), match.group(2)) if match else (text, "an unknown place")
        raise SettingsError(f"{source} is not valid TOML at {place}: {cause[:1].lower()}{cause[1:]}. Mend that line.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{source} is not UTF-8 text at byte {error.start}; save it as UTF-8.") from error
    except OSError as error:
        raise SettingsError(f"{source} cannot be read: {error.strerror}.") from error


def _overlay(data: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Put the variables' values into `data`; returns which key came from which variable."""
    origins: dict[tuple[str, ...], str] = {}
    for variable in sorted(environ):
        value = environ[variable]
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE or not value:
            continue
        words = variable[len(PREFIX) :].lower().split("__")
        if len(words) < 2:
            _refuse_near_miss(variable)
            continue
        keys, annotation, metadata = _walk(words, data, variable)
        table = data
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise SettingsError(f"{variable} sets a part of {key!r}, which is no table in {FILE_NAME}; mend one of the two.")
        table[keys[-1]] = _from_text(value, annotation, metadata, variable)
        origins[keys] = variable
    return origins


def _walk(words: list[str], data: dict[str, Any], variable: str) -> tuple[tuple[str, ...], Any, list[Any]]:
    """Return the key that a variable means, and the type that is due there. Names in the file win over the variable's capitals."""
    annotation: Any = Settings
    metadata: list[Any] = []
    keys: list[str] = []
    here: Any = data
    for word in words:
        model = model_of(annotation)
        if model is not None:
            field = model.model_fields.get(word)
            if field is None:
                known = [PREFIX + "__".join([*words[: len(keys)], name]).upper() for name in model.model_fields]
                hint = did_you_mean(variable, known) or f" It could be: {', '.join(known[:12])}."
                raise SettingsError(f"The variable {variable} names no setting.{hint}")
            annotation, metadata, key = field.annotation, list(field.metadata), word
        elif (inner := value_type(annotation)) is not None:
            present = here if isinstance(here, dict) else {}
            key = next((name for name in present if name.lower().replace("-", "_") == word), word)
            annotation, metadata = inner, []
        else:
            raise SettingsError(f"The variable {variable} names no setting: {'.'.join(keys)} has no parts.")
        keys.append(key)
        here = here.get(key) if isinstance(here, dict) else None
    return tuple(keys), annotation, metadata


def _from_text(text: str, annotation: Any, metadata: list[Any], variable: str) -> Any:
    """Return a variable's text as the value that TOML would have held. A secret's value stays where it is: in the variable."""
    allowed = list(leaves(annotation, metadata))
    if any(leaf is Secret for leaf, _ in allowed) and not VARIABLE.fullmatch(text):
        plain = any(leaf is str for leaf, _ in allowed) and not urlsplit(text).password and "__HEADERS__" not in variable
        return text if plain else f"env:{variable}"
    if any(leaf is str or any(isinstance(m, BeforeValidator) for m in extra) for leaf, extra in allowed):
        return text
    kinds = {get_origin(leaf) or leaf for leaf, _ in allowed}
    if list in kinds and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if bool in kinds:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_near_miss(variable: str) -> None:
    """Refuse ZIGGURAT_QUEUE_BACKEND, which someone surely meant; other names may belong to others."""
    flat = {f"{section}_{key}": f"{section}__{key}" for section, _, key in _scalar_keys()}
    meant = flat.get(variable[len(PREFIX) :].lower())
    if meant:
        raise SettingsError(
            f"The variable {variable} sets nothing; write it with two underscores after the section: {PREFIX}{meant.upper()}."
        )


def _scalar_keys() -> Iterator[tuple[str, type[Section], str]]:
    for section, field in Settings.model_fields.items():
        model = model_of(field.annotation)
        if model is not None:
            for key in model.model_fields:
                yield section, model, key


# -- what is there without being written -----------------------------------------------------------------------------


def _built_in(settings: Settings, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the sections with the default queue, pool, endpoints and aliases filled in."""
    inference = settings.inference
    endpoints = {**local_endpoint(), **inference.endpoints}
    routed = {route.partition(":")[0] for model in inference.models.values() for route in model.routes}
    for name, (variable, base_url) in BUILT_IN_ENDPOINTS.items():
        if name not in endpoints and (environ.get(variable) or name in routed):
            endpoints[name] = EndpointSettings(base_url=base_url, api_key=Secret(variable))
    default = inference.models.get("default") or ModelSettings(routes=[LOCAL_ROUTE])
    aliases = {**dict.fromkeys(BUILT_IN_ALIASES, default), **inference.models}
    queue = settings.queue
    if settings.orchestrator.backend == "temporal" and "backend" not in queue.model_fields_set:
        # Temporal's own task queues are its layer 2, unless another is named.
        queue = queue.model_copy(update={"backend": "temporal"})
    return {
        "queue": queue,
        "workers": settings.workers or {"default": WorkerSettings()},
        "inference": inference.model_copy(update={"endpoints": endpoints, "models": aliases}),
    }


def _check_together(settings: Settings, name: str) -> None:
    """Check what one key says of another. Raises SettingsError."""
    if settings.queue.backend == "temporal" and settings.orchestrator.backend != "temporal":
        raise SettingsError(
            f'{name}: queue.backend is "temporal", which only runs on Temporal can fill; set orchestrator.backend to "temporal" too.'
        )
    for pool, worker in settings.workers.items():
        if worker.min > worker.max:
            raise SettingsError(
                f"{name}: workers.{pool}.min is {worker.min}, more than its max of {worker.max}; swap or raise one."
            )
        if worker.budget_per_hour is not None and not worker.price_per_hour:
            raise SettingsError(
                f"{name}: workers.{pool}.budget_per_hour says what workers may cost, and not what one costs; set price_per_hour too."
            )
        if not worker.queues:
            raise SettingsError(f'{name}: workers.{pool}.queues is empty; name queues, or write ["*"] for all.')
    endpoints = settings.inference.endpoints
    for alias, model in settings.inference.models.items():
        for route in model.routes:
            endpoint = route.partition(":")[0]
            if endpoint not in endpoints:
                hint = did_you_mean(endpoint, endpoints)
                raise SettingsError(
                    f"{name}: inference.models.{alias}.routes names the endpoint {endpoint!r}, which is not defined; "
                    f"add [inference.endpoints.{endpoint}] with its base_url.{hint}"
                )
        if said := unserved(alias, model, model.routes, endpoints):
            raise SettingsError(f"{name}: {said}")
    for endpoint, where in endpoints.items():
        _check_place(f"{name}: inference.endpoints.{endpoint}", where)
    queue = settings.queue
    if queue.backend in ("redis", "rabbitmq", "sqs", "cloud-tasks") and queue.url is None:
        raise SettingsError(f'{name}: queue.backend is "{queue.backend}", which needs queue.url; write the server\'s address.')


def _check_place(key: str, where: EndpointSettings) -> None:
    if where.kind == "openai" and not (where.base_url or where.urls):
        raise SettingsError(f"{key} has no base_url; write the URL before /chat/completions.")
    if not where.urls:
        return
    if where.base_url:
        raise SettingsError(f"{key} has a base_url and urls; write the one URL into base_url, or all of them into urls.")
    if where.kind != "openai":
        raise SettingsError(f'{key} has urls, and its kind is {where.kind!r}; only the kind "openai" has replicas.')
    if len(set(where.urls)) < len(where.urls):
        raise SettingsError(f"{key}.urls names a URL twice; name each replica once.")
    if where.replicas is not None and where.replicas != len(where.urls):
        raise SettingsError(f"{key}.replicas is {where.replicas}, and urls names {len(where.urls)}; leave replicas out.")


# -- errors in one sentence -----------------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": 'text in quotes, such as "name"',
    "list_type": 'a list, such as ["one", "two"]',
    "dict_type": "a table",
    "model_type": "a table of its own",
    "is_instance_of": "text",
    "greater_than": "more than 0",
    "greater_than_equal": "0 or more",
    "too_short": "a list with at least one item",
}


def _misfit(error: ValidationError, data: dict[str, Any], name: str, origins: Mapping[tuple[str, ...], str]) -> str:
    """Return the first misfit as one sentence, and how many more there are."""
    misfits = error.errors(include_url=False)
    first = misfits[0]
    keys = _written_part(first["loc"], data, missing=first["type"] == "missing")
    where = next((variable for known, variable in origins.items() if keys[: len(known)] == known), name)
    dotted = ".".join(keys)
    more = f" ({len(misfits) - 1} more after it.)" if len(misfits) > 1 else ""
    if first["type"] == "extra_forbidden":
        siblings = list(_fields_at(keys[:-1]))
        table = ".".join(keys[:-1])
        hint = did_you_mean(keys[-1], siblings) or f" It knows: {', '.join(siblings)}."
        return f"{where}: there is no setting {keys[-1]!r} in {f'[{table}]' if table else 'the file'}.{hint}{more}"
    if first["type"] == "value_error":
        cause = str(first["ctx"]["error"])
        return f"{where}: {dotted} cannot be used: {cause}{'' if cause[-1] in '.?' else '.'}{more}"
    if first["type"] == "missing":
        return f"{where}: {dotted} is missing; write it.{more}"
    expected = _EXPECTED.get(first["type"])
    if expected is None:
        return f"{where}: {dotted} cannot be used: {first['msg'][:1].lower()}{first['msg'][1:]}.{more}"
    return f"{where}: {dotted} must be {expected}; it is {first['input']!r}.{more}"


def _written_part(loc: tuple[int | str, ...], data: Any, *, missing: bool) -> tuple[str, ...]:
    """Return the part of an error's place that a person wrote; pydantic appends the branches of unions that it tried."""
    keys: list[str] = []
    for part in loc:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]  # type: ignore[index]
        elif not missing:
            break
        keys.append(str(part))
    return tuple(keys)


def _fields_at(keys: tuple[str, ...]) -> Iterator[str]:
    annotation: Any = Settings
    for key in keys:
        model = model_of(annotation)
        annotation = model.model_fields[key].annotation if model is not None else value_type(annotation)
    model = model_of(annotation)
    return iter(model.model_fields if model is not None else ())
