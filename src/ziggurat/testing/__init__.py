"""Conformance suites, a fake clock and scripted models, for this project and for backends of others."""

from __future__ import annotations

from ziggurat.testing.clock import FakeClock

__all__ = ["FakeClock"]
