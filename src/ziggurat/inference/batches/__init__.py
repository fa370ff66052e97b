"""Calls that may wait: gathered into batches, which providers answer within a day for half the price."""
