"""The command eval."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from evomerge.cli import stoppable
from evomerge.cli.console import ComputeDtype, Data, Device, argument, local_files, out
from evomerge.errors import EvomergeError, TaskError

if TYPE_CHECKING:
    from evomerge.api import Evaluation, TaskScore
    from evomerge.tasks import Split, Task


def evaluate(  # noqa: PLR0913, PLR0917 (an option is a parameter)
    arguments: Annotated[
        list[str],
        argument(
            metavar="MODEL... TASK...",
            help="Models: folders, Hub ids, recipes, or the folders of runs. Tasks: YAML files, or lm_eval:NAME.",
        ),
    ],
    split: Annotated[Literal["search", "holdout", "both"], typer.Option(help="The items to score.")] = "holdout",
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Score the first N items of each split only.", show_default="all"),
    ] = None,
    comparing: Annotated[
        bool, typer.Option("--compare", help="Compare the first model with each of the others, item by item.")
    ] = False,
    form: Annotated[
        Literal["table", "markdown", "json"],
        typer.Option("--format", help="How to print the scores; json has those of every item."),
    ] = "table",
    completions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every item to a JSONL file: prompt, target, completion, score."),
    ] = None,
    data: Data = None,
    device: Device = "auto",
    compute_dtype: ComputeDtype = "auto",
) -> None:
    """Score models, or the models of recipes, on tasks.

    The model of a recipe is merged in memory and not written. With several models, one is scored after another.
    Ctrl-C ends the command with the scores that are complete.

    Example: evomerge eval --compare merged recipes/quickstart/base eval_tasks/quickstart_addition.yaml
    """
    from evomerge import api

    splits: tuple[Split, ...] = ("search", "holdout") if split == "both" else (split,)
    done: dict[str, Evaluation] = {}
    with stoppable(lambda: f"Stopped: {'the scores above are complete' if done else 'nothing has been scored'}."):
        models, tasks = _models_and_tasks(arguments, local_files(data))
        if comparing and len(models) == 1:
            raise EvomergeError(f"--compare: {models[0]} is the only model; name another one before the tasks")
        for model in models:
            api.open_model(model)  # A fault of the last model is found before the first is scored.
        sizes = {(task.name, one): len(task.items(one)[:limit]) for task in tasks for one in splits}
        try:
            with _writer(completions, tasks) as write, _progress(len(models) * sum(sizes.values())) as advance:
                for model in models:
                    advance(model, 0)

                    def scored(score: TaskScore, model: str = model) -> None:
                        known = done[model].scores if model in done else ()
                        done[model] = api.Evaluation(model, (*known, score), {}, {})
                        advance(model, len(score.items))
                        write(model, score)

                    done[model] = api.evaluate(
                        model, tasks, splits=splits, limit=limit, device=device, dtype=compute_dtype, scored=scored
                    )
        finally:
            if done:
                _show(form, list(done.values()), comparing)


def _models_and_tasks(arguments: Sequence[str], files: Mapping[str, Path]) -> tuple[list[str], list[Task]]:
    """Returns the models and the tasks among the arguments."""
    from evomerge.tasks import check_used, open_task

    models, tasks = [], []
    for given in dict.fromkeys(arguments):
        if _is_task(given):
            tasks.append(open_task(given, files))
        else:
            models.append(given)
    if not models:
        raise EvomergeError("no model among the arguments; name a folder, a Hub id, a recipe or the folder of a run")
    if not tasks:
        raise EvomergeError("no task among the arguments; name a task file, which ends in .yaml or .yml")
    check_used(files, tasks)
    return models, tasks


def _is_task(given: str) -> bool:
    """Returns whether an argument names a task: one of lm-eval's, or a YAML file that is not a recipe."""
    from evomerge import document
    from evomerge.tasks import is_lm_eval

    if is_lm_eval(given) or not given.endswith((".yaml", ".yml")) or os.path.isdir(given):
        return is_lm_eval(given)
    data = document.read(Path(given), TaskError).data
    return not (isinstance(data, dict) and {"merge_method", "stages"} & data.keys())


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Shows a progress bar on a terminal; yields what moves it by the items of a model that were scored."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        yield lambda model, count: progress.update(bar, description=model, advance=count)


@contextmanager
def _writer(path: Path | None, tasks: Sequence[Task]) -> Iterator[Callable[[str, TaskScore], None]]:
    """Yields what writes the items of a score to a JSONL file, at once; it does nothing if there is no path."""
    by_name = {task.name: task for task in tasks}
    if path is None:
        yield lambda _model, _score: None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as fault:
        raise EvomergeError(f"{path}: cannot be written: {fault.strerror or fault}") from None

    def write(model: str, score: TaskScore) -> None:
        for line in _lines(model, by_name[score.task], score):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()

    with file:
        yield write


def _lines(model: str, task: Task, score: TaskScore) -> Iterator[dict[str, Any]]:
    """Yields the lines of a score: one for each item."""
    split: Any = score.split
    for index, (item, value) in enumerate(zip(task.items(split), score.items, strict=False)):
        line: dict[str, Any] = {"model": model, "task": task.name, "split": split, "index": index}
        line["prompt"] = item.messages or item.prompt
        line["target"] = item.choices[item.answer] if item.choices else item.target
        if item.choices:
            line["choices"] = item.choices
        if score.completions is not None:
            line["completion"] = score.completions[index]
        yield {**line, "score": value}


def _show(form: str, evaluations: Sequence[Evaluation], comparing: bool) -> None:
    """Prints the scores, and how the first model compares with the others."""
    from evomerge.cli.tables import comparison_table, fitted, markdown, scores_table

    first, *others = evaluations
    pairs = [(other.model, first.compared(other)) for other in others] if comparing else []
    if form == "json":
        comparisons = [
            {"first": first.model, "second": name, "task": one.task, "split": one.split}
            | {key: value for key, value in asdict(one.comparison).items() if key not in ("model", "tasks")}
            for name, compared in pairs
            for one in compared
        ]
        found = {"evaluations": [one.as_data() for one in evaluations], "comparisons": comparisons}
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        return
    for table in [scores_table(evaluations), *(comparison_table(first.model, name, found) for name, found in pairs)]:
        if form == "markdown":
            sys.stdout.write(markdown(table) + "\n")
        else:
            out.print(fitted(table, out))
