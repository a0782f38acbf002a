"""The commands: search, apply, publish, eval, check, show, report, runs, schema."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.filesize import decimal as size
from rich.text import Text

import evomerge
from evomerge.cli import stoppable
from evomerge.cli.console import ComputeDtype, Data, Device, argument, byte_bars, local_files, out, say
from evomerge.cli.evaluating import evaluate
from evomerge.cli.publishing import publish
from evomerge.cli.schemas import schema
from evomerge.errors import EvomergeError

if TYPE_CHECKING:
    from evomerge.study import Observer, SearchSpec

app = typer.Typer(
    name="evomerge",
    help="Find, by evolution, how to merge fine-tuned models into one that beats them all.\n\n"
    "A recipe is a YAML file in mergekit's format. A search recipe has holes, {search: [low, high]}, in place of "
    "numbers. Check it, search, then apply the winner:\n\n"
    "  evomerge check recipes/quickstart.yaml\n\n"
    "  evomerge search recipes/quickstart.yaml\n\n"
    "  evomerge report runs/quickstart\n\n"
    "  evomerge apply runs/quickstart/best.yaml merged",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

RecipeFile = Annotated[Path, argument(metavar="RECIPE", help="A search recipe: a YAML file.")]
RecipeOrRun = Annotated[Path, argument(metavar="RECIPE", help="A recipe: a YAML file, or the folder of a run.")]
OutDir = Annotated[Path, argument(metavar="OUT_DIR", help="The folder to write.")]


def _version(wanted: bool) -> None:
    if wanted:
        say(f"evomerge {evomerge.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001 (its callback acts)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Also say how models are run, before a command: evomerge --verbose eval ..."),
    ] = False,
) -> None:
    """Holds the options that come before a command."""
    if verbose:
        from rich.console import Console
        from rich.logging import RichHandler

        logger = logging.getLogger("evomerge")
        logger.setLevel(logging.INFO)
        logger.handlers = [RichHandler(console=Console(stderr=True), show_time=False, show_path=False)]


@app.command()
def search(  # noqa: PLR0913, PLR0917 (an option is a parameter)
    recipe: RecipeFile,
    run_dir: Annotated[
        Path | None, typer.Option(help="The folder of the run.", show_default="runs/ and the recipe's name")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Candidates to score, instead of the recipe's number.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="The search's seed, instead of the recipe's.")
    ] = None,
    data: Data = None,
    device: Device = "auto",
    compute_dtype: ComputeDtype = "auto",
    storage: Annotated[
        str | None,
        typer.Option(
            help="The database for the record: postgresql://..., mysql://... or sqlite:///FILE.",
            show_default="study.db in the run's folder",
        ),
    ] = None,
) -> None:
    """Search for the best numbers for a recipe's holes, or for the best stack of layers.

    Every evaluation is on disk before the next begins. Stop the search with Ctrl-C, or lose power: the same command
    resumes it, and it finds the same winner as an uninterrupted search. A larger --evaluations extends a search; of a
    recipe with stages, its last one.

    The run's folder holds best.yaml (the best recipe so far), study.db (the record, an Optuna study) and, at the
    end, result.json (the parents and the winner on the holdout).

    With --storage, the record is a study of that database, named after the run's folder; resume with the same
    --storage. A password is never shown or stored; PGPASSWORD or ~/.pgpass can hold it.

    Example: evomerge search recipes/quickstart.yaml --evaluations 40
    """
    from evomerge import api
    from evomerge.cli.display import SearchDisplay, spent
    from evomerge.cli.tables import conclusion_table, fitted
    from evomerge.merge import compute_device

    folder = run_dir or Path("runs") / (recipe.stem if seed is None else f"{recipe.stem}-seed{seed}")
    best = folder / "best.yaml"

    def stopped() -> str:
        known = sorted(folder.glob("**/best.yaml"), key=lambda path: path.stat().st_mtime)
        found = f"the best recipe so far is {known[-1]}" if known else "nothing is scored yet"
        return f"Stopped: {found}; the same command resumes the search."

    with stoppable(stopped):
        where = compute_device(device)
        with out.status(Text("Checking the recipe, its models and tasks")):
            spec = api.prepared(
                recipe, evaluations=evaluations, seed=seed, compute_dtype=compute_dtype, data=local_files(data)
            )

        @contextmanager
        def shown(spec: SearchSpec, stage: str) -> Iterator[Observer]:
            say(*_stage(stage), _headline(recipe, spec, where), sep="\n")
            display = SearchDisplay(out, spec)
            with display.live:
                yield display

        report = api.search(spec, folder, device=device, storage=storage, watching=shown)
        out.print(fitted(conclusion_table(report), out))
        say(report.verdict, style="bold")
        say(*report.notes, sep="\n")
        say(spent(report), f"Make the model: evomerge apply {best} OUT_DIR", sep="\n")


@app.command()
def apply(
    recipe: RecipeOrRun,
    out_dir: OutDir,
    shard_size: Annotated[float, typer.Option(min=1e-6, max=1e6, help="The largest weights file, in gigabytes.")] = 5.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT_DIR if it holds a model and nothing else.")
    ] = False,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Write a model card, README.md.")] = True,
) -> None:
    """Write the model that a recipe describes to a folder.

    The folder appears under its name only once it is complete. Anything that loads Hugging Face checkpoints can
    load it. Its README.md is a model card: the recipe, how it was found, and its scores.

    Example: evomerge apply runs/quickstart/best.yaml merged
    """
    from evomerge import api

    before = _inode(out_dir)

    def stopped() -> str:
        return f"Stopped: {out_dir} is {'unchanged' if _inode(out_dir) == before else 'complete'}."

    with stoppable(stopped):
        with byte_bars() as progress:
            made = api.apply(
                recipe,
                out_dir,
                shard_gigabytes=shard_size,
                overwrite=overwrite,
                card=card,
                progress=partial(progress, "writing"),
            )
        say(f"{out_dir}: {made.tensors} tensors, {size(made.nbytes)}", *made.warnings, sep="\n")


app.command()(publish)


def _inode(path: Path) -> int | None:
    """Returns what tells a folder from another that takes its place; None where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


app.command("eval")(evaluate)


@app.command()
def check(
    recipe: RecipeOrRun, data: Data = None, device: Device = "auto", compute_dtype: ComputeDtype = "auto"
) -> None:
    """Check a recipe, its models and its tasks.

    Reports every fault at once, and what a search would need. Reads headers, configs and task data but no weights,
    so it takes seconds; the same fault could end a search after hours.

    Example: evomerge check recipes/quickstart.yaml
    """
    from evomerge import api
    from evomerge.merge import compute_device, open_recipe, plan_warnings
    from evomerge.recipe import StagedRecipe, load, recipe_file
    from evomerge.study import Stages

    where = compute_device(device)
    # Read once: the recipe may be a pipe.
    path = recipe_file(recipe)
    document = load(path)
    if not isinstance(document, StagedRecipe) and not document.holes():
        plan = open_recipe(document)
        layout = plan.layout
        models = ", ".join(layout.checkpoints)
        say(
            f"{path}: {layout.method.name} of {models}; {len(layout.jobs)} tensors, {size(layout.nbytes)}; no holes.",
            *plan_warnings(plan),
            f"Make the model: evomerge apply {path} OUT_DIR",
            sep="\n",
        )
        return
    found = api.prepared(document, compute_dtype=compute_dtype, data=local_files(data))
    for name, spec in found.checks.items() if isinstance(found, Stages) else [("", found)]:
        spec.rehearse()
        say(*_stage(name), *_checked(path, spec, where), sep="\n")
    say("OK: ready to run")


def _stage(name: str) -> list[str]:
    """Returns the line above what is said of a stage; none where there are no stages."""
    return [f"stage {name}"] if name else []


def _checked(path: Path, spec: Any, where: Any) -> list[str]:
    """Returns what a search would need, line by line."""
    from evomerge.merge import plan_warnings

    dtype = spec.runs_in(where)
    tiers = {"device": f"in {where}'s memory", "memory": "in main memory", "disk": "on disk, read piece by piece"}
    kept = f"{size(spec.source_bytes)} for {len(spec.checkpoints)} models, {tiers[spec.tier(where, dtype)]}"
    if spec.stacks is not None:
        kept = "a candidate refers to their layers"
    return [
        _headline(path, spec, where),
        *(f"  {hole.name}: {hole.low:g} to {hole.high:g}, from {hole.start:g}" for hole in spec.dimensions),
        *(
            f"task: {task.name}, {len(task.items('search'))} items to search on, {len(task.items('holdout'))} held out"
            for task in spec.tasks
        ),
        *_subsets(spec),
        f"memory: {size(spec.live_bytes(dtype))} for {'a candidate' if spec.stacks is None else 'the models'},"
        f" in {str(dtype).removeprefix('torch.')} on {where}; {kept}",
        *plan_warnings(spec.first),
    ]


def _subsets(spec: Any) -> list[str]:
    """Returns what a search on subsets of the items would score; nothing where each candidate is scored on all."""
    if spec.subsets is None:
        return []
    total = sum(len(task.items("search")) for task in spec.tasks)
    return [
        f"items: {spec.subsets.count(0):,} of {total:,} for the first generation; about {spec.most_items_scored:,} item"
        f" scores in all, in place of {total * spec.settings.evaluations:,}"
    ]


@app.command()
def show(
    recipe: RecipeOrRun,
    svg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw it as SVG, a file for each stage.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw a recipe: its numbers by layer and model, its stack of layers, what a search may choose.

    Reads the models' configs where they are on this machine, and no weights.

    Example: evomerge show recipes/quickstart.yaml
    """
    from evomerge.recipe import StagedRecipe, load, recipe_file
    from evomerge.report import drawing_of, to_svg, to_text

    document = load(recipe_file(recipe))
    recipes = document.stages if isinstance(document, StagedRecipe) else {"": document}
    for name, one in recipes.items():
        drawing = drawing_of(one)
        say(*_stage(name), to_text(drawing, out.width), sep="\n", end="")
        if svg is not None:
            path = svg.with_stem(f"{svg.stem}-{name}") if name else svg
            try:
                path.write_text(to_svg(drawing), encoding="utf-8")
            except OSError as fault:
                raise EvomergeError(f"{path}: cannot be written: {fault.strerror or fault}") from None
            say(f"\n{path}: written")


@app.command()
def report(
    run: Annotated[Path, argument(metavar="RUN", help="The folder of a run: finished, stopped or running.")],
    kind: Annotated[
        Literal["html", "svg", "png"],
        typer.Option("--format", help="html: one page; svg or png: its pictures, in a folder."),
    ] = "html",
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="The file, or the folder.", show_default="report.html in RUN"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="The database of the record, as for search.", show_default="the one that the run names"),
    ] = None,
) -> None:
    """Show what a search found: one HTML page that needs no network and runs no script.

    Winner, parents and base on the holdout; the course of the search; the winning recipe as a picture; which numbers
    mattered; items gained and lost; where the time went; what failed. The candidates are written to candidates.csv in
    the run's folder.

    A run with stages: the last one that has begun; name the folder of another stage for that one.

    Example: evomerge report runs/quickstart
    """
    from evomerge.report.written import write_report
    from evomerge.study import load_run

    say(f"{write_report(load_run(run, storage), kind, to)}: written")


@app.command("runs")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the runs.")] = Path("runs"),
) -> None:
    """List runs, with their best scores and verdicts.

    Example: evomerge runs
    """
    from evomerge.study import runs

    for run in runs(folder):
        best = "" if run.best is None else f", best {run.best:.3f}"
        done = f"record in {run.storage}" if run.evaluations is None else f"{run.evaluations} evaluations"
        lines = [f"{run.folder}: {run.state}, {done}{best}", *filter(None, [run.verdict])]
        say("\n  ".join(lines))


app.command()(schema)


def _headline(path: Path, spec: Any, where: object) -> str:
    """Returns what a search is about to do, in two lines."""
    settings = spec.settings
    return (
        f"{path}: {spec.recipe.merge_method} of {', '.join(spec.parents)}\n{spec.searched} by"
        f" {settings.optimizer}, {settings.evaluations} evaluations, seed {settings.seed}; on {where}"
    )
