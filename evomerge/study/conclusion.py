"""The end of a search: the best merges and all parents on the holdout, with intervals, and a plain verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.study.intervals import interval, resampled_objectives
from evomerge.study.record import Outcome, Trial, write_atomically
from evomerge.study.study import Study

FINALISTS = 5
"""Merges that are scored on the holdout. The first is the winner: were it chosen by its holdout score, that score
would be the highest of five draws, and no longer honest."""

RESULT = "result.json"


@dataclass(frozen=True)
class Standing:
    """One model's scores.

    Attributes:
        name: a model's name, ``mean``, or ``trial N``.
        search: the objective on the search split; None where it failed.
        holdout: the objective on the holdout split; None where it failed.
        interval: its 95% bootstrap interval, paired by item with all others'.
        tasks: the holdout's mean of each task.
        error: why it failed, where it did.
    """

    name: str
    search: float | None
    holdout: float | None
    interval: tuple[float, float] | None
    tasks: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True)
class Conclusion:
    """What a search found.

    Attributes:
        parents: the models that were merged.
        base: the ancestor, where it is not a parent.
        mean: the parents' plain mean, where they have one.
        finalists: the best merges by search score, the winner first.
        recipe: the winner's.
        best_parent: the parent with the highest holdout score; None where all failed.
        difference: the winner's holdout score less the best parent's.
        difference_interval: its 95% bootstrap interval.
        evaluations: candidates on record.
        failures: those of them that could not be scored.
        seconds: spent on ``build``, ``evaluate`` and ``other`` in all search evaluations.
    """

    parents: Sequence[Standing]
    base: Standing | None
    mean: Standing | None
    finalists: Sequence[Standing]
    recipe: Recipe
    best_parent: Standing | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    evaluations: int
    failures: int
    seconds: Mapping[str, float]

    @property
    def winner(self) -> Standing:
        """The best merge by search score."""
        return self.finalists[0]

    @property
    def beaten(self) -> bool:
        """Whether the winner beats every parent on the holdout, beyond the doubt of its paired interval."""
        return self.difference_interval is not None and self.difference_interval[0] > 0

    @property
    def apart(self) -> bool:
        """Whether the winner's interval lies wholly above every parent's."""
        own = self.winner.interval
        others = [parent.interval for parent in self.parents if parent.interval]
        return own is not None and all(own[0] > other[1] for other in others)

    @property
    def verdict(self) -> str:
        """One plain sentence: beaten, or not."""
        if self.winner.holdout is None or self.best_parent is None or self.difference_interval is None:
            return "Undecided: the winner or all parents could not be scored on the holdout."
        low, high = self.difference_interval
        gap = f"{self.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f}"
        if self.beaten:
            return f"Beaten: the winner scores above the best parent, {self.best_parent.name}, on the holdout ({gap})."
        return f"Not beaten: the winner is not surely above the best parent, {self.best_parent.name} ({gap})."

    def as_data(self) -> dict[str, Any]:
        """Returns the conclusion as plain data, as result.json holds it."""
        return {
            "verdict": self.verdict,
            "beaten": self.beaten,
            "parents": [_standing(parent, "model") for parent in self.parents],
            "base": _standing(self.base, "model") if self.base else None,
            "mean": _standing(self.mean, "model") if self.mean else None,
            "winner": {"recipe": self.recipe.as_data(), **_standing(self.winner, "trial")},
            "finalists": [_standing(finalist, "trial") for finalist in self.finalists],
            "difference": {
                "to": self.best_parent.name if self.best_parent else None,
                "holdout": self.difference,
                "holdout_ci": list(self.difference_interval) if self.difference_interval else None,
            },
            "evaluations": self.evaluations,
            "failures": self.failures,
            "seconds": dict(self.seconds),
        }


def _standing(standing: Standing, label: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        label: standing.name,
        "search": standing.search,
        "holdout": standing.holdout,
        "holdout_ci": list(standing.interval) if standing.interval else None,
        "holdout_tasks": dict(standing.tasks),
    }
    return {**found, "error": standing.error} if standing.error else found


def conclude(study: Study) -> Conclusion:
    """Scores the finalists, the mean and every parent on the holdout, and writes result.json.

    Each holdout score is put on record as soon as it is there; after a kill, only the rest is done.

    Args:
        study: a search that has run.

    Raises:
        StudyError: no merge could be scored, or the result cannot be written.
    """
    preparation = study.preparation
    ranked = study.ranked()
    if not ranked:
        raise StudyError("no merge could be scored, so there is no winner; the record has each one's error")
    finalists = ranked[:FINALISTS]
    trials: list[Trial] = list({trial.number: trial for trial in [*finalists, *_mean(study)]}.values())
    recipes = {name: preparation.parent_recipe(name) for name in study.baselines}
    recipes |= {_name(trial): Recipe.parse(trial.recipe) for trial in trials}
    outcomes: dict[str, Outcome] = {}
    for i, (name, recipe) in enumerate(recipes.items()):
        study.observer.holdout(name, i, len(recipes))
        outcomes[name] = study.on_record(f"holdout:{name}", recipe, name, "holdout")
    searched = {name: study.value(outcome) for name, outcome in study.baselines.items()}
    searched |= {_name(trial): trial.objective for trial in trials}
    conclusion = _concluded(study, finalists, outcomes, searched)
    write_atomically(study.folder / RESULT, json.dumps(conclusion.as_data(), indent=2, ensure_ascii=False) + "\n")
    study.record.set_attribute("holdout", "done")
    return conclusion


def _concluded(
    study: Study,
    finalists: Sequence[Trial],
    outcomes: Mapping[str, Outcome],
    searched: Mapping[str, float | None],
) -> Conclusion:
    preparation = study.preparation
    scored = {name: outcome.items for name, outcome in outcomes.items() if outcome.items is not None}
    samples = dict(
        zip(
            scored,
            resampled_objectives(list(scored.values()), study.objective, preparation.settings.seed),
            strict=True,
        )
        if scored
        else ()
    )

    def standing(name: str) -> Standing:
        outcome = outcomes[name]
        bounds = interval(samples[name]) if name in samples else None
        tasks = outcome.means or {}
        return Standing(name, searched[name], study.value(outcome), bounds, tasks, outcome.error)

    parents = [standing(name) for name in preparation.parents]
    winner = standing(_name(finalists[0]))
    best_parent = max(
        (parent for parent in parents if parent.holdout is not None),
        key=lambda parent: parent.holdout or 0.0,
        default=None,
    )
    difference = difference_interval = None
    if best_parent is not None and winner.holdout is not None:
        difference = winner.holdout - (best_parent.holdout or 0.0)
        # Against every parent on each resample: the best one on these items may not be the best one there.
        best = np.max([samples[parent.name] for parent in parents if parent.name in samples], axis=0)
        difference_interval = interval(samples[winner.name] - best)
    candidates = [trial for trial in study.record.trials if trial.kind == "candidate"]
    spent = [trial.outcome for trial in study.record.trials] + list(study.baselines.values())
    mean = _mean(study)
    return Conclusion(
        parents=parents,
        base=standing(preparation.base) if preparation.base else None,
        mean=standing(_name(mean[0])) if mean and mean[0].objective is not None else None,
        finalists=[standing(_name(trial)) for trial in finalists],
        recipe=Recipe.parse(finalists[0].recipe),
        best_parent=best_parent,
        difference=difference,
        difference_interval=difference_interval,
        evaluations=len(candidates),
        failures=sum(trial.objective is None for trial in candidates),
        seconds={part: sum(o.seconds[part] for o in spent) for part in ("build", "evaluate", "other")},
    )


def _mean(study: Study) -> list[Trial]:
    return [trial for trial in study.record.trials if trial.kind == "mean"]


def _name(trial: Trial) -> str:
    return "mean" if trial.kind == "mean" else f"trial {trial.number}"
