"""Layer 3, the workers: stateless execution of tasks."""
