"""An orchestrator that another machine runs, reached over its HTTP API."""
