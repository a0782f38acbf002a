"""`ReportData`: the best merges and all parents on the holdout, with intervals and a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evomerge.errors import ArchitectureError, StudyError
from evomerge.merge import plan
from evomerge.recipe import Recipe
from evomerge.runtime import by_reference, verify_fold
from evomerge.search import Outcome
from evomerge.study.comparison import Comparison, Optimism, compare, optimism
from evomerge.study.intervals import interval
from evomerge.study.objective import Objective
from evomerge.study.record import RESULT, write_atomically
from evomerge.study.search_spec import SearchSpec
from evomerge.study.standings import FINALISTS
from evomerge.study.study import Study
from evomerge.study.trial import MEAN, Trial, items_scored


@dataclass(frozen=True)
class ModelResult:
    """One model's scores.

    Attributes:
        name: a model's name, ``mean``, or ``trial N``.
        search: the objective on the search split; None if it failed.
        holdout: the objective on the holdout split; None if it failed.
        interval: the holdout's 95% interval.
        tasks: the holdout's mean of each task.
        error: why it failed, if it did.
    """

    name: str
    search: float | None
    holdout: float | None
    interval: tuple[float, float] | None
    tasks: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True)
class ReportData:
    """The result of a search.

    Attributes:
        parents: the models that were merged.
        base: the ancestor, where it is not a parent.
        mean: the parents' plain mean, where they have one.
        finalists: the best merges by search score, the winner first.
        recipe: the winner's.
        comparisons: the winner on the holdout, paired by item with each of the competitors that were scored there.
        evaluations: candidates on record.
        failures: those of them that could not be scored.
        items_scored: the scores of search items that the candidates took.
        seconds: spent on ``build``, ``evaluate`` and ``other`` in all search evaluations.
        fold: how much the logits change when the winner's scales are folded into its weights, in float32, relative to
            the largest logit; or why they cannot be folded. None where scales are not searched.
        others: further models to beat: those of earlier stages.
        optimism: how much the winner's search score overstates it; None where it or all competitors failed.
        standardized: whether the objective is of standardized scores, see `Objective.scales`.
        test_sets: the tasks whose search items are of a well-known test set.
    """

    parents: Sequence[ModelResult]
    base: ModelResult | None
    mean: ModelResult | None
    finalists: Sequence[ModelResult]
    recipe: Recipe
    comparisons: Sequence[Comparison]
    evaluations: int
    failures: int
    items_scored: int
    seconds: Mapping[str, float]
    fold: float | str | None = None
    others: Sequence[ModelResult] = ()
    optimism: Optimism | None = None
    standardized: bool = False
    test_sets: Sequence[str] = ()

    @property
    def winner(self) -> ModelResult:
        """The best merge by search score."""
        return self.finalists[0]

    @property
    def competitors(self) -> list[ModelResult]:
        """The models to beat: the parents, the base, the parents' mean and the others, if scored on the holdout."""
        others = [*self.parents, *filter(None, (self.base, self.mean)), *self.others]
        return [other for other in others if other.holdout is not None and other.name != self.winner.name]

    @property
    def rival(self) -> ModelResult | None:
        """The competitor with the highest holdout score; None if all failed."""
        return max(self.competitors, key=lambda other: other.holdout or 0.0, default=None)

    @property
    def comparison(self) -> Comparison | None:
        """The winner compared with `rival`; None where either was not scored on the holdout."""
        rival = self.rival
        return next((one for one in self.comparisons if rival and one.model == rival.name), None)

    @property
    def difference_interval(self) -> tuple[float, float] | None:
        """The 95% interval of the winner's difference to the best competitor; None as for `comparison`.

        The lowest of either end over all competitors: the best of them on these items may not be the best of all.
        """
        low, high = (min((one.interval[end] for one in self.comparisons), default=None) for end in (0, 1))
        return None if low is None or high is None else (low, high)

    @property
    def beaten(self) -> bool:
        """Whether the winner beats every competitor on the holdout significantly, by the paired interval."""
        searched = self.winner.name != MEAN  # The plain mean needs no search, and does not beat itself.
        return searched and self.difference_interval is not None and self.difference_interval[0] > 0

    @property
    def verdict(self) -> str:
        """One sentence: whether the winner beats its competitors."""
        comparison = self.comparison
        if comparison is None or self.difference_interval is None:
            return "Undecided: the winner, or every model to compare it with, could not be scored on the holdout."
        low, high = self.difference_interval
        best = f"the best of its competitors, {_named(comparison)}, on the holdout"
        gap = f"({comparison.difference:+.3f}, 95% interval {low:+.3f} to {high:+.3f})"
        failed = [
            other.name
            for other in (*self.parents, self.base, self.mean, *self.others)
            if other and other.holdout is None
        ]
        rest = f" Not scored: {', '.join(failed)}." if failed else ""
        if self.beaten:
            return f"Beaten: the winner scores above {best} {gap}.{rest}"
        if self.winner.name == MEAN:
            return f"Not beaten: the winner is the mean of the parents; compared with {best}: {gap}.{rest}"
        return f"Not beaten: the winner does not score significantly above {best} {gap}.{rest}"

    @property
    def notes(self) -> list[str]:
        """What else to know about the verdict, a sentence each."""
        found = []
        if self.test_sets:
            found.append(
                f"The search items of {', '.join(self.test_sets)} are of a test set: the winner was chosen on it, so do"
                " not compare its scores on that test set with those of other models."
            )
        comparison = self.comparison
        if comparison:
            found.append(
                f"Against {_named(comparison)}: {comparison.counts}; better in {comparison.bootstrap_better:.1%} of"
                " bootstrap resamples."
            )
        if self.optimism:
            low, high = self.optimism.interval
            found.append(
                f"Optimism of the winner's search score: {self.optimism.estimate:+.3f} (95% interval {low:+.3f} to"
                f" {high:+.3f}); from search to holdout it changes by {-self.optimism.drop:+.3f}, its competitors' by"
                f" {-self.optimism.others_drop:+.3f}."
            )
        if comparison and comparison.items_needed and not self.beaten and comparison.items_needed > comparison.items:
            found.append(
                f"The holdout of {comparison.items:,} items is too small for a difference of"
                f" {comparison.difference:+.3f}: about {comparison.items_needed:,} would show it with 80% power."
            )
        return found

    def as_data(self) -> dict[str, Any]:
        """Returns the report as plain data, as result.json holds it.

        Beside the models: ``difference``, to the best competitor; ``comparisons``, see `Comparison`, one for each
        competitor; ``optimism``, see `Optimism`; ``notes``, sentences to show with the verdict.
        """
        data = {
            "verdict": self.verdict,
            "notes": self.notes,
            "beaten": self.beaten,
            "parents": [_model_result(parent, "model") for parent in self.parents],
            "base": _model_result(self.base, "model") if self.base else None,
            "mean": _model_result(self.mean, "model") if self.mean else None,
            "winner": {"recipe": self.recipe.as_data(), **_model_result(self.winner, "trial")},
            "finalists": [_model_result(finalist, "trial") for finalist in self.finalists],
            "difference": {
                "to": self.rival.name if self.rival else None,
                "holdout": self.comparison.difference if self.comparison else None,
                "holdout_ci": list(self.difference_interval) if self.difference_interval else None,
            },
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "optimism": asdict(self.optimism) if self.optimism else None,
            "evaluations": self.evaluations,
            "failures": self.failures,
            "items_scored": self.items_scored,
            "seconds": dict(self.seconds),
        }
        if self.others:
            data["others"] = [_model_result(other, "model") for other in self.others]
        if self.fold is not None:
            folded = isinstance(self.fold, float)
            data["fold"] = {"difference": self.fold} if folded else {"error": self.fold}
        return data


def _named(comparison: Comparison) -> str:
    return "the mean of the parents" if comparison.model == MEAN else comparison.model


def _model_result(result: ModelResult, label: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        label: result.name,
        "search": result.search,
        "holdout": result.holdout,
        "holdout_ci": list(result.interval) if result.interval else None,
        "holdout_tasks": dict(result.tasks),
    }
    return {**found, "error": result.error} if result.error else found


def conclude(study: Study, others: Mapping[str, tuple[Outcome, Outcome]] | None = None) -> ReportData:
    """Scores the finalists, the mean and every parent on the holdout, and writes result.json.

    Each holdout score is recorded as soon as it is known; after a kill, only the rest is scored.

    Args:
        study: a search that has run.
        others: further models to beat, with their outcomes on the search items and on the holdout.

    Raises:
        StudyError: no merge could be scored, or the result cannot be written.
    """
    spec = study.spec
    ranked = study.ranked()
    if not ranked:
        raise StudyError("no merge could be scored, so there is no winner; the record has the error of each")
    finalists = ranked[:FINALISTS]
    means = [trial for trial in study.record.trials if not trial.proposal]
    trials: list[Trial] = list({trial.number: trial for trial in [*finalists, *means]}.values())
    recipes = {name: spec.parent_recipe(name) for name in study.baselines}
    recipes |= {trial.name: Recipe.model_validate(trial.recipe) for trial in trials}
    outcomes: dict[str, Outcome] = {}
    for i, (name, recipe) in enumerate(recipes.items()):
        study.observer.holdout(name, i, len(recipes))
        outcomes[name] = study.on_record(f"holdout:{name}", recipe, name, "holdout")
    searched = dict(study.baselines) | {trial.name: trial.outcome for trial in trials}
    further = {name: pair for name, pair in (others or {}).items() if name not in outcomes}
    searched |= {name: found for name, (found, _) in further.items()}
    outcomes |= {name: found for name, (_, found) in further.items()}
    report = replace(_concluded(study, finalists, outcomes, searched, list(further)), fold=_fold(study, finalists[0]))
    data = {**report.as_data(), "search": _asked(spec, study.objective)}
    write_atomically(study.folder / RESULT, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    study.record.set_attribute("holdout", "done")
    return report


def _fold(study: Study, winner: Trial) -> float | str | None:
    """Returns `ReportData.fold` of the winner."""
    stacks = study.spec.stacks
    if stacks is None or stacks.scale is None:
        return None
    made = plan(Recipe.model_validate(winner.recipe), study.spec.checkpoints)
    if all(layer.scale == 1.0 for layer in by_reference(made) or ()):
        return 0.0
    try:
        return verify_fold(made)
    except ArchitectureError as fault:
        study.observer.note(f"the winner's scales are not the same in its written weights: {fault}")
        return str(fault)


def _asked(spec: SearchSpec, objective: Objective) -> dict[str, Any]:
    """Returns how the search was done, and on what, as result.json holds it."""
    return {
        "optimizer": spec.settings.optimizer,
        "seed": spec.settings.seed,
        "tasks": [
            {
                "task": task.name,
                "metric": task.metric,
                "weight": entry.weight,
                "holdout_items": len(task.items("holdout")),
                "searched_test_set": task.searches_test_set,
                "holdout_data": task.hub_rows("holdout"),
                "scale": scale._asdict() if (scale := objective.scales.get(task.name)) else None,
            }
            for task, entry in zip(spec.tasks, spec.recipe.tasks, strict=True)
        ],
    }


def _concluded(
    study: Study,
    finalists: Sequence[Trial],
    outcomes: Mapping[str, Outcome],
    searched: Mapping[str, Outcome],
    others: Sequence[str],
) -> ReportData:
    spec = study.spec
    weights = study.objective.slopes

    def result(name: str) -> ModelResult:
        outcome = outcomes[name]
        value = study.value(outcome)
        bounds = None
        if value is not None:
            # The objective is the weighted sum, up to a constant where tasks are normalized.
            shift = value - sum(weight * outcome.means[task] for task, weight in weights.items())
            low, high = interval(outcome.scored, weights)
            bounds = (min(low + shift, value), max(high + shift, value))
        return ModelResult(name, study.value(searched[name]), value, bounds, outcome.means, outcome.error)

    spent = [trial.outcome for trial in study.record.trials] + list(study.baselines.values())
    found = ReportData(
        parents=[result(name) for name in spec.parents],
        base=result(spec.base) if spec.base else None,
        mean=result(MEAN) if MEAN in searched and searched[MEAN].scored else None,
        others=[result(name) for name in others],
        finalists=[result(trial.name) for trial in finalists],
        recipe=Recipe.model_validate(finalists[0].recipe),
        comparisons=(),
        standardized=bool(study.objective.scales),
        test_sets=[task.name for task in spec.tasks if task.searches_test_set],
        evaluations=len(study.candidates),
        items_scored=items_scored(study.record.trials),
        failures=sum(trial.objective is None for trial in study.candidates),
        seconds={part: sum(o.seconds[part] for o in spent) for part in ("build", "evaluate", "other")},
    )
    if found.winner.holdout is None or not found.competitors:
        return found
    own = outcomes[found.winner.name].scored
    names = [other.name for other in found.competitors]
    known = [(searched[name], outcomes[name]) for name in (found.winner.name, *names) if searched[name].scored]
    return replace(
        found,
        comparisons=[compare(own, outcomes[name].scored, weights, name) for name in names],
        optimism=optimism(known[0], known[1:], weights) if len(known) > 1 else None,
    )
