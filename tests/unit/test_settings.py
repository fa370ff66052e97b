"""Settings: what is read from where, and every mistake as one sentence that names file, key, cause and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import SettingsError
from ziggurat.settings import Secret, load_settings, settings_reference


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ziggurat.toml"


def test_without_a_file_the_system_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ={})
    assert settings.orchestrator.backend == "embedded"
    assert settings.queue.backend == "memory"
    assert list(settings.workers) == ["default"]
    assert settings.workers["default"].queues == ["*"]
    assert set(settings.inference.endpoints) == {"local"}
    assert settings.inference.models["default"].routes == ["local:smollm2"]
    assert settings.inference.models["fast"].routes == ["local:smollm2"]
    assert settings.source is None
    assert settings.state_path == tmp_path / ".ziggurat" / "state.db"


def test_the_file_of_the_current_folder_is_found_and_paths_are_relative_to_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('[orchestrator]\npath = "runs/state.db"\n')
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).state_path == tmp_path / "runs" / "state.db"
    monkeypatch.chdir("/")
    assert load_settings(file, {}).state_path == tmp_path / "runs" / "state.db"
    assert load_settings(environ={"ZIGGURAT_CONFIG": str(file)}).source == file


def test_values_are_read_as_people_write_them(file: Path) -> None:
    file.write_text(
        """
        [orchestrator]
        retention = "30d"
        payload_limit = "2mib"
        [workers.big]
        queues = ["cpu", "gpu"]
        grace = "1m30s"
        memory_ceiling = "1gib"
        max = 8
        [inference.endpoints.house]
        base_url = "http://127.0.0.1:8000/v1/"
        api_key = "env:HOUSE_KEY"
        headers = { X-Team = "agents", Authorization = "env:HOUSE_AUTH" }
        limits = { tokens_per_minute = 1_000_000 }
        [inference.endpoints.house.prices."qwen3-32b"]
        input = "$0.10"
        output = 0.3
        [inference.models.smart]
        routes = ["house:qwen3-32b", "local:smollm2"]
        """
    )
    settings = load_settings(file, {})
    assert settings.orchestrator.retention == 30 * 86400
    assert settings.orchestrator.payload_limit == 2 * 2**20
    assert list(settings.workers) == ["big"]
    assert (settings.workers["big"].grace, settings.workers["big"].memory_ceiling) == (90.0, 2**30)
    house = settings.inference.endpoints["house"]
    assert house.base_url == "http://127.0.0.1:8000/v1"
    assert house.api_key == Secret("HOUSE_KEY")
    assert house.headers == {"X-Team": "agents", "Authorization": Secret("HOUSE_AUTH")}
    assert house.limits.tokens_per_minute == 1_000_000
    assert house.prices["qwen3-32b"].input == 0.1


def test_variables_win_over_the_file(file: Path) -> None:
    file.write_text('[queue]\nbackend = "memory"\n[workers.Fast-Pool]\nmax = 2\n')
    settings = load_settings(
        file,
        {
            "ZIGGURAT_QUEUE__BACKEND": "sqlite",
            "ZIGGURAT_QUEUE__LEASE": "10s",
            "ZIGGURAT_APP__MODULES": "one, two",
            "ZIGGURAT_WORKERS__FAST_POOL__MAX": "16",
            "ZIGGURAT_WORKERS__FAST_POOL__QUEUES": '["a", "b"]',
            "ZIGGURAT_ORCHESTRATOR__RETENTION": "",
        },
    )
    assert (settings.queue.backend, settings.queue.lease) == ("sqlite", 10.0)
    assert settings.app.modules == ["one", "two"]
    assert list(settings.workers) == ["Fast-Pool"]
    assert (settings.workers["Fast-Pool"].max, settings.workers["Fast-Pool"].queues) == (16, ["a", "b"])
    assert settings.orchestrator.retention is None


def test_built_in_endpoints_exist_where_their_keys_do(file: Path) -> None:
    file.write_text("")
    endpoints = load_settings(file, {"GMI_API_KEY": "k1", "OPENAI_API_KEY": "k2"}).inference.endpoints
    assert endpoints["gmi"].base_url == "https://api.gmi-serving.com/v1"
    assert endpoints["gmi"].api_key == Secret("GMI_API_KEY")
    assert endpoints["openai"].api_key == Secret("OPENAI_API_KEY")
    # A route may name one whose key comes later: the call says what is missing, the rest works.
    file.write_text('[inference.models.smart]\nroutes = ["gmi:deepseek-ai/DeepSeek-V4-Pro"]\n')
    assert "gmi" in load_settings(file, {}).inference.endpoints


def test_default_and_fast_mean_the_same_unless_both_are_named(file: Path) -> None:
    file.write_text('[inference.models.default]\nroutes = ["gmi:m"]\n')
    models = load_settings(file, {}).inference.models
    assert models["fast"].routes == ["gmi:m"]
    file.write_text('[inference.models.fast]\nroutes = ["gmi:m"]\n')
    assert load_settings(file, {}).inference.models["default"].routes == ["local:smollm2"]


# -- secrets --------------------------------------------------------------------------------------------------------


def test_a_secret_is_read_when_it_is_used_and_never_shown(file: Path) -> None:
    file.write_text('[inference.endpoints.x]\nbase_url = "http://x"\napi_key = "env:X_KEY"\n')
    environ = {"X_KEY": "sk-hidden"}
    settings = load_settings(file, environ)
    key = settings.inference.endpoints["x"].api_key
    assert key is not None
    assert key.resolve(environ) == "sk-hidden"
    assert "sk-hidden" not in repr(settings) + str(key)
    with pytest.raises(SettingsError, match="X_KEY is not set"):
        key.resolve({})


def test_a_secret_given_as_a_variable_stays_in_the_variable(file: Path) -> None:
    file.write_text('[inference.endpoints.x]\nbase_url = "http://x"\n')
    environ = {
        "ZIGGURAT_INFERENCE__ENDPOINTS__X__API_KEY": "sk-hidden",
        "ZIGGURAT_QUEUE__URL": "redis://:hidden@localhost",
        "ZIGGURAT_INFERENCE__ENDPOINTS__X__HEADERS__AUTHORIZATION": "Bearer hidden",
    }
    settings = load_settings(file, environ)
    assert "hidden" not in repr(settings)
    key, url = settings.inference.endpoints["x"].api_key, settings.queue.url
    assert key is not None
    assert key.resolve(environ) == "sk-hidden"
    assert isinstance(url, Secret)
    assert url.resolve(environ) == "redis://:hidden@localhost"


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "sk-hidden-0123"',
        'api_key = "env:not a name sk-hidden"',
        'headers = { Authorization = "Bearer hidden" }',
        'headers = { X-Api-Key = "hidden" }',
    ],
)
def test_a_secret_in_the_file_is_refused_without_being_repeated(file: Path, text: str) -> None:
    file.write_text(f'[inference.endpoints.x]\nbase_url = "http://x"\n{text}\n')
    with pytest.raises(SettingsError, match="environment variable") as caught:
        load_settings(file, {})
    assert "hidden" not in str(caught.value)
    assert "hidden" not in str(caught.value.__cause__)


def test_a_place_in_azure_may_be_written_as_azure_writes_it(file: Path) -> None:
    url = "abfss://container@account.dfs.core.windows.net/prefix"
    file.write_text(f'[artifacts]\nurl = "{url}"')
    assert load_settings(file, {}).artifacts.url == url


# -- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("[app\n", ["not valid TOML at line 1, column 5"]),
    ('[queue]\nbackend = "rediss"', ["queue.backend", "'rediss'", "memory, sqlite, redis", "Did you mean 'redis'?"]),
    ('[queue]\nbackend = "redis"', ["queue.url"]),
    ('[queu]\nbackend = "memory"', ["'queu'", "Did you mean 'queue'?"]),
    ('[queue]\nbackend_ = "memory"', ["'backend_' in [queue]", "Did you mean 'backend'?"]),
    ("[workers.default]\nmaximum = 3", ["'maximum' in [workers.default]", "Did you mean 'max'?"]),
    ("[workers.default]\nzzz = 3", ["'zzz' in [workers.default]", "It knows: queues"]),
    ('[workers.default]\nmax = "eight"', ["workers.default.max must be a whole number", "'eight'"]),
    ("[workers.default]\nmax = 0", ["workers.default.max must be more than 0"]),
    ("[workers.default]\nmin = 4", ["workers.default.min is 4", "max of 1"]),
    ('[workers.default]\nbudget_per_hour = "$2"', ["workers.default.budget_per_hour", "set price_per_hour too"]),
    ('[workers.default]\ntarget_wait = "0s"', ["workers.default.target_wait must be more than 0"]),
    ("[workers.default]\nqueues = []", ["workers.default.queues is empty"]),
    ("[workers]\nmax = 3", ["workers.max must be a table"]),
    ('[workers.a]\ngrace = "5 parsecs"', ["workers.a.grace", "'30s'"]),
    ('[orchestrator]\npayload_limit = "huge"', ["orchestrator.payload_limit", "20mb"]),
    ("[orchestrator]\nhistory_limit = 1.5", ["orchestrator.history_limit must be a whole number"]),
    ('[app]\nmodules = "a"', ["app.modules must be a list"]),
    ("[app]\nmodules = [1]", ["app.modules.0 must be text"]),
    ('[inference.endpoints.x]\nbase_url = "x"', ["inference.endpoints.x.base_url", "https://api.example.com/v1"]),
    ("[inference.endpoints.x]\n", ["inference.endpoints.x has no base_url"]),
    ('[inference.models.m]\nroutes = ["gmj:x"]', ["'gmj'", "[inference.endpoints.gmj]"]),
    ('[inference.models.m]\nroutes = ["gmi"]', ["'gmi' must name an endpoint and its model"]),
    ("[inference.models.m]\nroutes = []", ["inference.models.m.routes", "at least one"]),
    ("[inference.models.m]\n", ["inference.models.m.routes is missing"]),
    ('[artifacts]\nurl = "ftp://host/x"', ["artifacts.url", "s3://, gs:// or az://"]),
    ('[artifacts]\nurl = "s3://key:pw@bucket/x"', ["artifacts.url", "it holds credentials"]),
    ('[artifacts]\nurl = "abfss://x:pw@account.dfs.core.windows.net"', ["artifacts.url", "it holds credentials"]),
    ('[queue]\nurl = "redis://:pw@host"', ["queue.url", "password", "env:NAME"]),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_in_the_file_is_one_sentence(file: Path, text: str, said: list[str]) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    sentence = str(caught.value)
    assert "ziggurat.toml" in sentence
    assert "\n" not in sentence
    assert sentence[-1] in ".?)"
    for part in said:
        assert part in sentence


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ZIGGURAT_QUEUE_BACKEND", "sqlite", "ZIGGURAT_QUEUE__BACKEND"),
        ("ZIGGURAT_QUEUE__BACKND", "sqlite", "Did you mean 'ZIGGURAT_QUEUE__BACKEND'?"),
        ("ZIGGURAT_QEUE__BACKEND", "sqlite", "names no setting"),
        ("ZIGGURAT_WORKERS__DEFAULT__MAX", "many", "must be a whole number"),
        ("ZIGGURAT_APP__MODULES__FIRST", "x", "app.modules has no parts"),
        ("ZIGGURAT_QUEUE__LEASE", "soon", "'30s'"),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(file: Path, variable: str, value: str, said: str) -> None:
    file.write_text("")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {variable: value})
    assert variable in str(caught.value)
    assert said in str(caught.value)


def test_variables_of_others_are_left_alone(file: Path) -> None:
    # Kubernetes makes such variables for a service that is named ziggurat.
    file.write_text("")
    environ = {
        "ZIGGURAT_PORT": "tcp://10.0.0.1:80",
        "ZIGGURAT_QUEUE_SERVICE_HOST": "10.0.0.1",
        "ZIGGURAT_ALLOW_MODEL_REQUESTS": "1",
    }
    assert load_settings(file, environ).queue.backend == "memory"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no settings file .*nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml", {})
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'[app]\nnamespace = "caf\xe9"\n')
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(latin, {})


def refusal(file: Path, environ: dict[str, str]) -> str:
    """What is said against the settings, or nothing."""
    try:
        load_settings(file, environ)
    except SettingsError as error:
        return str(error)
    return ""


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_read_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "ziggurat.toml"
    file.write_bytes(content)
    assert "\n" not in refusal(file, {})


_KEYS = st.sampled_from(["app", "queue", "workers", "inference", "endpoints", "models", "default", "max", "backend", "url", "x"])


@given(st.lists(_KEYS, min_size=1, max_size=5), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_any_variable_is_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], value: str
) -> None:
    variable = "ZIGGURAT_" + "__".join(keys).upper()
    file = tmp_path_factory.mktemp("any") / "ziggurat.toml"
    file.touch()
    assert "\n" not in refusal(file, {variable: value})


# -- the reference --------------------------------------------------------------------------------------------------


def test_the_reference_names_every_setting_with_its_default() -> None:
    text = settings_reference()
    for section in ("app", "orchestrator", "queue", "workers.NAME", "inference.endpoints.NAME.limits", "inference.models.ALIAS"):
        assert f"## `[{section}]`" in text
    assert '| `grace` | duration | `"30s"` |' in text
    assert "| `routes` | list of strings | required |" in text
    # Every row has its meaning, and no cell breaks the table.
    for row in re.findall(r"^\| `.*$", text, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 4
        assert all(cells)
