"""What Ziggurat costs, measured beside its peers in the same run: `python -m benchmarks --help`."""
