"""The commands: search, apply, eval, check, runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import evomerge
from evomerge.cli import stoppable
from evomerge.errors import RecipeError

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
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Names of models, files and tasks are printed as they are, whatever they look like.
out = Console(markup=False, emoji=False, highlight=False)
say = partial(out.print, soft_wrap=True)
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
RecipeOrRun = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="The recipe, a YAML file; or a run's folder.", show_default=False),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps; auto: the fastest, several GPUs where one is too small.")
]

ComputeDtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="The dtype in which the model runs: its own, or float32, which holds the same values; auto: the faster.",
    ),
]


def _recipe_file(path: Path) -> Path:
    """Returns the recipe that `path` means: a run's folder stands for its best.yaml.

    Raises:
        RecipeError: it is a folder and has none.
    """
    if not os.path.isdir(path):  # which takes a name that is too long for one of no folder
        return path
    if (path / "best.yaml").is_file():
        return path / "best.yaml"
    raise RecipeError([f"{path}: is a folder without best.yaml; name a recipe, or the folder of a run that has scored"])


def _waiting(text: str) -> AbstractContextManager[object]:
    """Returns what shows `text` while something goes on, where there is a terminal to show it on."""
    return out.status(Text(text)) if out.is_terminal else nullcontext()


def _version(wanted: bool) -> None:
    if wanted:
        say(f"evomerge {evomerge.__version__}")
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
        int | None, typer.Option(min=1, max=1_000_000, help="Candidates to score, instead of the recipe's own number.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="The search's seed, instead of the recipe's own.")
    ] = None,
    device: Device = "auto",
    compute_dtype: ComputeDtype = "auto",
) -> None:
    """Fill a recipe's holes by evolution; start it again to go on.

    Every evaluation is on disk before the next begins: stop it with Ctrl-C, or lose the power, and the same
    command goes on, with the same winner as if nothing had happened. A larger --evaluations extends a search.

    The run's folder holds best.yaml (the best recipe so far), study.db (the record, an Optuna study) and, at
    the end, result.json (parents and winner on the holdout).

    Example: evomerge search recipes/quickstart.yaml --evaluations 40
    """
    from evomerge.cli.display import SearchDisplay, conclusion_table, fitted
    from evomerge.cli.quantities import duration
    from evomerge.merge import compute_device
    from evomerge.study import Study, conclude, prepare

    folder = run_dir or Path("runs") / (recipe.stem if seed is None else f"{recipe.stem}-seed{seed}")
    best = folder / "best.yaml"

    def stopped() -> str:
        found = f"the best recipe so far is {best}" if best.is_file() else "nothing is scored yet"
        return f"Stopped: {found}; the same command continues the search."

    with stoppable(stopped):
        compute_device(device)
        with _waiting("Checking the recipe, its models and tasks"):
            spec = prepare(recipe, evaluations=evaluations, seed=seed, compute_dtype=compute_dtype)
        say(_summary(recipe, spec, device))
        display = SearchDisplay(out, spec)
        with display, Study(spec, folder, device, display) as study:
            study.run()
            report = conclude(study)
        out.print(fitted(conclusion_table(report), out))
        say(report.verdict, style="bold")
        seconds = report.seconds
        failed = f", {report.failures} failed" if report.failures else ""
        say(
            f"{report.evaluations} evaluations{failed}: {duration(seconds['build'])} building,"
            f" {duration(seconds['evaluate'])} evaluating, {duration(seconds['other'])} other.\n"
            f"Make the model: evomerge apply {best} OUT_DIR"
        )


@app.command()
def apply(
    recipe: RecipeOrRun,
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The folder to make.", show_default=False)],
    shard_size: Annotated[
        float, typer.Option(min=0.000001, max=1e6, help="The most gigabytes of a weights file.")
    ] = 5.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT_DIR if it holds a model and nothing else.")
    ] = False,
) -> None:
    """Write the model that a recipe describes to a folder.

    The folder appears under its name only when all of it is there; any runtime that reads Hugging Face
    checkpoints loads it.

    Example: evomerge apply runs/quickstart/best.yaml merged
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from evomerge.cli.quantities import size
    from evomerge.merge import into_directory, open_recipe, plan_warnings

    before = _inode(out_dir)
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def stopped() -> str:
        return f"Stopped: {out_dir} is {'as it was' if _inode(out_dir) == before else 'complete'}."

    with stoppable(stopped):
        path = _recipe_file(recipe)
        plan = open_recipe(path)
        with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task("", total=plan.layout.nbytes)
            into_directory(
                plan,
                out_dir,
                shard_bytes=int(shard_size * 1e9),
                overwrite=overwrite,
                needed=[path],
                progress=lambda count: progress.advance(bar, count),
            )
        say(
            "\n".join([f"{out_dir}: {len(plan.layout.jobs)} tensors, {size(plan.layout.nbytes)}", *plan_warnings(plan)])
        )


def _inode(path: Path) -> int | None:
    """Returns what tells a folder from another that takes its place; None where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder, a Hub id, a recipe, or a run's folder.", show_default=False),
    ],
    tasks: Annotated[list[Path], typer.Argument(metavar="TASK...", help="Task files.", show_default=False)],
    split: Annotated[str, typer.Option(help="search, holdout, or both.")] = "holdout",
    device: Device = "auto",
    compute_dtype: ComputeDtype = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with every item's score, and completions where there are any.")
    ] = False,
) -> None:
    """Score a model, or a recipe, on tasks.

    The model of a recipe is made in memory; nothing is written.

    Example: evomerge eval merged eval_tasks/quickstart_addition.yaml --split both
    """
    from evomerge.cli.display import fitted, scores_table
    from evomerge.cli.evaluation import evaluated

    if split not in ("search", "holdout", "both"):
        raise typer.BadParameter(f'found "{split}"; expected search, holdout or both', param_hint="--split")
    splits = ("search", "holdout") if split == "both" else (split,)
    if os.path.isfile(Path(model) / "best.yaml") and not os.path.exists(Path(model) / "config.json"):
        model = str(Path(model) / "best.yaml")
    with stoppable(lambda: "Stopped: not all is scored, so no score is shown."):
        with nullcontext() if as_json else _waiting(f"Scoring {model}"):
            found = evaluated(model, tasks, splits, device, compute_dtype)
        if as_json:
            sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
            return
        rows = [
            (row["task"], row["split"], len(row["items"]), row["score"], tuple(row["interval"]))
            for row in found["scores"]
        ]
        out.print(fitted(scores_table(rows), out))


@app.command()
def check(recipe: RecipeOrRun, device: Device = "auto", compute_dtype: ComputeDtype = "auto") -> None:
    """Check a recipe, its models and its tasks.

    Says every fault at once, and what a search would need. Reads headers, configs and task data, no weights: this
    takes seconds, where a fault in the search costs hours.

    Example: evomerge check recipes/quickstart.yaml
    """
    from evomerge.cli.quantities import size
    from evomerge.merge import compute_device, open_recipe, plan_warnings
    from evomerge.recipe import Recipe
    from evomerge.study import prepare

    compute_device(device)
    # Once: the recipe may be a pipe.
    path = _recipe_file(recipe)
    document = Recipe.load(path)
    if document.holes():
        spec = prepare(document, compute_dtype=compute_dtype)
        spec.rehearse()
        say(_summary(path, spec, device, full=True))
        return
    plan = open_recipe(document)
    layout = plan.layout
    models = ", ".join(layout.checkpoints)
    say(
        f"{path}: {layout.method.name} of {models}; {len(layout.jobs)} tensors, {size(layout.nbytes)}; no holes.\n"
        + "".join(f"{warning}\n" for warning in plan_warnings(plan))
        + f"Make the model: evomerge apply {path} OUT_DIR"
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
        say("\n  ".join(lines))


def _summary(path: Path, spec: Any, device: str, full: bool = False) -> str:
    """Returns what a search is about to do, and with ``full`` what it needs and where it will live."""
    from evomerge.cli.quantities import size
    from evomerge.merge import compute_device, plan_warnings
    from evomerge.search import SearchSpace

    space: SearchSpace = spec.space
    settings = spec.settings
    where = compute_device(device)
    names = {"device": f"in {where}'s memory", "memory": "in main memory", "disk": "on disk, read piece by piece"}
    lines = [
        f"{path}: {spec.recipe.merge_method} of {', '.join(spec.parents)}",
        f"{len(space)} numbers by {settings.optimizer}, {settings.evaluations} evaluations, seed {settings.seed};"
        f" on {where}",
    ]
    if full:
        dtype = spec.runs_in(where)
        place = spec.tier(where, dtype)
        kept = size(spec.source_bytes)
        runs_in = str(dtype).removeprefix("torch.")
        lines += [
            f"  {dimension.name}: {dimension.low:g} to {dimension.high:g}, from {dimension.start:g}"
            for dimension in space.dimensions
        ]
        lines += [
            f"tasks: {task.name}, {len(task.items('search'))} items to search on, {len(task.items('holdout'))} held out"
            for task in spec.tasks
        ]
        lines += [
            f"memory: {size(spec.live_bytes(dtype))} for the model that is refilled, on {where} in {runs_in};"
            f" {kept} for {len(spec.checkpoints)} models, {names[place]}",
            *plan_warnings(spec.first),
            "OK: ready to search",
        ]
    return "\n".join(lines)
