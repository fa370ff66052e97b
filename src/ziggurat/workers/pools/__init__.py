"""Where workers live: processes here, pods elsewhere."""
