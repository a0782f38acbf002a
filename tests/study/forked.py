"""Commands in processes of their own, which can be killed, and which need not import torch again."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from evomerge.cli import main

# A process that has imported everything and run nothing, from which the others are forked.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "evomerge.cli.app",
        "evomerge.cli.display",
        "tests.study.forked",
        # What these import only when it is needed.
        "accelerate",
        "alembic.command",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
    ]
)


class Forked:
    """An evomerge command; used like a process of `subprocess`. Only its errors are shown."""

    def __init__(self, *arguments: str | Path) -> None:
        self._process = _SERVER.Process(target=_run, args=tuple(map(str, arguments)))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("evomerge", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run(*arguments: str) -> None:
    sys.argv = ["evomerge", *arguments]
    with open(os.devnull, "w") as sys.stdout:
        main()
