"""Where commands print, and how they declare arguments; the options that several have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from evomerge.errors import TaskError

if TYPE_CHECKING:
    from rich.progress import TaskID

# Names of models, files and tasks are printed verbatim, even if they look like markup.
out = Console(markup=False, emoji=False, highlight=False)
say = partial(out.print, soft_wrap=True)
argument = partial(typer.Argument, show_default=False)

Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1 or mps; auto: the fastest, and several GPUs if one is too small.")
]
ComputeDtype = Annotated[
    str, typer.Option(metavar="DTYPE", help="The dtype to run models in: their own, or float32; auto: the faster one.")
]


Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATASET=FILE",
        help="Read a local file in place of a data set on the Hub, such as"
        " openai/gsm8k:test=gsm8k_test.jsonl; for each file once.",
        show_default=False,
    ),
]


def local_files(options: list[str] | None) -> dict[str, Path]:
    """Returns the files of the option --data, by their data sets.

    Raises:
        TaskError: an option has another form, or names a data set again.
    """
    found: dict[str, Path] = {}
    for option in options or ():
        key, equals, file = option.partition("=")
        if not (key and equals and file):
            raise TaskError([f"--data {option}: expected DATASET=FILE, such as openai/gsm8k:test=gsm8k_test.jsonl"])
        if key in found:
            raise TaskError([f"--data {option}: a second file for {key}, after {found[key]}; name one"])
        found[key] = Path(file)
    return found


@contextmanager
def byte_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what shows a bar on a terminal: called with what is done, the bytes so far, and all that there are."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
    bars: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = progress.add_task(what, total=total)
            progress.start()
        progress.update(bars[what], completed=done, visible=done < total)
        if done >= total:
            progress.stop()  # the Hub's client draws bars of its own

    try:
        yield show
    finally:
        progress.stop()
