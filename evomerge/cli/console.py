"""Where commands print, and how they declare arguments."""

from __future__ import annotations

from functools import partial

import typer
from rich.console import Console

# Names of models, files and tasks are printed verbatim, even if they look like markup.
out = Console(markup=False, emoji=False, highlight=False)
say = partial(out.print, soft_wrap=True)
argument = partial(typer.Argument, show_default=False)
