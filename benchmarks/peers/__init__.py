"""The same workloads on other systems. Each module runs in an environment of its own under build/peers; see install.py."""
