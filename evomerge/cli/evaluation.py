"""``evomerge eval``: a model, or a recipe, scored on tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import WeightStore, compute_device, open_models, open_recipe, plan
from evomerge.recipe import Recipe
from evomerge.runtime import compute_dtype
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
        device: see `Evaluator`.
        dtype: the name of the dtype in which the model runs; ``auto``: the fastest.

    Raises:
        EvomergeError: the model, the recipe or a task is at fault.
    """
    tasks = [Task.load(path) for path in paths]
    faults = [
        f'{task.path}: a second task is called "{task.name}"'
        for i, task in enumerate(tasks)
        if task.name in [other.name for other in tasks[:i]]
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
    evaluator = Evaluator(made, tasks, store, device, compute_dtype(made.layout, where, dtype))
    for split in splits:
        evaluator.prepare(split)
    scores = []
    for split in splits:
        score = evaluator.score(made, split)
        for name, items in score.items.items():
            low, high = interval(score.items, {name: 1.0})
            row = {"task": name, "split": split, "score": score.means[name], "interval": [low, high], "items": items}
            if name in score.completions:
                row["completions"] = score.completions[name]
            scores.append(row)
    return {"model": model, "scores": scores, "seconds": score.seconds}
