"""Measure what scoring candidates on subsets of the search items saves, and what it costs.

    python scripts/bench_items.py recipes/quickstart.yaml --seeds 5 --evaluations 90 --json > items.json

Searches with all items for each candidate, and with subsets (`items: auto`, or what --items says), once for each
seed. Then it replays each record: which merge was best after so many item evaluations, as best.yaml had it, and how
that merge scores on the holdout, which no search sees. Item evaluations are those of candidates, and at the end those
of the finalists; the models to merge and their mean are scored on all items by both. Takes five minutes for five seeds
of the quickstart on two processor cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evomerge import api
from evomerge.recipe import Recipe
from evomerge.study import LoadedRun, Observer, SearchSpec, Trial, load_run, prepare
from evomerge.study.scoring import Scoring
from evomerge.study.standings import best_of
from evomerge.study.trial import items_scored

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the item evaluations of a search with all items: where the two are compared."""


class Step(NamedTuple):
    """The best merge after some item evaluations: its recipe's key, and how many they were."""

    items: int
    trial: Trial


def steps(run: LoadedRun) -> Iterator[Step]:
    """Yields the best merge after each generation, and at the end of the search."""
    candidates = [trial for trial in run.trials if trial.proposal]
    for i, trial in enumerate(candidates):
        after = candidates[i + 1] if i + 1 < len(candidates) else None
        known = run.trials[: trial.number + 1]
        whole = trial.outcome.standard_error == 0 and not trial.final
        if after is None or whole or (not trial.final and _generation(after) != _generation(trial)):
            best = best_of(known)
            if best is not None:
                yield Step(items_scored(known), best)


def _generation(trial: Trial) -> tuple[bool, int]:
    return trial.final, trial.proposal.generation if trial.proposal else -1


class Holdout:
    """Scores merges of a search on the holdout, each once."""

    def __init__(self, spec: SearchSpec, run: LoadedRun) -> None:
        self._scoring = Scoring(spec, "cpu", spec.runs_in(torch_cpu()), Observer(), list)
        self._objective = run.objective
        self._known: dict[str, float] = {}

    def __call__(self, trial: Trial) -> float:
        """Returns the objective of a merge on the holdout."""
        if trial.key not in self._known:
            outcome = self._scoring.outcome(Recipe.model_validate(trial.recipe), trial.name, "holdout")
            value = self._objective.value(outcome)
            assert value is not None, outcome.error
            self._known[trial.key] = value
        return self._known[trial.key]


def torch_cpu() -> Any:
    """Returns the processor as a device."""
    import torch

    return torch.device("cpu")


def search(recipe: Recipe, folder: Path, **changes: Any) -> LoadedRun:
    """Returns the record of a search with other settings."""
    settings = recipe.settings().model_validate({**recipe.settings().model_dump(), **changes})
    other = recipe.model_copy(update={"search": settings})
    api.search(other, folder, device="cpu", watching=lambda _spec, _stage: nullcontext(Observer()))
    return load_run(folder)


def at(curve: Sequence[tuple[int, float]], items: float) -> float | None:
    """Returns the score after so many item evaluations; None before the first."""
    return next((score for count, score in reversed(curve) if count <= items), None)


def mean_at(curves: Sequence[Sequence[tuple[int, float]]], items: float) -> float | None:
    """Returns the mean of several curves; None where one has not begun."""
    found = [at(curve, items) for curve in curves]
    known = [score for score in found if score is not None]
    return sum(known) / len(known) if len(known) == len(found) else None


def summary(kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns the mean holdout scores of both kinds of search after shares of the full search's item evaluations."""
    whole = max(run["curve"][-1][0] for run in kinds["all"])
    found: dict[str, Any] = {"item_evaluations_of_all": whole}
    for kind, runs in kinds.items():
        curves = [run["curve"] for run in runs]
        found[kind] = {
            "item_evaluations": round(sum(curve[-1][0] for curve in curves) / len(curves)),
            "end": round(sum(curve[-1][1] for curve in curves) / len(curves), 4),
            "at_share": {f"{share:g}": mean_at(curves, share * whole) for share in SHARES},
        }
    return found


def main() -> None:
    """Prints the means, or all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a search recipe")
    parser.add_argument("--seeds", type=int, default=5, help="searches of each kind (default: 5)")
    parser.add_argument("--items", type=yaml.safe_load, default="auto", help="of the second kind (default: auto)")
    parser.add_argument("--evaluations", type=int, help="of the second kind (default: the recipe's)")
    parser.add_argument("--folder", type=Path, help="keeps the runs, and takes those that it has (default: none)")
    parser.add_argument("--json", action="store_true", help="print every run's curve too, as JSON")
    arguments = parser.parse_args()
    recipe = Recipe.load(arguments.recipe)
    spec = prepare(recipe)
    more = arguments.evaluations or spec.settings.evaluations
    settings: dict[str, dict[str, Any]] = {"all": {"items": "all"}, "subsets": {"items": arguments.items}}
    settings["subsets"]["evaluations"] = more
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in settings}
    holdout: Holdout | None = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for kind, changes in settings.items():
            for seed in range(arguments.seeds):
                name = "all" if kind == "all" else f"{json.dumps(arguments.items)}-{more}".replace("/", "")
                run = search(recipe, folder / f"{name}-{seed}", seed=seed, **changes)
                holdout = holdout or Holdout(spec, run)
                curve = [(step.items, holdout(step.trial)) for step in steps(run)]
                found[kind].append({"seed": seed, "curve": curve, "seconds": run.result and run.result["seconds"]})
    told = summary(found)
    print(json.dumps({"summary": told, "runs": found}) if arguments.json else json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
