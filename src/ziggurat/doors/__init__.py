"""How the world reaches a system: the command line, and later HTTP."""
