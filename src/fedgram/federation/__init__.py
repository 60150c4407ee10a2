"""The round, and all that a run does before, between and after its rounds."""
