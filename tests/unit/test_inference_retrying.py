"""The rules of retrying and limiting, with the time passed in: back-off, budget, breaker, cool-down, buckets, the gate, prices."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.inference import prices
from ziggurat.inference.interface import EndpointConfig, Price
from ziggurat.inference.prices import cost, tariff
from ziggurat.inference.retrying import Breaker, CoolDown, RetryBudget, RetryOptions, backoff
from ziggurat.records import Usage

OPTIONS = RetryOptions()


@given(st.integers(1, 10_000), st.integers(0, 2**32))
def test_a_backoff_is_jittered_under_a_bound_that_doubles_and_ends(failures: int, seed: int) -> None:
    bound = min(OPTIONS.maximum, OPTIONS.initial * 2 ** min(failures - 1, 30))
    assert 0 <= backoff(failures, OPTIONS, random.Random(seed)) <= bound


def test_backoffs_are_spread_over_the_whole_range() -> None:
    rng = random.Random(1)
    drawn = [backoff(3, OPTIONS, rng) for _ in range(1000)]
    assert min(drawn) < 0.1 and max(drawn) > 1.9


@given(
    st.lists(st.tuples(st.sampled_from(["call", "retry"]), st.integers(0, 20)), max_size=120),
    st.floats(0, 0.5),
    st.integers(0, 5),
)
def test_the_budget_allows_a_retry_exactly_when_the_window_has_room(
    events: list[tuple[str, int]], ratio: float, floor: int
) -> None:
    window, now = 60.0, 1000.0
    budget = RetryBudget(ratio, floor, window)
    calls: list[float] = []
    retries: list[float] = []
    for kind, passed in events:
        now += passed
        if kind == "call":
            budget.call(now)
            calls.append(now)
            continue
        recent = sum(c > now - window for c in calls)
        spent = sum(r > now - window for r in retries)
        allowed = budget.retry(now)
        assert allowed == (spent + 1 <= max(floor, ratio * recent))
        if allowed:
            retries.append(now)


def test_the_budget_is_a_tenth_of_many_calls_and_its_memory_is_bounded() -> None:
    budget = RetryBudget(0.1, 3, 60.0)
    now = 0.0
    allowed = 0
    for _ in range(100_000):
        now += 0.01
        budget.call(now)
        allowed += budget.retry(now)  # Everything fails, and everybody would like to try again.
    assert allowed <= 0.1 * 100_000 + 3
    assert len(budget._calls) <= 62 and len(budget._retries) <= 62


@given(st.lists(st.tuples(st.sampled_from(["success", "failure", "begin", "abandon"]), st.floats(0, 30)), max_size=80))
def test_a_breaker_opens_only_after_failures_in_a_row_and_never_for_longer_than_its_longest_pause(
    events: list[tuple[str, float]],
) -> None:
    breaker = Breaker(threshold=3, pause=2.0, pause_max=10.0)
    now, in_a_row = 100.0, 0
    for kind, passed in events:
        now += passed
        if kind == "success":
            breaker.success()
            in_a_row = 0
            assert breaker.state(now) == "closed" and breaker.wait(now) == 0
        elif kind == "failure":
            breaker.failure(now)
            in_a_row += 1
        elif kind == "begin":
            breaker.begin(now)
        else:
            breaker.abandon()
        if in_a_row < 3:
            assert breaker.state(now) == "closed" and breaker.wait(now) == 0
        assert breaker.wait(now) <= 10.0 + 1e-9


def test_a_breaker_lets_one_probe_through_and_doubles_its_pause() -> None:
    breaker = Breaker(threshold=2, pause=2.0, pause_max=5.0)
    breaker.failure(0.0)
    breaker.failure(0.0)
    assert (breaker.state(0.0), breaker.wait(0.0)) == ("open", 2.0)
    breaker.failure(1.0)  # A call that began before.
    assert breaker.wait(1.0) == 1.0
    assert (breaker.state(2.0), breaker.wait(2.0)) == ("half-open", 0.0)
    breaker.begin(2.0)
    assert breaker.wait(2.5) > 0  # Others wait for the probe.
    breaker.failure(3.0)
    assert breaker.wait(3.0) == 4.0
    breaker.begin(7.0)
    breaker.abandon()
    assert breaker.wait(7.0) == 0.0
    breaker.failure(7.0)
    assert breaker.wait(7.0) == 5.0
    breaker.success()
    assert breaker.wait(7.0) == 0.0


@given(st.floats(0, 1000), st.integers(0, 2**32))
def test_a_cool_down_is_never_shorter_than_what_was_asked(asked: float, seed: int) -> None:
    cool_down = CoolDown()
    wait = cool_down.limited(50.0, asked, random.Random(seed))
    assert asked <= wait <= asked + 1.05
    assert cool_down.wait(50.0 + asked / 2) > 0 or asked == 0
    assert cool_down.wait(50.0 + wait) == 0


def test_a_cool_down_that_nobody_asked_for_doubles_and_counts_a_burst_once() -> None:
    cool_down, rng = CoolDown(), random.Random(1)
    now, bounds = 10.0, []
    for _ in range(8):
        wait = cool_down.limited(now, None, rng)
        for _ in range(20):
            cool_down.limited(now, None, rng)  # The same burst.
        bounds.append(wait)
        now += cool_down.wait(now)
    for wait, bound in zip(bounds, [0.5, 1, 2, 4, 8, 16, 30, 30], strict=True):
        assert bound / 2 <= wait <= bound
    cool_down.success()
    assert cool_down.limited(now, None, rng) <= 0.5


# -- prices ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100)
)
def test_cached_tokens_are_billed_once_at_their_own_price(
    inputs: int, cached: int, outputs: int, price_in: float, price_out: float, price_cached: float
) -> None:
    usage = Usage(calls=1, input_tokens=inputs, output_tokens=outputs, cached_tokens=min(cached, inputs))
    price = Price(input=price_in, output=price_out, cached=price_cached)
    expected = (inputs - usage.cached_tokens) * price_in + usage.cached_tokens * price_cached + outputs * price_out
    assert cost(usage, price) == pytest.approx(expected / 1e6)
    assert cost(usage, Price(input=price_in, output=price_out)) == pytest.approx((inputs * price_in + outputs * price_out) / 1e6)


USED = Usage(calls=1, input_tokens=1_000_000, output_tokens=1_000_000)


@pytest.mark.parametrize(
    ("config", "upstream", "dollars", "version"),
    [
        (EndpointConfig(name="gmi", base_url="https://api.gmi-serving.com/v1"), "deepseek-ai/DeepSeek-V4-Pro", 2.78, "overlay-"),
        (EndpointConfig(name="gmi", base_url="https://api.gmi-serving.com/v1"), "openai/gpt-5.4-mini", 2.90, "overlay-"),
        (EndpointConfig(name="gmi", base_url="https://api.gmi-serving.com/v1"), "some/unknown-model", 0.0, "unpriced"),
        (EndpointConfig(name="rack", base_url="http://127.0.0.1:8000/v1"), "gpt-5-mini", 0.0, "unpriced"),
        (
            EndpointConfig(name="rack", base_url="http://10.1.2.3:8000/v1", prices={"m": Price(input=1, output=2)}),
            "m",
            3.0,
            "settings",
        ),
        (EndpointConfig(name="rack", base_url="http://10.1.2.3:8000/v1", prices={"*": Price(input=1)}), "other", 1.0, "settings"),
    ],
)
def test_a_route_is_billed_by_the_first_table_that_knows_it(
    config: EndpointConfig, upstream: str, dollars: float, version: str
) -> None:
    found = tariff(config, upstream)
    assert found.bill(USED, 1_700_000_000.0).cost_usd == pytest.approx(dollars)
    assert found.version.startswith(version)


def test_what_is_free_is_free_unless_it_is_priced() -> None:
    local = EndpointConfig(name="local", kind="local")
    assert tariff(local, "smollm2", free=True).bill(USED, 0.0).cost_usd == 0
    assert tariff(local, "smollm2", free=True).version == "free"
    priced = tariff(local, "smollm2", alias_price=Price(input=5), free=True)
    assert (priced.bill(USED, 0.0).cost_usd, priced.version) == (5.0, "settings")


def test_a_price_library_prices_what_it_knows() -> None:
    openai = EndpointConfig(name="openai", base_url="https://api.openai.com/v1")
    found = tariff(openai, "gpt-4o-mini")
    assert found.version.startswith("genai-prices-")
    half_cached = Usage(calls=1, input_tokens=1_000_000, cached_tokens=500_000)
    full = found.bill(Usage(calls=1, input_tokens=1_000_000), 1_780_000_000.0).cost_usd
    assert 0 < found.bill(half_cached, 1_780_000_000.0).cost_usd < full


def test_gpu_hours_have_the_articles_prices() -> None:
    assert prices.GPU_HOUR == {"H100": 2.00, "H200": 2.60}
