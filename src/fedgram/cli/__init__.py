"""The command line: one module a command, and how options and configs are read."""

from fedgram.cli.main import main

__all__ = ["main"]
