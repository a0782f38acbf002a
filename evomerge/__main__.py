"""``python -m evomerge``: the command line."""

from evomerge.cli import main

main()
