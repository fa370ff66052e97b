"""Counters, gauges and histograms, and their page in the Prometheus text format 0.0.4.

A registry of our own, because every process counts, with or without the `telemetry` extra, and because what may be counted is a closed
list (`ziggurat.telemetry.catalogue`): a metric cannot be made up at the place that counts. An update costs a tenth of a microsecond, so
hot paths may count. Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/.

Updates take no lock. CPython gives another thread its turn at calls and at the ends of loops only, never inside `x += 1` on a number, so
none is lost; on a build without the interpreter lock, two threads that count at the same instant may count once.

A metric keeps at most `Metric.limit` sets of label values. What comes past that is counted under "other" in every label: the totals stay
right, and a caller that invents names cannot fill the memory of this process or of the server that scrapes it.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Label value of everything past a metric's limit.
OTHER = "other"
#: Characters of a label value; a longer one is cut.
VALUE_LENGTH = 120
#: Bounds for durations in seconds: from a durable step to a long task.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
#: Bounds for numbers of things.
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)

Samples = Mapping[tuple[str, ...], float]
Child = TypeVar("Child")


class CountChild:
    """A number that goes up; or, in a gauge, also down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount

    def set(self, value: float) -> None:
        """Put a gauge to a value."""
        self.value = value


class HistogramChild:
    """How often a value fell into each bucket; the last holds what is above every bound."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)


class Metric(Generic[Child]):
    """One line of the catalogue, and its values in this process.

    Args:
        name: with the unit and, for a counter, `_total` at its end, as Prometheus names metrics.
        help: one sentence.
        labels: names of the labels, in the order in which `labels()` takes their values.
        layer: the part of the system that it tells of, for the page of metrics.
        limit: sets of label values kept apart.
        merge: makes one value of several that readers return for the same labels.
    """

    kind = ""
    #: Whether a metric without labels is shown, as 0, before anything was counted.
    starts = True

    def __init__(
        self,
        name: str,
        help: str,
        labels: tuple[str, ...] = (),
        *,
        layer: str = "",
        limit: int = 200,
        merge: Callable[[float, float], float] = lambda a, b: a + b,
    ) -> None:
        self.name, self.help, self.label_names, self.layer, self.limit = name, help, labels, layer, limit
        self._merge = merge
        self._children: dict[tuple[str, ...], Child] = {}
        self._readers: list[Callable[[], Samples]] = []
        self._lock = threading.Lock()
        if self.starts and not labels:
            self._children[()] = self._make()

    def _make(self) -> Child:
        raise TypeError("a metric is a Counter, a Gauge or a Histogram")

    def labels(self, *values: str) -> Child:
        """Return the child of these label values. Keep it where an update must be cheap."""
        child = self._children.get(values)
        return child if child is not None else self._new(values)

    def _new(self, values: tuple[str, ...]) -> Child:
        if len(values) != len(self.label_names):
            raise TypeError(f"{self.name} takes the labels {self.label_names}, not {len(values)} values")
        with self._lock:
            key = tuple(str(value)[:VALUE_LENGTH] for value in values)
            if key not in self._children and len(self._children) >= self.limit:
                key = (OTHER,) * len(values)
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = self._make()
            return child

    def watch(self, read: Callable[[], Samples]) -> Callable[[], None]:
        """Ask `read` for values, by label values, whenever the metrics are shown, from whatever thread that is; returns what ends it."""
        self._readers.append(read)

        def stop() -> None:
            if read in self._readers:
                self._readers.remove(read)

        return stop

    def read(self, failed: Callable[[str, Exception], None]) -> dict[tuple[str, ...], float]:
        """Return what the readers say. One that fails is told to `failed` and left out: a page of metrics must not depend on all."""
        found: dict[tuple[str, ...], float] = {}
        for reader in list(self._readers):
            try:
                samples = dict(reader())
            except Exception as error:
                failed(self.name, error)
                continue
            for values, value in samples.items():
                key = tuple(str(v)[:VALUE_LENGTH] for v in values)
                if key not in found and len(found) >= self.limit:
                    key = (OTHER,) * len(key)
                found[key] = self._merge(found[key], value) if key in found else value
        return found

    def children(self) -> dict[tuple[str, ...], Child]:
        """Return the values kept here, by label values."""
        with self._lock:
            return dict(self._children)

    def lines(self, failed: Callable[[str, Exception], None]) -> Iterator[str]:
        """Yield the samples as text."""
        raise TypeError("a metric is a Counter, a Gauge or a Histogram")

    def clear(self) -> None:
        """Forget the values, for tests. Children that somebody keeps count on unseen."""
        with self._lock:
            self._children.clear()
            if self.starts and not self.label_names:
                self._children[()] = self._make()


class Counter(Metric[CountChild]):
    """A number that only goes up while the process lives."""

    kind = "counter"

    def _make(self) -> CountChild:
        return CountChild()

    def inc(self, amount: float = 1.0) -> None:
        """Add to a counter without labels."""
        self._children[()].inc(amount)

    def value(self, *values: str) -> float:
        """Return what was counted, for tests and views; 0 where nothing was."""
        child = self._children.get(values)
        return child.value if child is not None else 0.0

    def lines(self, failed: Callable[[str, Exception], None]) -> Iterator[str]:
        read = self.read(failed)
        kept = {values: child.value for values, child in self.children().items()}
        for values in {**kept, **read}:
            yield f"{self.name}{_labels(self.label_names, values)} {number(kept.get(values, 0.0) + read.get(values, 0.0))}"


class Gauge(Counter):
    """A number that goes up and down. One without labels is not shown before it was set."""

    kind = "gauge"
    starts = False

    def set(self, value: float) -> None:
        """Put a gauge without labels to a value."""
        self.labels().set(value)


class Histogram(Metric[HistogramChild]):
    """How values are spread over buckets."""

    kind = "histogram"

    def __init__(
        self, name: str, help: str, labels: tuple[str, ...] = (), *, buckets: Sequence[float] = SECONDS, layer: str = ""
    ) -> None:
        self.buckets = tuple(buckets)
        # A set of labels costs a line for each bucket, so fewer are kept.
        super().__init__(name, help, labels, layer=layer, limit=100)

    def _make(self) -> HistogramChild:
        return HistogramChild(self.buckets)

    def observe(self, value: float) -> None:
        """Count a value in a histogram without labels."""
        self._children[()].observe(value)

    def lines(self, failed: Callable[[str, Exception], None]) -> Iterator[str]:
        names = (*self.label_names, "le")
        for values, child in self.children().items():
            counts, total = list(child.counts), child.sum
            seen = 0
            for bound, count in zip((*self.buckets, math.inf), counts, strict=True):
                seen += count
                yield f"{self.name}_bucket{_labels(names, (*values, number(bound)))} {seen}"
            labels = _labels(self.label_names, values)
            yield f"{self.name}_sum{labels} {number(total)}"
            yield f"{self.name}_count{labels} {seen}"


class Registry:
    """The metrics of a process, in the order of the catalogue."""

    def __init__(self) -> None:
        self.metrics: dict[str, Counter | Histogram] = {}
        #: Told of a reader that failed.
        self.failed: Callable[[str, Exception], None] = lambda name, error: None

    def add(self, metric: AnyMetric) -> AnyMetric:
        """Add a metric of the catalogue."""
        if metric.name in self.metrics:
            raise ValueError(f"the metric {metric.name} is in the catalogue twice")
        self.metrics[metric.name] = metric
        return metric

    def text(self) -> bytes:
        """Return all that was counted, in the Prometheus text format. May be called from any thread."""
        lines: list[str] = []
        for metric in self.metrics.values():
            samples = list(metric.lines(self.failed))
            if samples:
                lines += (f"# HELP {metric.name} {_escaped_help(metric.help)}", f"# TYPE {metric.name} {metric.kind}", *samples)
        return ("\n".join(lines) + "\n").encode()


AnyMetric = TypeVar("AnyMetric", Counter, Gauge, Histogram)


def number(value: float) -> str:
    """Return a value as the format writes it: the shortest text that reads back as the same number."""
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    whole = int(value)
    return str(whole) if whole == value and abs(whole) < 1 << 53 else repr(float(value))


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)) + "}"


def _escaped(value: str) -> str:
    # Lone surrogates, as in undecodable file names, are no UTF-8.
    text = value.encode(errors="backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
