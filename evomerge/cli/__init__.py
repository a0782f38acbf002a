"""The command line: ``evomerge search | apply | eval | check | runs``."""

from evomerge.cli.app import main

__all__ = ["main"]
