"""What calls cost beyond plain tokens, what providers' headers say, and where processes meet, from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.assembly.endpoints import build_endpoint
from ziggurat.assembly.ledgers import baseline
from ziggurat.assembly.limiting import build_limit_store
from ziggurat.errors import SettingsError
from ziggurat.inference.backends.limits_redis import RedisStore
from ziggurat.inference.backends.limits_sqlite import SqliteStore
from ziggurat.inference.failures import reported
from ziggurat.inference.interface import EndpointConfig, Price, Reported
from ziggurat.inference.ledger import Attribution, Ledger
from ziggurat.inference.limits.process import ProcessStore
from ziggurat.inference.metering import Meter
from ziggurat.inference.prices import HOURLY, cost, tariff
from ziggurat.inference.tokens import TokenEstimator
from ziggurat.records import CallRecord, ChatMessage, Prompt, Usage
from ziggurat.settings import load_settings

USED = Usage(calls=1, input_tokens=1_000_000, cached_tokens=400_000, output_tokens=500_000, reasoning_tokens=300_000)


def test_cached_and_reasoning_tokens_and_batches_have_their_own_prices() -> None:
    price = Price(input=2.0, cached=0.5, output=10.0, reasoning=4.0, batch=0.5)
    assert cost(USED, price) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5 + 0.2 * 10.0 + 0.3 * 4.0)
    assert cost(USED, price, batch=True) == pytest.approx(cost(USED, price) / 2)
    assert cost(USED, Price(input=2.0, output=10.0)) == pytest.approx(2.0 + 5.0)
    # More cached than there are tokens is a mistake of the provider's, and no discount.
    assert cost(Usage(calls=1, input_tokens=10, cached_tokens=99), Price(input=1.0, cached=0.0)) == 0.0


def test_a_dedicated_endpoint_is_paid_by_the_hour_unless_its_tokens_are_priced() -> None:
    config = EndpointConfig(name="rack", base_url="http://10.0.0.1/v1", price_per_hour=2.0, replicas=3)
    assert tariff(config, "m").version == HOURLY
    assert tariff(config, "m").bill(USED, 0.0).cost_usd == 0.0
    assert tariff(config, "m", alias_price=Price(input=1.0)).bill(USED, 0.0).cost_usd == 1.0


@given(st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.1, 20.0)), min_size=1, max_size=30))
def test_the_parts_of_an_hour_add_up_to_the_time_in_which_calls_were_under_way(calls: list[tuple[float, float]]) -> None:
    meter = Meter(3600.0, lambda: 1)  # A dollar a second.
    moments = sorted([(at, 0, n) for n, (at, _) in enumerate(calls)] + [(at + long, 1, n) for n, (at, long) in enumerate(calls)])
    began: dict[int, float] = {}
    paid = busy = last = 0.0
    for at, ends, number in moments:
        busy += (at - last) if began else 0.0
        last = at
        if ends:
            paid += meter.end(began.pop(number), at)
        else:
            began[number] = meter.begin(at)
    assert paid == pytest.approx(busy)


def test_processes_that_share_a_rented_endpoint_share_its_price() -> None:
    shared, free = Meter(3600.0, lambda: 4), Meter(0.0, lambda: 1)
    assert shared.end(shared.begin(0.0), 8.0) == pytest.approx(2.0)
    assert (free.runs, free.end(free.begin(0.0), 8.0)) == (False, 0.0)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"x-ratelimit-limit-tokens": "nonsense"}, None),
        (
            {
                "x-ratelimit-limit-tokens": "150000",
                "x-ratelimit-remaining-tokens": "149900",
                "x-ratelimit-reset-tokens": "40ms",
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
            },
            Reported(tokens_per_minute=150_000, tokens_left=149_900.0, requests_per_minute=60, requests_left=59.0),
        ),
        # One of 10,000 is back in 8.64 s: that is a limit of a day.
        (
            {
                "x-ratelimit-limit-requests": "10000",
                "x-ratelimit-remaining-requests": "9999",
                "x-ratelimit-reset-requests": "8.64s",
            },
            None,
        ),
    ],
)
def test_what_headers_say_of_limits(headers: dict[str, str], expected: Reported | None) -> None:
    assert reported(headers) == expected


def read(folder: Path, toml: str) -> Any:
    (folder / "ziggurat.toml").write_text(toml)
    return load_settings(folder / "ziggurat.toml")


@pytest.mark.parametrize(
    ("toml", "kind"),
    [
        ("", ProcessStore),
        ('[queue]\nbackend = "sqlite"', SqliteStore),
        ('[queue]\nbackend = "redis"\nurl = "redis://127.0.0.1:1"', RedisStore),
        ('[queue]\nbackend = "redis"\nurl = "sentinel://127.0.0.1:1/mymaster"', RedisStore),
        ('[queue]\nbackend = "redis"\nurl = "redis+cluster://127.0.0.1:1"', RedisStore),
        ('[inference.limits]\nstore = "sqlite"', SqliteStore),
        ('[inference.limits]\nstore = "redis://127.0.0.1:1"', RedisStore),
        ('[inference.limits]\nstore = "env:LIMITS"', RedisStore),
        ('[queue]\nbackend = "sqlite"\n[inference.limits]\nstore = "process"', ProcessStore),
    ],
)
def test_processes_meet_where_the_queue_is_unless_the_settings_say_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, kind: type
) -> None:
    monkeypatch.setenv("LIMITS", "redis://127.0.0.1:1")
    assert type(build_limit_store(read(tmp_path, toml))) is kind


def test_settings_of_limits_that_cannot_work_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"store.* must be one of: process, sqlite, or a Redis URL"):
        read(tmp_path, '[inference.limits]\nstore = "postgres"')
    with pytest.raises(SettingsError, match="soft"):
        read(tmp_path, "[inference.budgets]\nsoft = 80")
    wrong = read(tmp_path, '[inference.endpoints.rack]\nbase_url = "http://10.0.0.1/v1"\ngpu = "H900"')
    with pytest.raises(SettingsError, match=r"gpu is 'H900', whose price is not known \(known are: H100, H200\)"):
        build_endpoint("rack", wrong.inference.endpoints["rack"])
    right = read(tmp_path, '[inference.endpoints.rack]\nbase_url = "http://10.0.0.1/v1"\ngpu = "H200"\nreplicas = 2')
    assert build_endpoint("rack", right.inference.endpoints["rack"]).config.price_per_hour == 2.60


def test_what_was_spent_of_a_day_is_known_from_the_files(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    ledger = Ledger(settings.ledger_path)
    for number, (at, namespace, workflow) in enumerate(
        [(1_767_225_600.0, "acme", "w"), (1_767_225_601.0, "other", "w"), (1_767_312_000.0, "acme", "w")]
    ):
        record = CallRecord(
            id=str(number), model="m", endpoint="e", upstream="u", usage=Usage(calls=1, cost_usd=1.0), started_at=at, held_usd=0.5
        )
        ledger.record(record, Attribution(namespace=namespace, workflow=workflow))
    ledger.close()
    known = baseline(settings)
    assert known("day", "", "2026-01-01") == 3.0
    assert known("tenant", "acme", "2026-01-01") == 1.5
    assert known("workflow", "w", "2026-01-02") == 1.5
    settings.ledger_path.write_bytes(b"damaged" * 1000)
    for companion in settings.ledger_path.parent.glob("ledger.db-*"):
        companion.unlink()
    assert known("day", "", "2026-01-01") == 0.0


def test_an_answer_is_estimated_by_what_is_usual_and_asked_for() -> None:
    def prompt(most: int | None) -> Prompt:
        return Prompt(messages=[ChatMessage(role="user", content="hi")], max_tokens=most)

    def answer(tokens: TokenEstimator, most: int | None) -> int:
        return tokens.likely(prompt(most), "m") - tokens.prompt(prompt(most), "m")

    tokens = TokenEstimator()
    assert (answer(tokens, None), answer(tokens, 40), answer(tokens, 5_000)) == (256, 40, 5_000)
    for _ in range(100):
        tokens.answered(prompt(4_000), "m", 200)
    # A large max_tokens is a bound and no wish: capacity is not held for what never comes.
    assert answer(tokens, None) == 200
    assert 190 <= answer(tokens, 4_000) <= 260
    cut = TokenEstimator()
    for most in [100, 300] * 50:
        cut.answered(prompt(most), "m", most)
    assert (answer(cut, 100), answer(cut, 300)) == (100, 300)
