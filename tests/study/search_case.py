"""A search of tiny models that takes a second: folders, recipe and tasks, and who runs and watches it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import yaml
from safetensors.torch import load_file, save_file

from evomerge import api
from evomerge.recipe import Recipe
from evomerge.study import Observer, ReportData, Trial
from tests.tiny import tiny_checkpoint

RECIPE = """\
merge_method: {method}
base_model: {folder}/base
models:
  - model: {folder}/a
    parameters: {{weight: {{search: [0, 1], layers: 2}}}}
  - model: {folder}/b
    parameters: {{weight: {{search: [0, 1]}}}}
dtype: bfloat16
tasks:
  - {{task: {folder}/tasks/likely.yaml}}
  - {{task: {folder}/tasks/written.yaml, weight: 0.5}}
search: {{optimizer: {optimizer}, evaluations: {evaluations}, seed: 0{settings}}}
"""


def write_case(
    folder: Path,
    *,
    method: str = "task_arithmetic",
    optimizer: str = "cma-es",
    evaluations: int = 12,
    settings: str = "",
    chat: bool = False,
) -> Path:
    """Writes models, tasks and a search recipe into `folder`; returns the recipe's path."""
    base = folder / "base"
    if not base.exists():
        tiny_checkpoint(base, seed=0, scale=0.2, layers=2)
        for seed, name in enumerate("ab", start=1):
            tiny_checkpoint(folder / name, seed=seed, base=base, scale=0.1)
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    rows = [{"q": f"what is {i} and {i + 3}?", "a": f" it is {2 * i + 3}."} for i in range(24)]
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = 'data: rows.jsonl\nprompt: "{{ q }}"\ntarget: "{{ a }}"\nsplits: {search: [0, 8], holdout: [8, 24]}\n'
    (tasks / "likely.yaml").write_text(f"type: perplexity\nmetric: bits_per_byte\n{common}")
    written = f"type: generate\nmetric: exact_match\nmax_new_tokens: 4\nchat: {str(chat).lower()}\n"
    (tasks / "written.yaml").write_text(written + common)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        RECIPE.format(method=method, folder=folder, optimizer=optimizer, evaluations=evaluations, settings=settings)
    )
    return recipe


STACK = """\
merge_method: passthrough
slices: {{search: {{models: [{models}], repeats: 2, min_layers: 2, max_layers: 4{hole}}}}}
dtype: {dtype}
search: {{evaluations: {evaluations}, seed: 0{settings}}}
"""


def write_stack_case(
    folder: Path,
    *,
    evaluations: int = 14,
    dtype: str = "bfloat16",
    hole: str = "",
    settings: str = ", population: 6",
) -> Path:
    """Writes models, tasks and a recipe that searches for stacks of layers into `folder`; returns its path."""
    recipe = write_case(folder)
    models = f"{folder}/a, {folder}/b"
    stack = STACK.format(models=models, hole=hole, dtype=dtype, evaluations=evaluations, settings=settings)
    recipe.write_text(stack + _tasks(recipe.read_text()))
    return recipe


def write_staged_case(folder: Path, *, evaluations: int = 8, hole: str = "") -> Path:
    """Writes models, tasks and a recipe of two stages into `folder`, first weights, then layers; returns its path."""
    recipe = write_case(folder, evaluations=evaluations)
    text = recipe.read_text()
    numbers = {key: value for key, value in yaml.safe_load(text).items() if key != "tasks"}
    stack = STACK.format(
        models=f"weights, {folder}/a", hole=hole, dtype="bfloat16", evaluations=evaluations, settings=", population: 4"
    )
    stages = {"weights": numbers, "layers": yaml.safe_load(stack)}
    recipe.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False) + _tasks(text))
    return recipe


def _tasks(text: str) -> str:
    return text[text.index("tasks:") : text.index("search: {optimizer")]


def put_nan(model: Path) -> None:
    """Makes the first element of a model's final norm NaN."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


class Watcher(Observer):
    """Keeps what it is told; `stop_at` interrupts the search as Ctrl-C would, when that trial is on record."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.fresh: list[Trial] = []
        self.notes: list[str] = []

    def trial(self, trial, fresh):
        if fresh:
            self.fresh.append(trial)
            if trial.number == self.stop_at:
                raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def search(
    recipe: Path | Recipe, folder: Path, watcher: Watcher | None = None, storage: str | None = None, **changes
) -> ReportData:
    watching = nullcontext(watcher or Watcher())
    return api.search(recipe, folder, device="cpu", storage=storage, watching=lambda _spec, _stage: watching, **changes)
