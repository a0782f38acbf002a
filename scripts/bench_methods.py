"""Compare merge methods on the quickstart's models: at plain settings, and after a short search of their settings.

    python scripts/bench_methods.py [--evaluations 30] [--seeds 2] [--optimizer tpe] [--only METHOD ...] [--json]

Every method merges `addition` and `spanish` from recipes/quickstart/, with `base` where it takes task vectors. At plain
settings, a weight is 1 (0.5 where methods average) and all else is the method's default, or what its paper suggests. A
search fills the holes that the tables below name, and its winner is scored on the holdout. Printed are mean
scores of the two tasks on the holdout. With one thread, all of it takes about 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import evomerge
from evomerge.methods import METHODS
from evomerge.recipe import Recipe

MODELS = Path("recipes/quickstart")
TASKS = (Path("eval_tasks/quickstart_addition.yaml"), Path("eval_tasks/quickstart_spanish.yaml"))

SHARE = {"search": [0, 1], "layers": 3}
"""A weight of a method that averages: its sum over the models does not matter."""
WEIGHT = {"search": [0, 1.5], "layers": 3}
"""A weight of a task vector."""
DENSITY = {"search": [0.1, 1]}

AVERAGES = ("linear", "nuslerp", "multislerp")
"""They need no base."""
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({}, {}),
    "slerp": ({"t": 0.5}, {"t": {"search": [0, 1], "layers": 3}}),
    "nuslerp": ({}, {}),
    "multislerp": ({}, {}),
    "karcher": ({}, {}),
    "task_arithmetic": ({}, {}),
    "ties": ({"density": 0.2}, {"density": DENSITY}),
    "ties, normalize: false": ({"density": 0.2, "normalize": False}, {"density": DENSITY, "normalize": False}),
    "dare_linear": ({"density": 0.5}, {"density": DENSITY}),
    "dare_ties": ({"density": 0.5}, {"density": DENSITY}),
    "della": ({"density": 0.5}, {"density": {"search": [0.2, 0.8]}}),
    "della, normalize: false": (
        {"density": 0.5, "normalize": False},
        {"density": {"search": [0.2, 0.8]}, "normalize": False},
    ),
    "della_linear": ({"density": 0.5}, {"density": {"search": [0.2, 0.8]}}),
    "breadcrumbs": ({"density": 0.9}, {"density": DENSITY}),
    "breadcrumbs_ties": ({"density": 0.9}, {"density": DENSITY}),
    "model_stock": ({}, {}),
    "sce": ({"select_topk": 0.1}, {"select_topk": {"search": [0.05, 1]}}),
    "ram": ({}, {"epsilon": {"search": [1e-5, 1e-1], "log": True}}),
    "ramplus_tl": ({}, {"epsilon": {"search": [1e-5, 1e-1], "log": True}, "r": {"search": [0, 1]}}),
    "nearswap": ({"t": 0.001}, {"t": {"search": [1e-3, 1], "log": True, "layers": 3}}),
    "arcee_fusion": ({}, {}),
    "tsv": ({}, {}),
    "iso_c": ({}, {}),
    "wudi": ({}, {}),
}
"""For each case, a method or a variant of it, what is given beside the weights: at plain settings, and in a search."""


def recipe_of(case: str, *, searched: bool) -> dict[str, Any]:
    """Returns the recipe of a case as data: at plain settings, or with holes in it."""
    method = case.partition(",")[0]
    declared = METHODS[method]
    plain, holes = CHOICES[case]
    models: list[dict[str, Any]] = [{"model": str(MODELS / name)} for name in ("addition", "spanish")]
    if any(parameter.name == "weight" for parameter in declared.parameters):
        average = method in AVERAGES
        weight: Any = (SHARE if average else WEIGHT) if searched else (0.5 if average else 1.0)
        for model in models:
            model["parameters"] = {"weight": weight}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": models,
        "parameters": holes if searched else plain,
        "dtype": "bfloat16",
    }
    if declared.base == "endpoint":
        recipe["base_model"] = models.pop(0)["model"]
    elif declared.base == "required":
        recipe["base_model"] = str(MODELS / "base")
    return recipe


def plain_score(case: str, folder: Path) -> float:
    """Returns the holdout score of a case at plain settings."""
    path = folder / "plain.yaml"
    path.write_text(json.dumps(recipe_of(case, searched=False)))
    return statistics.mean(task.score for task in evomerge.evaluate(str(path), TASKS).scores)


def searched_score(case: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the holdout score of the winner of a search, the number of holes, and the winner's recipe."""
    recipe = Recipe.model_validate(
        {
            **recipe_of(case, searched=True),
            "tasks": [{"task": str(task)} for task in TASKS],
            "search": settings,
        }
    )
    report = evomerge.search(recipe, folder / f"{case} {settings['seed']}")
    numbers = sum(hole.layers or 1 for hole in recipe.number_holes().values())
    return {**settings, "numbers": numbers, "holdout": report.winner.holdout, "recipe": report.recipe.as_data()}


def main() -> None:
    """Prints a line for each method, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=30, help="candidates of a search")
    parser.add_argument("--seeds", type=int, default=2, help="searches of each method; 0: plain settings only")
    parser.add_argument("--optimizer", default="cma-es", help="of the searches")
    parser.add_argument("--only", nargs="+", metavar="METHOD", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--json", action="store_true", help="print JSON, with the winners' recipes")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in arguments.only:
            searches = []
            if Recipe.model_validate(recipe_of(case, searched=True)).holes():
                for seed in range(arguments.seeds):
                    settings = {"optimizer": arguments.optimizer, "evaluations": arguments.evaluations, "seed": seed}
                    searches.append(searched_score(case, folder, settings))
            found[case] = {"plain": plain_score(case, folder), "searches": searches}
            if not arguments.json:
                scores = " ".join(f"{search['holdout']:.3f}" for search in searches)
                numbers = f"  {searches[0]['numbers']} numbers: {scores}" if searches else ""
                print(f"{case:<23} {found[case]['plain']:.3f}{numbers}", flush=True)
    if arguments.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
