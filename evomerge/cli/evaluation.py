"""``evomerge eval``: a model, or a recipe, scored on tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import WeightStore, compute_device, open_models, open_recipe, plan
from evomerge.recipe import Recipe
from evomerge.runtime import ResidentRuntime, compute_dtype
from evomerge.study import interval
from evomerge.tasks import Task


def evaluated(
    model: str, paths: Sequence[Path], splits: Sequence[Any], device: str, dtype: str = "auto"
) -> dict[str, Any]:
    """Returns the scores of a model on tasks, as ``--json`` prints them.

    Args:
        model: a folder, a Hub id, or the path of a recipe without holes.
        paths: task files.
        splits: ``search``, ``holdout``, or both.
        device: see `LiveModel`.
        dtype: the name of the dtype in which the model runs; ``auto``: the fastest.

    Raises:
        EvomergeError: the model, the recipe or a task is not valid.
    """
    tasks = [Task.load(path) for path in paths]
    faults = [
        f'{second.path}: has the same name as {first.path}, "{second.name}"; give one of them another'
        for first, second in combinations(tasks, 2)
        if first.name == second.name
    ]
    if faults:
        raise TaskError(faults)
    if model.endswith((".yaml", ".yml")) or (os.path.exists(model) and not os.path.isdir(model)):
        made = open_recipe(Path(model))
    else:
        recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": model}]})
        made = plan(recipe, open_models(recipe))
    where = compute_device(device)
    store = WeightStore(made.layout.checkpoints, "disk", where, reused=False)
    runtime = ResidentRuntime(made, store, device, compute_dtype(made.layout, where, dtype))
    evaluator = Evaluator(tasks, runtime.tokenizer, runtime.max_length, runtime.vocabulary_size)
    items = {split: evaluator.items(split) for split in splits}  # before the weights: their faults cost no time
    started = time.perf_counter()
    loaded = runtime.load(made)
    seconds = {"build": time.perf_counter() - started, "evaluate": 0.0}
    scores = []
    for split in splits:
        found = evaluator.scores(loaded, items[split])
        seconds["evaluate"] += found.cost.seconds
        by_task = found.by_task()
        for name, values in by_task.items():
            low, high = interval(by_task, {name: 1.0})
            row = {"task": name, "split": split, "score": found.means[name], "interval": [low, high], "items": values}
            written = [text for item, text in found.completions.items() if item.task == name]
            scores.append({**row, "completions": written} if written else row)
    tokens = {"prompt": loaded.tokens.prompt, "new": loaded.tokens.new}
    return {"model": model, "scores": scores, "seconds": seconds, "tokens": tokens}
