"""Where commands print, and how they declare arguments; the options that several have."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.console import Console

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
