"""Conformance suites, a fake clock and scripted models, for this project and for backends of others."""
