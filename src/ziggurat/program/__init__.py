"""What authors import: tasks, workflows, signals, time, and model calls.

The public names are re-exported by `ziggurat`; see design of each in its module.
"""
