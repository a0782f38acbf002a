"""Measure what scoring candidates on subsets of the search items saves, and what it costs.

    python scripts/bench_items.py recipes/quickstart.yaml --seeds 5 --evaluations 90 --svg items.svg

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

import numpy as np
import yaml

from evomerge import api
from evomerge.recipe import Recipe
from evomerge.report.canvas import Canvas
from evomerge.report.charts import WIDE, Axis, frame
from evomerge.study import LoadedRun, Observer, SearchSpec, Trial, load_run, prepare
from evomerge.study.scoring import Scoring
from evomerge.study.standings import best_of
from evomerge.study.trial import items_scored

Curve = Sequence[tuple[int, float]]
"""Item evaluations, and the holdout score of the merge that was best after them."""

BAND = ' fill-opacity="0.18" shape-rendering="crispEdges"'

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


def at(curve: Curve, items: float) -> float | None:
    """Returns the score after so many item evaluations; None before the first."""
    return next((score for count, score in reversed(curve) if count <= items), None)


def mean_at(curves: Sequence[Curve], items: float) -> tuple[float, float] | None:
    """Returns the mean of several curves, and its standard error; None where one has not begun."""
    known = [score for curve in curves if (score := at(curve, items)) is not None]
    return mean(known) if len(known) == len(curves) else None


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of several searches' values, and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def means(curves: Sequence[Curve]) -> list[tuple[int, float, float]]:
    """Returns the mean of several curves wherever one has a step: the item evaluations, the mean, its error."""
    counts = sorted({count for curve in curves for count, _ in curve})
    return [(count, *found) for count in counts if (found := mean_at(curves, count))]


def summary(kinds: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """Returns the mean holdout scores of both kinds of search, with standard errors, and the difference at the end."""
    whole = max(curve[-1][0] for curve in kinds["all"])
    found: dict[str, Any] = {"item_evaluations_of_all": whole}
    for kind, curves in kinds.items():
        found[kind] = {
            "item_evaluations": round(sum(curve[-1][0] for curve in curves) / len(curves)),
            "end": mean([curve[-1][1] for curve in curves]),
            "at_share": {f"{share:g}": mean_at(curves, share * whole) for share in SHARES},
        }
    end = found["subsets"]["end"][0]
    found["difference"] = mean([b[-1][1] - a[-1][1] for a, b in zip(kinds["all"], kinds["subsets"], strict=True)])
    found["all_reaches_end_of_subsets_at"] = next((n for n, score, _ in means(kinds["all"]) if score >= end), None)
    return found


def picture(kinds: Mapping[str, Sequence[Curve]], names: Mapping[str, str]) -> Canvas:
    """Returns the mean curves, each with a band of its standard error to both sides.

    Args:
        kinds: each kind's curves.
        names: what each kind is called.
    """
    page = Canvas(WIDE, "holdout score over item evaluations")
    found = {kind: means(curves) for kind, curves in kinds.items()}
    bounds = [score + side * error for steps in found.values() for _, score, error in steps for side in (-1, 1)]
    top, bottom, left = 30.0, 290.0, 44.0
    across = Axis(0, max(steps[-1][0] for steps in found.values()), left, WIDE - 8)
    up = Axis(min(bounds), max(bounds), bottom, top)
    frame(page, across, up, (left, WIDE, bottom))
    page.text((left + WIDE) / 2, bottom + 34, "item evaluations", "soft", anchor="middle")
    for i, (kind, line, area) in enumerate((("all", "middle", "heat"), ("subsets", "best", "m1"))):
        points: list[tuple[float, float]] = []
        for (count, score, error), after in zip(found[kind], [*found[kind][1:], None], strict=True):
            x, end = across.at(count), across.at(after[0] if after else count)
            page.rect(x, up.at(score + error), (end - x, up.at(score - error) - up.at(score + error)), area, BAND)
            points += [(x, up.at(score)), (end, up.at(score))]
        page.line(line, *points)
        page.dot(*points[-1], 4.5, area)
        page.rect(left + 200 * i, 4, (12, 12), area)
        page.text(left + 200 * i + 18, 15, names[kind])
    page.y = bottom + 42
    return page


def main() -> None:
    """Prints the means, or all as JSON; draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a search recipe")
    parser.add_argument("--seeds", type=int, default=5, help="searches of each kind (default: 5)")
    parser.add_argument("--items", type=yaml.safe_load, default="auto", help="of the second kind (default: auto)")
    parser.add_argument("--evaluations", type=int, help="of the second kind (default: the recipe's)")
    parser.add_argument("--folder", type=Path, help="keeps the runs, and takes those that it has (default: none)")
    parser.add_argument("--json", action="store_true", help="print every run's curve too, as JSON")
    parser.add_argument("--svg", type=Path, help="draw the curves into this file")
    arguments = parser.parse_args()
    recipe = Recipe.load(arguments.recipe)
    spec = prepare(recipe)
    more = arguments.evaluations or spec.settings.evaluations
    settings: dict[str, dict[str, Any]] = {
        "all": {"items": "all", "evaluations": spec.settings.evaluations},
        "subsets": {"items": arguments.items, "evaluations": more},
    }
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
    curves = {kind: [run["curve"] for run in runs] for kind, runs in found.items()}
    told = summary(curves)
    if arguments.svg:
        arguments.svg.write_text(
            picture(
                curves,
                {kind: f"items: {one['items']}, {one['evaluations']} evaluations" for kind, one in settings.items()},
            ).file(space=16)
        )
    print(json.dumps({"summary": told, "runs": found}) if arguments.json else json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
