"""The registry of metrics: what it counts, and that its page is what Prometheus reads."""

from __future__ import annotations

import math
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ziggurat.telemetry import METRICS, metrics_text
from ziggurat.telemetry.metrics import OTHER, Counter, Gauge, Histogram, Registry, number


def samples(registry: Registry) -> dict[str, float]:
    """What Prometheus's own parser reads from the page, by name and labels."""
    found = {}
    for family in text_string_to_metric_families(registry.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_counters_gauges_and_histograms_are_read_back() -> None:
    registry = Registry()
    counter = registry.add(Counter("things_total", "Things."))
    gauge = registry.add(Gauge("level", "A level.", ("tank",)))
    histogram = registry.add(Histogram("wait_seconds", "Waits.", ("queue",), buckets=(0.1, 1.0)))
    counter.inc()
    counter.inc(2.5)
    gauge.labels("a").set(7)
    gauge.labels("a").inc(-3)
    for value in (0.05, 0.1, 0.5, 3.0):
        histogram.labels("q").observe(value)
    assert samples(registry) == {
        "things_total": 3.5,
        "level{tank=a}": 4.0,
        "wait_seconds_bucket{le=0.1,queue=q}": 2.0,
        "wait_seconds_bucket{le=1,queue=q}": 3.0,
        "wait_seconds_bucket{le=+Inf,queue=q}": 4.0,
        "wait_seconds_sum{queue=q}": 3.65,
        "wait_seconds_count{queue=q}": 4.0,
    }


def test_names_that_hold_anything_are_read_back() -> None:
    registry = Registry()
    counter = registry.add(Counter("odd_total", 'Help with \\ and "quotes"\nand lines.', ("name",)))
    for name in ('a"b', "a\\b", "a\nb", "\\n", "", "ü€", "a,b}=c"):
        counter.labels(name).inc()
    (family,) = text_string_to_metric_families(registry.text().decode())
    assert {sample.labels["name"] for sample in family.samples} == {'a"b', "a\\b", "a\nb", "\\n", "", "ü€", "a,b}=c"}
    assert family.documentation == 'Help with \\ and "quotes"\nand lines.'
    counter.labels("\udcff").inc()
    assert '{name="\\\\udcff"}' in registry.text().decode()


def test_a_counter_shows_zero_before_anything_was_counted_and_a_gauge_shows_nothing() -> None:
    registry = Registry()
    registry.add(Counter("things_total", "Things."))
    registry.add(Counter("labelled_total", "Things.", ("kind",)))
    registry.add(Gauge("level", "A level."))
    assert samples(registry) == {"things_total": 0.0}


def test_invented_names_cannot_fill_the_memory() -> None:
    registry = Registry()
    counter = registry.add(Counter("things_total", "Things.", ("a", "b"), limit=3))
    for at in range(10):
        counter.labels(str(at), "x" * 1000).inc()
    found = {
        sample.labels["a"]: sample.value for f in text_string_to_metric_families(registry.text().decode()) for sample in f.samples
    }
    assert found == {"0": 1, "1": 1, "2": 1, OTHER: 7}
    assert all(len(values[1]) <= 120 for values in counter.children())


def test_a_label_too_many_or_too_few_is_a_mistake() -> None:
    counter = Counter("things_total", "Things.", ("a",))
    with pytest.raises(TypeError, match="things_total takes the labels"):
        counter.labels("x", "y")


def test_readers_are_asked_when_the_page_is_made_and_merged() -> None:
    registry = Registry()
    busy = registry.add(Gauge("busy", "Busy.", ("pool",)))
    age = registry.add(Gauge("age", "Age.", ("pool",), merge=max))
    stops = [busy.watch(lambda: {("a",): 2.0}), busy.watch(lambda: {("a",): 3.0, ("b",): 1.0})]
    age.watch(lambda: {("a",): 2.0})
    age.watch(lambda: {("a",): 5.0})
    assert samples(registry) == {"busy{pool=a}": 5.0, "busy{pool=b}": 1.0, "age{pool=a}": 5.0}
    stops[1]()
    assert samples(registry) == {"busy{pool=a}": 2.0, "age{pool=a}": 5.0}


def test_a_reader_that_fails_spoils_nothing_else() -> None:
    registry = Registry()
    failed: list[str] = []
    registry.failed = lambda name, error: failed.append(f"{name}: {error}")
    gauge = registry.add(Gauge("level", "A level.", ("tank",)))
    registry.add(Counter("things_total", "Things.")).inc()

    def broken() -> dict[tuple[str, ...], float]:
        raise OSError("the file is gone")

    gauge.watch(broken)
    gauge.watch(lambda: {("a",): 1.0})
    assert samples(registry) == {"level{tank=a}": 1.0, "things_total": 1.0}
    assert failed == ["level: the file is gone"]


def test_a_metric_is_defined_once() -> None:
    registry = Registry()
    registry.add(Counter("things_total", "Things."))
    with pytest.raises(ValueError, match="twice"):
        registry.add(Counter("things_total", "Things."))


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.1, "0.1"), (1e300, "1e+300"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")]
)
def test_numbers_read_back_as_the_same_number(value: float, text: str) -> None:
    assert number(value) == text


def test_counts_from_many_threads_are_all_there() -> None:
    counter, histogram = Counter("things_total", "Things."), Histogram("seconds", "Seconds.")

    def count() -> None:
        for _ in range(5_000):
            counter.inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value() == 20_000
    assert histogram.labels().count == 20_000


def test_the_catalogue_is_named_as_prometheus_names_metrics() -> None:
    for name, metric in METRICS.metrics.items():
        assert name.startswith(("ziggurat_", "process_")), name
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.help.endswith("."), name
        assert metric.layer, name
        assert not {"run", "id", "le"} & set(metric.label_names), name


def test_the_page_of_this_process_is_well_formed() -> None:
    names = {family.name for family in text_string_to_metric_families(metrics_text().decode())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "ziggurat_commit_writes"} <= names
