"""`SearchSpec`: everything that a search needs, checked before anything slow starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from evomerge.checkpoint import Checkpoint
from evomerge.errors import EvomergeError, MergeError, RecipeError, TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import Plan, Tier, WeightStore, checked_method, choose_tier, open_models, parents, plan
from evomerge.methods import METHODS
from evomerge.metrics import METRICS
from evomerge.paths import find, not_found
from evomerge.recipe import Recipe, SearchSettings
from evomerge.runtime import ResidentRuntime, Runtime, StackRuntime, compute_dtype
from evomerge.search import Dimension, IndicatorSpace, NumberSpace, StackSpace, Subsets, optimizers_for
from evomerge.study.objective import Scale
from evomerge.study.spaces import first_plan, space_of, whole_stack
from evomerge.study.standings import FINALISTS
from evomerge.tasks import LocalFiles, Task, check_used, is_lm_eval, open_task

MOST_ASKED = 1000
"""The first generation is counted up to this many candidates."""

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
        space: the searched numbers, or stacks of layers.
        parents: the models that are merged.
        base: the ancestor, where it is not a parent; scored for comparison.
        first: the plan of the space's start. In a search for numbers, every candidate has the same tensors.
        compute_dtype: the name of the dtype in which candidates run; ``auto``: the fastest.
        made: the folders of models that an earlier stage made, by their names in the recipe.
        scales: how tasks are standardized, if an earlier stage has determined it: scores of stages are comparable.
    """

    recipe: Recipe
    settings: SearchSettings
    checkpoints: Mapping[str, Checkpoint]
    tasks: tuple[Task, ...]
    task_weights: Mapping[str, float]
    space: NumberSpace | StackSpace | IndicatorSpace
    parents: tuple[str, ...]
    base: str | None
    first: Plan
    compute_dtype: str = "auto"
    made: Mapping[str, Path] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)

    @property
    def stacks(self) -> StackSpace | None:
        """The stacks that are searched, in either encoding; None in a search for numbers."""
        space = self.space
        return space.stacks if isinstance(space, IndicatorSpace) else space if isinstance(space, StackSpace) else None

    @cached_property
    def subsets(self) -> Subsets | None:
        """The search items that each generation is scored on; None where that is all of them."""
        sizes = {task.name: len(task.items("search")) for task in self.tasks}
        return Subsets.of(self.settings, sizes, self.task_weights)

    @property
    def most_items_scored(self) -> int:
        """About how many scores of search items the candidates take, if no two are equal."""
        total = sum(len(task.items("search")) for task in self.tasks)
        evaluations = self.settings.evaluations
        if self.subsets is None:
            return evaluations * total
        optimizer = optimizers_for(self.recipe)[self.settings.optimizer](self.space, self.settings)
        first = sum(proposal.generation == 0 for proposal in optimizer.ask(min(evaluations, MOST_ASKED)))
        generations, rest = divmod(evaluations, first)
        found = first * sum(self.subsets.count(i) for i in range(generations)) + rest * self.subsets.count(generations)
        return found + FINALISTS * (total - self.subsets.count(generations))

    @property
    def dimensions(self) -> list[Dimension]:
        """The searched numbers; none in a search for stacks."""
        return self.space.dimensions if isinstance(self.space, NumberSpace) else []

    @property
    def searched(self) -> str:
        """What is searched, in a few words."""
        stacks = self.stacks
        if stacks is None:
            return f"{len(self.dimensions)} numbers"
        scales = f", each with a scale from {stacks.scale[0]:g} to {stacks.scale[1]:g}" if stacks.scale else ""
        return f"stacks of {stacks.min_layers} to {stacks.max_layers} layers{scales}"

    @property
    def plugins(self) -> dict[str, str]:
        """What other packages add to this search, by name: the package and its version."""
        used = {
            self.recipe.merge_method: METHODS.origin(self.recipe.merge_method),
            self.settings.optimizer: optimizers_for(self.recipe).origin(self.settings.optimizer),
            **{task.metric: METRICS.origin(task.metric) for task in self.tasks if task.type == "generate"},
        }
        return {name: origin for name, origin in used.items() if origin}

    def parent_recipe(self, model: str) -> Recipe:
        """Returns the recipe of `model` alone, in the form and the dtype of the candidates."""
        if self.stacks is not None:
            return whole_stack(self.recipe, model, self.checkpoints[model])
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
        """Returns the bytes of the resident model, or of all models of a search for stacks, if run in `dtype`."""
        stored = self.first.layout.nbytes if self.stacks is None else self.source_bytes
        return stored * dtype.itemsize // self.first.layout.dtype.itemsize

    def tier(self, device: torch.device, dtype: torch.dtype) -> Tier:
        """Returns where the models are kept during a search on `device`, whose candidates run in `dtype`."""
        return choose_tier(self.source_bytes + self.first.layout.kept_bytes, self.live_bytes(dtype), device)

    def scoring(self, store: WeightStore, device: str, dtype: torch.dtype) -> tuple[Runtime, Evaluator]:
        """Returns the runtime and the evaluator, with every item read and tokenized.

        Args:
            store: where weights are read; not used by stacks, whose models the runtime keeps.
            device: see `ResidentRuntime`.
            dtype: in which candidates run.

        Raises:
            ArchitectureError: transformers cannot run such a model.
            CheckpointError: the tokenizer or the generation settings cannot be read.
            TaskError: a task cannot be used with this tokenizer.
        """
        runtime: Any
        if self.stacks is not None and device != "meta":
            with _of_model(self.parents[0]):
                runtime = StackRuntime(self.first, device, dtype)
        else:
            runtime = ResidentRuntime(self.first, store, device, dtype)
        evaluator = Evaluator(
            self.tasks, runtime.tokenizer, runtime.max_length, runtime.vocabulary_size, runtime.processor
        )
        evaluator.items("search")
        evaluator.items("holdout")
        return runtime, evaluator

    def load_parent(self, runtime: Runtime, model: str) -> None:
        """Loads a model into a runtime of stacks, which keeps it.

        Raises:
            CheckpointError: it cannot be read.
            MergeError: it holds values that are not finite.
        """
        with _of_model(model):
            runtime.load(plan(self.parent_recipe(model), self.checkpoints))

    def rehearse(self) -> None:
        """Does everything that a search does before its first candidate, without memory for weights.

        Raises:
            ArchitectureError: transformers cannot run such a model.
            CheckpointError: the tokenizer or the generation settings cannot be read.
            TaskError: a task cannot be used with this tokenizer.
        """
        store = WeightStore(self.checkpoints, "disk", torch.device("cpu"))
        self.scoring(store, "meta", self.first.layout.dtype)
        if self.stacks is not None:
            for name in self.parents:
                made = plan(self.parent_recipe(name), self.checkpoints)
                ResidentRuntime(made, store, "meta", self.first.layout.dtype)


def prepare(
    recipe: Recipe | Path,
    *,
    evaluations: int | None = None,
    seed: int | None = None,
    compute_dtype: str = "auto",
    made: Mapping[str, Checkpoint] | None = None,
    data: LocalFiles = MappingProxyType({}),
) -> SearchSpec:
    """Returns the search that a recipe describes, checked as far as possible without loading weights.

    Args:
        recipe: the recipe, or its file.
        evaluations: replaces the recipe's number.
        seed: replaces the recipe's seed.
        compute_dtype: see `SearchSpec`.
        made: models that are already open, by their names in the recipe: those of earlier stages.
        data: local files in place of data sets on the Hub, in addition to the recipe's own.

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
    if data:
        given_files = {key: str(Path(file).absolute()) for key, file in data.items()}
        recipe = recipe.model_copy(update={"data": {**recipe.data, **given_files}})
    faults = []
    if not recipe.holes():
        faults.append(
            recipe.fault(
                (), "nothing to search: no number is {search: [low, high]}; to write the model, run evomerge apply"
            )
        )
    if not recipe.tasks:
        faults.append(recipe.fault((), 'nothing to score candidates on: add "tasks: [{task: FILE}]"'))
    fault = optimizers_for(recipe).fault(settings.optimizer)
    if fault:
        faults.append(recipe.fault(("search", "optimizer"), fault))
    _gather(faults, lambda: checked_method(recipe))
    tasks = _tasks(recipe, faults)
    checkpoints = _gather(faults, lambda: open_models(recipe, made or {}))
    if faults or checkpoints is None:
        raise RecipeError(faults)
    if settings.normalize is None:
        # Shares of items and log-likelihoods, or these per token and per byte, have no common unit.
        units = {task.metric if task.type == "perplexity" else "share" for task in tasks}
        settings = settings.model_copy(update={"normalize": len(units) > 1})
    space = space_of(recipe, settings, checkpoints)
    first = first_plan(space, checkpoints)
    names = parents(recipe)
    base = recipe.base_model if recipe.base_model not in names else None
    weights = {task.name: entry.weight for task, entry in zip(tasks, recipe.tasks, strict=True)}
    folders = {name: checkpoint.folder for name, checkpoint in (made or {}).items()}
    return SearchSpec(recipe, settings, checkpoints, tasks, weights, space, names, base, first, compute_dtype, folders)


@contextmanager
def _of_model(model: str) -> Iterator[None]:
    """Names the model in errors about its tensors."""
    try:
        yield
    except MergeError as fault:
        raise MergeError(f"{model}: {fault}") from None


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
            path = Path(entry.task) if is_lm_eval(entry.task) else find(entry.task, recipe.folders)
            if path is None:
                faults.append(
                    recipe.fault(("tasks", i, "task"), f"no file {entry.task}{not_found(entry.task, recipe.folders)}")
                )
                continue
            task = open_task(path, recipe.local_files())
            if task.searches_test_set and not recipe.allow_test_set:
                faults.append(recipe.fault(("tasks", i, "task"), _searched_test_set(task)))
                continue
            task.check()
        except TaskError as fault:
            faults += fault.faults
            continue
        if task.name in found:
            message = f'a second task is called "{task.name}"; give each its own name'
            faults.append(recipe.fault(("tasks", i, "task"), message))
        found[task.name] = task
    if len(found) == len(recipe.tasks):  # Otherwise a task that is missing here may read it.
        _gather(faults, lambda: check_used(recipe.data, list(found.values())))
    return tuple(found.values())


def _searched_test_set(task: Task) -> str:
    return (
        f'the search items of "{task.name}" are of a test set, by which published models are compared: a model that was'
        " chosen on it scores too high there; search on training or validation rows and keep the test set for the"
        ' holdout, or add "allow_test_set: true" to the recipe: the result and the model card then say so'
    )
