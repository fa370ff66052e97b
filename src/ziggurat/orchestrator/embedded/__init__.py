"""The embedded orchestrator: a deterministic event loop, a history on SQLite, one process."""
