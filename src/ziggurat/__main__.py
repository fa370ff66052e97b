"""`python -m ziggurat` is the command line."""

from __future__ import annotations

from ziggurat.doors.cli import main

main()
