"""Programs that show how Ziggurat is used; each says at its top how to run it."""
