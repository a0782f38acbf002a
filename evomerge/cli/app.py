"""The commands: search, apply, eval, check, runs."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import evomerge
from evomerge.errors import DocumentError, EvomergeError

app = typer.Typer(
    name="evomerge",
    help="Find, by evolution, how to merge fine-tuned models into one that beats them all.\n\n"
    "A recipe is mergekit's YAML; a search recipe has holes, {search: [low, high]}, where numbers go. "
    "First check it, then search, then apply the winner:\n\n"
    "  evomerge check recipes/quickstart.yaml\n\n"
    "  evomerge search recipes/quickstart.yaml\n\n"
    "  evomerge apply runs/quickstart/best.yaml merged",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(soft_wrap=False)
err = Console(stderr=True)

INTERRUPTED = 130
"""The exit status of a process that SIGINT ended, as shells give it."""

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps; auto: the fastest, several GPUs where one is too small.")
]


def main() -> None:
    """Runs the command line; an error of ours ends it with its text and status 1."""
    # Before any of these is imported: a search's own lines are all that a terminal shows.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        app()
    except DocumentError as fault:
        err.print(f"[red]{len(fault.faults)} fault{'s' * (len(fault.faults) > 1)}[/red]", highlight=False)
        for line in fault.faults:
            err.print(line, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except EvomergeError as fault:
        err.print("[red]error[/red] ", end="")
        err.print(str(fault), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    finally:
        # Or Python looks through all of torch's objects, half a second long, for some to free before the system does.
        gc.freeze()


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"evomerge {evomerge.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Holds the options that come before a command."""


@app.command()
def search(
    recipe: RecipeFile,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/ and the recipe's name by default.", show_default=False)
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Candidates to score, instead of the recipe's own number.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The search's seed, instead of the recipe's own.")] = None,
    device: Device = "auto",
) -> None:
    """Fill a recipe's holes by evolution; start it again to go on.

    Every evaluation is on disk before the next begins: stop it with Ctrl-C, or lose the power, and the same
    command goes on, with the same winner as if nothing had happened. A larger --evaluations extends a search.

    The run's folder holds best.yaml (the best recipe so far), study.db (the record, an Optuna study) and, at
    the end, result.json (parents and winner on the holdout).

    Example: evomerge search recipes/quickstart.yaml --evaluations 40
    """
    from evomerge.build import compute_device
    from evomerge.cli.display import SearchDisplay, conclusion_table
    from evomerge.cli.quantities import duration
    from evomerge.study import Study, conclude, prepare

    compute_device(device)
    with out.status("Checking the recipe, its models and tasks") if out.is_terminal else nullcontext():
        preparation = prepare(recipe, evaluations=evaluations, seed=seed)
    folder = run_dir or Path("runs") / (recipe.stem if seed is None else f"{recipe.stem}-seed{seed}")
    out.print(_summary(recipe, preparation, device), markup=False, highlight=False)
    display = SearchDisplay(out, preparation)
    try:
        with display, Study(preparation, folder, device, display) as study:
            study.run()
            conclusion = conclude(study)
    except KeyboardInterrupt:
        err.print(
            f"Stopped. Nothing is lost: the same command goes on; the best so far is {folder / 'best.yaml'}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    out.print(conclusion_table(conclusion))
    out.print(conclusion.verdict, style="bold", highlight=False, markup=False, soft_wrap=True)
    seconds = conclusion.seconds
    failed = f", {conclusion.failures} failed" if conclusion.failures else ""
    out.print(
        f"{conclusion.evaluations} evaluations{failed}: {duration(seconds['build'])} building,"
        f" {duration(seconds['evaluate'])} evaluating, {duration(seconds['other'])} other.\n"
        f"Make the model: evomerge apply {folder / 'best.yaml'} OUT_DIR",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def apply(
    recipe: RecipeFile,
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The folder to make.", show_default=False)],
    shard_size: Annotated[float, typer.Option(min=0.000001, help="The most gigabytes of a weights file.")] = 5.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT_DIR where it exists.")] = False,
) -> None:
    """Make the model that a recipe without holes describes, and write it to a folder.

    The folder appears under its name only when all of it is there; any runtime that reads Hugging Face
    checkpoints loads it.

    Example: evomerge apply runs/quickstart/best.yaml merged
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from evomerge.build import into_directory, open_recipe, remarks
    from evomerge.cli.quantities import size

    plan = open_recipe(recipe)
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        bar = progress.add_task("", total=plan.layout.nbytes)
        into_directory(
            plan,
            out_dir,
            shard_bytes=int(shard_size * 1e9),
            overwrite=overwrite,
            progress=lambda count: progress.advance(bar, count),
        )
    out.print(
        "\n".join([f"{out_dir}: {len(plan.layout.jobs)} tensors, {size(plan.layout.nbytes)}", *remarks(plan)]),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or a recipe (.yaml).", show_default=False)
    ],
    tasks: Annotated[list[Path], typer.Argument(metavar="TASK...", help="Task files.", show_default=False)],
    split: Annotated[str, typer.Option(help="search, holdout, or both.")] = "holdout",
    device: Device = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with every item's score, and completions where there are any.")
    ] = False,
) -> None:
    """Score a model, or a recipe without writing its model, on tasks.

    Example: evomerge eval merged eval_tasks/quickstart_arithmetic.yaml --split both
    """
    from evomerge.cli.display import scores_table
    from evomerge.cli.evaluation import evaluated

    if split not in ("search", "holdout", "both"):
        raise typer.BadParameter(f'found "{split}"; expected search, holdout or both', param_hint="--split")
    splits = ("search", "holdout") if split == "both" else (split,)
    with out.status(f"Scoring {model}") if out.is_terminal and not as_json else nullcontext():
        found = evaluated(model, tasks, splits, device)
    if as_json:
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        return
    rows = [
        (row["task"], row["split"], len(row["items"]), row["score"], tuple(row["interval"])) for row in found["scores"]
    ]
    out.print(scores_table(rows))


@app.command()
def check(recipe: RecipeFile, device: Device = "auto") -> None:
    """Validate a recipe, its models and its tasks, and say what a search would need.

    Reads headers, configs and task data, no weights: seconds, where a fault in the search costs hours.

    Example: evomerge check recipes/quickstart.yaml
    """
    from evomerge.build import compute_device, open_recipe, remarks
    from evomerge.recipe import Recipe
    from evomerge.study import prepare

    compute_device(device)
    if Recipe.load(recipe).holes():
        out.print(_summary(recipe, prepare(recipe), device, full=True), markup=False, highlight=False, soft_wrap=True)
        return
    from evomerge.cli.quantities import size

    plan = open_recipe(recipe)
    layout = plan.layout
    models = ", ".join(layout.checkpoints)
    out.print(
        f"{recipe}: {layout.method.name} of {models}; {len(layout.jobs)} tensors, {size(layout.nbytes)}; no holes.\n"
        + "".join(f"{remark}\n" for remark in remarks(plan))
        + f"Make the model: evomerge apply {recipe} OUT_DIR",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the runs.")] = Path("runs"),
) -> None:
    """List runs: their state, evaluations, best search score and verdict.

    Example: evomerge runs
    """
    from evomerge.study import runs

    for run in runs(folder):
        best = "" if run.best is None else f", best {run.best:.3f}"
        lines = [f"{run.folder}: {run.state}, {run.evaluations} evaluations{best}", *filter(None, [run.verdict])]
        out.print("\n  ".join(lines), markup=False, highlight=False, soft_wrap=True)


def _summary(path: Path, preparation: Any, device: str, full: bool = False) -> str:
    """Returns what a search is about to do, and with ``full`` what it needs and where it will live."""
    from evomerge.build import compute_device, compute_dtype, remarks
    from evomerge.cli.quantities import size
    from evomerge.search import SearchSpace

    space: SearchSpace = preparation.space
    settings = preparation.settings
    where = compute_device(device)
    names = {"device": f"in {where}'s memory", "memory": "in main memory", "disk": "on disk, read piece by piece"}
    lines = [
        f"{path}: {preparation.recipe.merge_method} of {', '.join(preparation.parents)}",
        f"{len(space)} numbers by {settings.optimizer}, {settings.evaluations} evaluations, seed {settings.seed};"
        f" on {where}",
    ]
    if full:
        place = preparation.place(where)
        kept = size(preparation.source_bytes)
        runs_in = str(compute_dtype(preparation.first.layout.dtype, where)).removeprefix("torch.")
        lines += [
            f"  {dimension.name}: {dimension.low:g} to {dimension.high:g}, from {dimension.start:g}"
            for dimension in space.dimensions
        ]
        lines += [
            f"tasks: {task.name}, {len(task.items('search'))} items to search on, {len(task.items('holdout'))} held out"
            for task in preparation.tasks
        ]
        lines += [
            f"memory: {size(preparation.live_bytes(where))} for the model that is refilled, on {where} in {runs_in};"
            f" {kept} for {len(preparation.checkpoints)} models, {names[place]}",
            *remarks(preparation.first),
            "sound: nothing found that would stop this search",
        ]
    return "\n".join(lines)
