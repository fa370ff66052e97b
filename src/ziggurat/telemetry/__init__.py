"""What the system says of itself: metrics, events and traces.

ziggurat.telemetry.catalogue   every metric, and the page that shows them
ziggurat.telemetry.metrics     counters, gauges, histograms and the text format
"""

from __future__ import annotations

from ziggurat.telemetry.catalogue import METRICS, metrics_text
from ziggurat.telemetry.metrics import CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "METRICS", "metrics_text"]
