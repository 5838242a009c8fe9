"""The command line: parse, call, print. No logic lives here."""

from mfh.cli.commands import main

__all__ = ["main"]
