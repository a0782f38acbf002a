"""The Python API: search, apply, evaluate, publish and load_run; the command line is a thin layer over it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from evomerge.errors import TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import (
    Plan,
    WeightStore,
    compute_device,
    into_directory,
    open_models,
    open_recipe,
    plan,
    plan_warnings,
)
from evomerge.publish import Publication, card_files, publish
from evomerge.recipe import Recipe, StagedRecipe, is_run, load, recipe_file
from evomerge.runtime import ResidentRuntime, compute_dtype
from evomerge.study import (
    Comparison,
    Observer,
    ReportData,
    SearchSpec,
    Stages,
    Study,
    compare,
    conclude,
    interval,
    load_run,
    prepare,
)
from evomerge.study.stages import study_name
from evomerge.tasks import LocalFiles, Split, Task, check_used, open_task

__all__ = [
    "Applied",
    "Comparison",
    "Evaluation",
    "Observer",
    "Publication",
    "TaskComparison",
    "TaskScore",
    "apply",
    "evaluate",
    "load_run",
    "open_model",
    "prepared",
    "publish",
    "search",
]


class SearchOptions(TypedDict, total=False):
    """What may differ from the recipe in a search.

    Attributes:
        evaluations: how many candidates are scored; of a recipe with stages, in the last one.
        seed: the search's seed.
        compute_dtype: the name of the dtype in which candidates run; ``auto``: the fastest.
        data: local files in place of data sets on the Hub, see `Task.load`.
    """

    evaluations: int | None
    seed: int | None
    compute_dtype: str
    data: LocalFiles


Watching = Callable[[SearchSpec, str], AbstractContextManager[Observer]]
"""Makes the observer of one search from what is searched and the name of its stage, "" where there are none."""


def prepared(recipe: Recipe | StagedRecipe | Path | str, **options: Unpack[SearchOptions]) -> SearchSpec | Stages:
    """Returns the search that a recipe describes, checked as far as possible without loading weights.

    Raises:
        EvomergeError: the recipe, its models or its tasks have faults; one line each.
    """
    document = load(Path(recipe)) if isinstance(recipe, Path | str) else recipe
    return Stages(document, **options) if isinstance(document, StagedRecipe) else prepare(document, **options)


def search(
    recipe: SearchSpec | Stages | Recipe | StagedRecipe | Path | str,
    folder: Path | str,
    *,
    device: str = "auto",
    storage: str | None = None,
    watching: Watching = lambda _spec, _stage: nullcontext(Observer()),
    **options: Unpack[SearchOptions],
) -> ReportData:
    """Searches for the best numbers or layers for a recipe's holes; in the folder of a run, resumes its search.

    Args:
        recipe: a search recipe, its file, or what `prepared` returns.
        folder: the run's folder.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto``: the fastest.
        storage: the URL of the database for the record; study.db in the folder by default.
        watching: makes the observer of the search, or of each stage.
        options: see `SearchOptions`; they must be left out where `recipe` is already prepared.

    Returns:
        The winner, the models that were merged, and the verdict, on the holdout; of the last stage where there are
        several.

    Raises:
        EvomergeError: the recipe has faults, or the search cannot run.
    """
    found = recipe if isinstance(recipe, SearchSpec | Stages) else prepared(recipe, **options)
    run = Path(folder)
    if isinstance(found, SearchSpec):
        with watching(found, "") as observer, Study(found, run, device, observer, storage) as study:
            study.run()
            return conclude(study)
    found.open(run)
    for name in found.names:
        spec = found.prepare(name, run)
        own = study_name(run, name)
        with watching(spec, name) as observer, Study(spec, run / name, device, observer, storage, own) as study:
            study.run()
            report = found.conclude(name, study)
    return report


@dataclass(frozen=True)
class Applied:
    """A model that was written.

    Attributes:
        folder: where it is.
        tensors: how many it has.
        nbytes: their bytes.
        warnings: what its user should know, a sentence or two each.
    """

    folder: Path
    tensors: int
    nbytes: int
    warnings: tuple[str, ...]


def apply(
    recipe: Recipe | Path | str,
    folder: Path | str,
    *,
    shard_gigabytes: float = 5.0,
    overwrite: bool = False,
    card: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Applied:
    """Writes the model that a recipe describes to a folder, which appears only once it is complete.

    Args:
        recipe: a recipe without holes, its file, or the folder of a run, for its best recipe.
        folder: where the model is written.
        shard_gigabytes: the largest weights file.
        overwrite: whether a folder that holds a model and nothing else is replaced.
        card: whether a model card, README.md, is written.
        progress: called with the bytes that are written, and with all that there are.

    Raises:
        EvomergeError: the recipe has faults, a model cannot be read, or the folder cannot be written.
    """
    out = Path(folder)
    path = None if isinstance(recipe, Recipe) else recipe_file(Path(recipe))
    document = recipe if isinstance(recipe, Recipe) else Recipe.load(path or recipe)  # Once: it may be a pipe.
    made = open_recipe(document)
    name = document.name or out.absolute().name
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress(done, made.layout.nbytes)

    into_directory(
        made,
        out,
        shard_bytes=int(shard_gigabytes * 1e9),
        overwrite=overwrite,
        needed=[path] if path else [],
        progress=written,
        texts=card_files(document, name, path.parent if path else None) if card else {},
    )
    return Applied(out, len(made.layout.jobs), made.layout.nbytes, tuple(plan_warnings(made)))


@dataclass(frozen=True)
class TaskScore:
    """A model's score on one split of one task.

    Attributes:
        task: the task's name.
        split: ``search`` or ``holdout``.
        score: the mean over the items, higher is better.
        interval: its 95% interval.
        items: each item's score.
        completions: what the model wrote, one text an item; None where the task does not ask for text.
    """

    task: str
    split: str
    score: float
    interval: tuple[float, float]
    items: tuple[float, ...]
    completions: tuple[str, ...] | None


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on tasks.

    Attributes:
        model: its name.
        scores: one for each task and split.
        seconds: spent on ``build`` and ``evaluate``.
        tokens: how many were read (``prompt``) and written (``new``).
    """

    model: str
    scores: tuple[TaskScore, ...]
    seconds: Mapping[str, float]
    tokens: Mapping[str, int]

    def as_data(self) -> dict[str, Any]:
        """Returns the evaluation as JSON data."""
        data = asdict(self)
        for score in data["scores"]:
            if score["completions"] is None:
                del score["completions"]
        return data

    def compared(self, other: Evaluation) -> list[TaskComparison]:
        """Returns this model compared with another, item by item, on each task and split that both were scored on."""
        theirs = {(score.task, score.split): {score.task: score.items} for score in other.scores}
        return [
            TaskComparison(task, split, compare({task: score.items}, theirs[task, split], {task: 1.0}, other.model))
            for score in self.scores
            for task, split in [(score.task, score.split)]
            if (task, split) in theirs
        ]


@dataclass(frozen=True)
class TaskComparison:
    """Two models on one split of one task.

    Attributes:
        task: the task's name.
        split: ``search`` or ``holdout``.
        comparison: the difference, its interval, and the items gained and lost.
    """

    task: str
    split: str
    comparison: Comparison


def open_model(model: str) -> Plan:
    """Returns the plan of a model, or of a recipe's model; reads headers and configs but no weights.

    Args:
        model: a folder, a Hub id, the path of a recipe without holes, or the folder of a run.

    Raises:
        EvomergeError: the model or the recipe is not valid.
    """
    if is_run(Path(model)):
        model = str(recipe_file(Path(model)))
    if model.endswith((".yaml", ".yml")) or (os.path.exists(model) and not os.path.isdir(model)):
        return open_recipe(Path(model))
    recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": model}]})
    return plan(recipe, open_models(recipe))


def evaluate(  # noqa: PLR0913 (options by keyword)
    model: str,
    tasks: Sequence[Task | Path | str],
    *,
    splits: Sequence[Split] = ("holdout",),
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    data: LocalFiles = MappingProxyType({}),
    scored: Callable[[TaskScore], None] = lambda _score: None,
) -> Evaluation:
    """Returns the scores of a model, or of the model of a recipe, on tasks; nothing is written.

    Args:
        model: a folder, a Hub id, the path of a recipe without holes, or the folder of a run.
        tasks: tasks, or their files.
        splits: ``search``, ``holdout``, or both.
        limit: scores the first so many items of each split only.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto``: the fastest.
        dtype: the name of the dtype in which the model runs; ``auto``: the fastest.
        data: local files in place of data sets on the Hub that task files name, see `Task.load`.
        scored: called with each score as soon as it is known.

    Raises:
        EvomergeError: the model, the recipe or a task is not valid.
    """
    opened = [task if isinstance(task, Task) else open_task(task, data) for task in tasks]
    check_used(data, opened)
    faults = [
        f'{second.path}: has the same name as {first.path}, "{second.name}"; give one of them another'
        for first, second in combinations(opened, 2)
        if first.name == second.name
    ]
    if faults:
        raise TaskError(faults)
    made = open_model(model)
    where = compute_device(device)
    store = WeightStore(made.layout.checkpoints, "disk", where, reused=False)
    runtime = ResidentRuntime(made, store, device, compute_dtype(made.layout, where, dtype))
    evaluator = Evaluator(opened, runtime.tokenizer, runtime.max_length, runtime.vocabulary_size, runtime.processor)
    # Before the weights: faults of items cost no time.
    items = {
        (split, task.name): [item for item in evaluator.items(split) if item.task == task.name][:limit]
        for split in splits
        for task in opened
    }
    started = time.perf_counter()
    loaded = runtime.load(made)
    seconds = {"build": time.perf_counter() - started, "evaluate": 0.0}
    scores = []
    for (split, name), some in items.items():
        found = evaluator.scores(loaded, some)
        seconds["evaluate"] += found.cost.seconds
        values, written = found.by_task()[name], found.completions_by_task().get(name)
        bounds = interval({name: values}, {name: 1.0})
        scores.append(TaskScore(name, split, found.means[name], bounds, values, written))
        scored(scores[-1])
    tokens = {"prompt": loaded.tokens.prompt, "new": loaded.tokens.new}
    return Evaluation(model, tuple(scores), seconds, tokens)
