"""Runs on Temporal: the same programs, with a Temporal server as the keeper of their histories."""
