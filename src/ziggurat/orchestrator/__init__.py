"""Layer 1, the orchestrator: run state, dependencies, timers, retries, control."""
