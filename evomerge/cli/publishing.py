"""The command publish."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal as size

from evomerge.cli import stoppable
from evomerge.cli.console import argument, byte_bars, say


def publish(
    source: Annotated[Path, argument(metavar="RUN", help="The folder of a run, or of a model.")],
    repo_id: Annotated[str, argument(metavar="REPO_ID", help="The repository on the Hub: OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to upload to.", show_default="main")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list what would be uploaded; send nothing.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="LICENSE",
            help="The licence to publish under, such as apache-2.0.",
            show_default="what follows from the models' cards",
        ),
    ] = None,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Upload a model card, README.md.")] = True,
) -> None:
    """Upload a model to the Hugging Face Hub.

    Of a run, its winner is written to RUN/model first, unless it is there. Before a byte is sent, every file is
    checked: complete, without NaN, and loadable. The card must state a licence: it follows from the cards of the
    merged models, or --license names it. An upload that breaks off is completed by the same command.

    Log in once with: hf auth login

    Example: evomerge publish runs/quickstart me/quickstart-merge --license apache-2.0 --dry-run
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from evomerge.publish import publish as published

    if not sys.stderr.isatty():
        disable_progress_bars()
    stopping = "\nStopping when the files on their way have arrived; press Ctrl-C again to stop at once.\n"
    with stoppable(lambda: "Stopped: the same command completes the upload.", stopping), byte_bars() as progress:
        done = published(
            source,
            repo_id,
            private=private,
            revision=revision,
            dry_run=dry_run,
            licence=licence,
            card=card,
            progress=progress,
        )
    notes = [f"not uploaded, as it is no part of a model: {name}" for name in done.left_out]
    notes += [f"note: {note}" for note in done.notes]
    files = [f"{size(count):>10}  {name}" for name, count in done.files.items()]
    end = f"{done.url}: published" if done.url else f"Not uploaded, as --dry-run says: {done.folder} to {repo_id}"
    say(*files, *notes, f"{end}, {len(done.files)} files, {size(done.nbytes)}", sep="\n")
