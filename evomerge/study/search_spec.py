"""`SearchSpec`: everything that a search needs, checked before anything slow starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from evomerge.architecture import Architecture
from evomerge.checkpoint import Checkpoint
from evomerge.document import Location, suggestion
from evomerge.errors import EvomergeError, RecipeError, TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import Plan, Tier, WeightStore, checked_method, choose_tier, hole_starts, open_models, parents, plan
from evomerge.paths import find, not_found
from evomerge.recipe import Recipe, SearchSettings
from evomerge.runtime import ResidentRuntime, Runtime, compute_dtype
from evomerge.search import OPTIMIZERS, NumberSpace, optimizers_for
from evomerge.tasks import Task

T = TypeVar("T")


@dataclass(frozen=True)
class SearchSpec:
    """A search, checked: its recipe, models, tasks and space.

    Attributes:
        recipe: the recipe with holes.
        settings: how they are searched.
        checkpoints: every model that it names, opened.
        tasks: what candidates are scored on.
        task_weights: each task's share by name; they need not sum to one.
        space: the searched numbers.
        parents: the models that are merged.
        base: the ancestor, where it is not a parent; scored for comparison.
        first: the plan of the space's start; every candidate has the same tensors.
        compute_dtype: the name of the dtype in which candidates run; ``auto``: the fastest.
    """

    recipe: Recipe
    settings: SearchSettings
    checkpoints: Mapping[str, Checkpoint]
    tasks: tuple[Task, ...]
    task_weights: Mapping[str, float]
    space: NumberSpace
    parents: tuple[str, ...]
    base: str | None
    first: Plan
    compute_dtype: str = "auto"

    def parent_recipe(self, model: str) -> Recipe:
        """Returns the recipe of `model` alone, in the dtype of the candidates."""
        return self._alike({"merge_method": "passthrough", "models": [{"model": model}]})

    def mean_recipe(self) -> Recipe:
        """Returns the recipe of the parents' plain mean."""
        models = [{"model": model, "parameters": {"weight": 1}} for model in self.parents]
        data: dict[str, Any] = {"merge_method": "linear", "models": models}
        if self.recipe.base_model:
            data["base_model"] = self.recipe.base_model
        return self._alike(data)

    def _alike(self, data: dict[str, Any]) -> Recipe:
        own = self.recipe.as_data()
        same = {key: own[key] for key in ("component", "dtype", "out_dtype", "chat_template") if key in own}
        return Recipe.model_validate({**data, **same})

    @property
    def source_bytes(self) -> int:
        """The bytes of all models together."""
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints.values())

    def runs_in(self, device: torch.device) -> torch.dtype:
        """Returns the dtype in which candidates run on `device`, see `evomerge.merge.compute_dtype`."""
        return compute_dtype(self.first.layout, device, self.compute_dtype)

    def live_bytes(self, dtype: torch.dtype) -> int:
        """Returns the bytes of the resident model if it runs in `dtype`."""
        return self.first.layout.nbytes * dtype.itemsize // self.first.layout.dtype.itemsize

    def tier(self, device: torch.device, dtype: torch.dtype) -> Tier:
        """Returns where the models are kept during a search on `device`, whose candidates run in `dtype`."""
        return choose_tier(self.source_bytes + self.first.layout.kept_bytes, self.live_bytes(dtype), device)

    def scoring(self, store: WeightStore, device: str, dtype: torch.dtype) -> tuple[Runtime, Evaluator]:
        """Returns the runtime and the evaluator, with every item read and tokenized.

        Args:
            store: where weights are read.
            device: see `ResidentRuntime`.
            dtype: in which candidates run.

        Raises:
            ArchitectureError: transformers cannot run such a model.
            CheckpointError: the tokenizer or the generation settings cannot be read.
            TaskError: a task cannot be used with this tokenizer.
        """
        runtime = ResidentRuntime(self.first, store, device, dtype)
        evaluator = Evaluator(self.tasks, runtime.tokenizer, runtime.max_length, runtime.vocabulary_size)
        evaluator.items("search")
        evaluator.items("holdout")
        return runtime, evaluator

    def rehearse(self) -> None:
        """Does everything that a search does before its first candidate, without memory for weights.

        Raises:
            ArchitectureError: transformers cannot run such a model.
            CheckpointError: the tokenizer or the generation settings cannot be read.
            TaskError: a task cannot be used with this tokenizer.
        """
        store = WeightStore(self.checkpoints, "disk", torch.device("cpu"))
        self.scoring(store, "meta", self.first.layout.dtype)


def prepare(
    recipe: Recipe | Path, *, evaluations: int | None = None, seed: int | None = None, compute_dtype: str = "auto"
) -> SearchSpec:
    """Returns the search that a recipe describes, checked as far as possible without loading weights.

    Args:
        recipe: the recipe, or its file.
        evaluations: replaces the recipe's number.
        seed: replaces the recipe's seed.
        compute_dtype: see `SearchSpec`.

    Raises:
        RecipeError: the recipe, its models or its tasks have faults; one line each.
        CheckpointError: a model cannot be read.
        TaskError: a task or its data is not valid.
        ArchitectureError: a model's layers cannot be found.
    """
    recipe = Recipe.load(recipe) if isinstance(recipe, Path) else recipe
    given = {"evaluations": evaluations, "seed": seed}
    settings = recipe.settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    recipe = recipe.model_copy(update={"search": settings})
    faults = []
    if not recipe.holes():
        faults.append(
            recipe.fault(
                (), "nothing to search: no number is {search: [low, high]}; to write the model, run evomerge apply"
            )
        )
    if recipe.stack_hole is not None:
        faults.append(recipe.fault(("slices",), "searching for slices is not supported yet; write the slices out"))
    if not recipe.tasks:
        faults.append(recipe.fault((), 'nothing to score candidates on: add "tasks: [{task: FILE}]"'))
    known = optimizers_for(recipe)
    if settings.optimizer not in known:
        which = f'"{settings.optimizer}"' + (" for such holes" if settings.optimizer in OPTIMIZERS else "")
        message = f"there is no optimizer {which}{suggestion(settings.optimizer, known)}"
        faults.append(recipe.fault(("search", "optimizer"), message))
    _gather(faults, lambda: checked_method(recipe))
    tasks = _tasks(recipe, faults)
    checkpoints = _gather(faults, lambda: open_models(recipe))
    if faults or checkpoints is None:
        raise RecipeError(faults)
    space = _space(recipe, checkpoints)
    first = plan(space.decode([float(gene) for gene in space.start]), checkpoints)
    names = parents(recipe)
    base = recipe.base_model if recipe.base_model not in names else None
    weights = {task.name: entry.weight for task, entry in zip(tasks, recipe.tasks, strict=True)}
    return SearchSpec(recipe, settings, checkpoints, tasks, weights, space, names, base, first, compute_dtype)


def _gather(faults: list[str], make: Callable[[], T]) -> T | None:
    """Returns what `make` returns; if it fails, adds its error's lines to `faults` and returns None."""
    try:
        return make()
    except EvomergeError as fault:
        faults += str(fault).splitlines()
        return None


def _tasks(recipe: Recipe, faults: list[str]) -> tuple[Task, ...]:
    found: dict[str, Task] = {}
    for i, entry in enumerate(recipe.tasks):
        try:
            path = find(entry.task, recipe.folders)
            if path is None:
                faults.append(
                    recipe.fault(("tasks", i, "task"), f"no file {entry.task}{not_found(entry.task, recipe.folders)}")
                )
                continue
            task = Task.load(path)
            task.check()
        except TaskError as fault:
            faults += fault.faults
            continue
        if task.name in found:
            message = f'a second task is called "{task.name}"; give each its own name'
            faults.append(recipe.fault(("tasks", i, "task"), message))
        found[task.name] = task
    return tuple(found.values())


def _space(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> NumberSpace:
    holes = recipe.number_holes()
    names = parents(recipe)
    depth = Architecture.of(checkpoints[names[0]].config, checkpoints[names[0]].tensors).num_layers
    depths: dict[Location, int] = {}
    faults = []
    for location, hole in holes.items():
        if hole.layers is None:
            continue
        own = _depth_at(recipe, location, depth)
        if own is None:
            message = "layers spreads over slices of different lengths; put it into the slices, or interpolate"
            if not hole.interpolate:
                faults.append(recipe.fault(location, message))
        elif hole.layers > own:
            message = f"layers is {hole.layers}, but there are {own} layers; use {own} or fewer"
            faults.append(recipe.fault(location, message))
        depths[location] = own or 0
    if faults:
        raise RecipeError(faults)
    return NumberSpace(recipe, depths=depths, starts=hole_starts(recipe, checked_method(recipe), len(names)))


def _depth_at(recipe: Recipe, location: Location, depth: int) -> int | None:
    """Returns how many layers the value at `location` covers; None if its slices differ."""
    modules = recipe.modules_by_place()
    inside = [place for place in modules if location[: len(place)] == place] or list(modules)
    found = {modules[place].depth_at(location[len(place) :], depth) for place in inside}
    return found.pop() if len(found) == 1 else None
