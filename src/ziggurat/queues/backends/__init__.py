"""One file for each broker."""
