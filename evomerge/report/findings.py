"""What a report says of a run: standings, progress, which numbers mattered, where the time went."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import Recipe
from evomerge.report.names import short_names
from evomerge.search import Outcome
from evomerge.study import LoadedRun, Trial
from evomerge.study.standings import standings as standings_of

MEAN = "mean"
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """One model's place in the comparison.

    Attributes:
        name: as people read it.
        kind: ``winner``, ``finalist``, ``parent``, ``base``, ``mean`` or ``other``.
        search: its search score; None if it failed.
        holdout: its holdout score; None if it failed or is not known yet.
        interval: the holdout's 95% interval.
        tasks: the holdout's mean of each task.
        error: why it failed, if it did.
    """

    name: str
    kind: str
    search: float | None
    holdout: float | None = None
    interval: tuple[float, float] | None = None
    tasks: Mapping[str, float] | None = None
    error: str | None = None


def standings(run: LoadedRun) -> list[Standing]:
    """Returns the winner, what it is compared with, and the runners-up; on the holdout once the search has ended."""
    if run.result is None:
        return _so_far(run)
    result = run.result
    found = [_standing(result["winner"], "winner")]
    found += [_standing(parent, "parent") for parent in result["parents"]]
    found += [_standing(other, "other") for other in result.get("others", ())]
    found += [_standing(result[kind], kind) for kind in ("mean", "base") if result[kind]]
    return found + [_standing(finalist, "finalist") for finalist in result["finalists"][1:]]


def _standing(data: Mapping[str, Any], kind: str) -> Standing:
    name = str(data.get("trial") or data["model"])
    bounds = data["holdout_ci"]
    return Standing(
        name=shown_name(name),
        kind=kind,
        search=data["search"],
        holdout=data["holdout"],
        interval=(bounds[0], bounds[1]) if bounds else None,
        tasks=data["holdout_tasks"],
        error=data.get("error"),
    )


def _so_far(run: LoadedRun) -> list[Standing]:
    best = run.best
    found = [Standing(shown_name(best.name), "winner", best.objective)] if best else []
    for name, outcome in run.baselines.items():
        kind = "parent" if name in run.parents else "base"
        found.append(Standing(shown_name(name), kind, run.value(outcome), error=outcome.error))
    mean = next((trial for trial in run.trials if not trial.proposal), None)
    if mean and mean is not best:
        found.append(Standing(shown_name(mean.name), "mean", mean.objective, error=mean.outcome.error))
    return found


def shown_name(name: str) -> str:
    """Returns a model's name without the folders that it is in, and the parents' mean in words."""
    return "mean of the parents" if name == MEAN else short_names([name])[0]


@dataclass(frozen=True)
class Progress:
    """A search over its candidates, in the order of the record.

    Attributes:
        scores: shape (candidates,); NaN where one failed.
        best: the highest score up to each candidate, the parents' mean included; NaN before the first. Candidates that
            were scored on subsets of the items count by their standings.
        middle: the median of each candidate's generation.
        seconds: the time spent up to the end of each candidate, the models to merge included.
        names: the candidates.
    """

    scores: _Floats
    best: _Floats
    middle: _Floats
    seconds: _Floats
    names: tuple[str, ...]


def progress(run: LoadedRun) -> Progress:
    """Returns how a search went."""
    candidates = run.candidates
    scores = _scores(candidates)
    mean = [trial.objective for trial in run.trials if not trial.proposal and trial.objective is not None]
    # Of candidates that were scored on subsets, the luckiest is not the best.
    known = standings_of(run.trials)
    level = [known.get(trial.number, np.nan) for trial in candidates]
    best = np.fmax.accumulate(np.concatenate([mean or [np.nan], level]))[1:]
    generations = np.array([trial.proposal.generation for trial in candidates if trial.proposal])
    middle = np.full(len(scores), np.nan)
    for generation in set(generations.tolist()):
        own = scores[generations == generation]
        if np.isfinite(own).any():
            middle[generations == generation] = np.nanmedian(own)
    before = sum(_total(outcome) for outcome in run.baselines.values())
    before += sum(_total(trial.outcome) for trial in run.trials if not trial.proposal)
    seconds = before + np.cumsum([_total(trial.outcome) for trial in candidates])
    return Progress(scores, best, middle, seconds, tuple(trial.name for trial in candidates))


def _total(outcome: Outcome) -> float:
    return sum(outcome.seconds.values())


def _scores(trials: Sequence[Trial]) -> _Floats:
    return np.array([np.nan if trial.objective is None else trial.objective for trial in trials], dtype=np.float64)


@dataclass(frozen=True)
class Relation:
    """One searched number of the scored candidates, and how it relates to their scores.

    Attributes:
        label: the number in words.
        name: its name in the record; "" where it is not searched itself.
        values: shape (scored candidates,).
        low: the lowest value there may be.
        high: the highest value there may be.
        log: whether it is searched on a logarithmic scale.
        correlation: Spearman's rank correlation with the scores, from -1 to 1; 0 where either is constant.
    """

    label: str
    name: str
    values: _Floats
    low: float
    high: float
    log: bool
    correlation: float


def relations(run: LoadedRun) -> tuple[list[Relation], _Floats]:
    """Returns what is known of each searched number, the strongest relation first; and the candidates' scores.

    Of stacks, the numbers are the depth and the number of changes from one model to another.
    """
    scored = [trial for trial in run.candidates if trial.objective is not None]
    scores = _scores(scored)
    found = []
    if run.recipe.stack_hole:
        stacks = [layers_of(trial) for trial in scored]
        columns = {
            "layers of the stack": [len(stack) for stack in stacks],
            "changes of model": [sum(one[0] != other[0] for one, other in pairwise(stack)) for stack in stacks],
        }
        for label, column in columns.items():
            values = np.array(column, dtype=np.float64)
            low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
            found.append(Relation(label, "", values, low, high, False, rank_correlation(values, scores)))
        return found, scores
    short = dict(zip(run.recipe.references(), short_names(run.recipe.references()), strict=True))
    for name, (low, high, log) in run.ranges.items():
        values = np.array([run.numbers[trial.number][name] for trial in scored], dtype=np.float64)
        label = number_label(name, run.recipe, short, list(run.ranges))
        found.append(Relation(label, name, values, low, high, log, rank_correlation(values, scores)))
    return sorted(found, key=lambda relation: -abs(relation.correlation)), scores


def number_label(name: str, recipe: Recipe, short: Mapping[str, str], names: Sequence[str]) -> str:
    """Returns a searched number in words: ``math: weight, 2 of 3`` for ``models[0].parameters.weight[1]``.

    Args:
        name: its name in the record.
        recipe: the search recipe.
        short: short names of its models.
        names: the names of all searched numbers.
    """
    text = name
    own = re.match(r"models\[(\d+)\]\.parameters\.", name)
    if own and recipe.models:
        text = f"{short[recipe.models[int(own[1])].model]}: {name[own.end() :]}"
    part = re.search(r"\[(\d+)\]$", name)
    if part:
        stem = name[: part.start()]
        last = max(
            int(other[len(stem) + 1 : -1]) for other in names if re.fullmatch(re.escape(stem) + r"\[\d+\]", other)
        )
        text = f"{text[: -len(part[0])]}, {int(part[1]) + 1} of {last + 1}"
    return text.removeprefix("parameters.")


def rank_correlation(first: _Floats, second: _Floats) -> float:
    """Returns Spearman's rank correlation, ties with their mean rank; 0 where either is constant.

    Spearman 1904, "The proof and measurement of association between two things", American Journal of Psychology 15.
    """
    if not len(first):
        return 0.0
    one, other = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    spread = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / spread if spread else 0.0


def _ranks(values: _Floats) -> _Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: _Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def layers_of(trial: Trial) -> list[tuple[str, int]]:
    """Returns the layers of a stack, each with its model, from the first to the last."""
    sources = [source for part in trial.recipe["slices"] for source in part["sources"]]
    return [(source["model"], layer) for source in sources for layer in range(*source["layer_range"])]


@dataclass(frozen=True)
class LayerUse:
    """How much a search for stacks uses each layer.

    Attributes:
        models: short names of the models.
        of_best: shape (models, layers): the share of the best quarter of candidates that use the layer; NaN where the
            model has no such layer on record.
        of_all: the same of all scored candidates.
    """

    models: tuple[str, ...]
    of_best: _Floats
    of_all: _Floats


def layer_use(run: LoadedRun) -> LayerUse | None:
    """Returns the use of layers; None where no stacks are searched, or fewer than four are scored."""
    hole = run.recipe.stack_hole
    scored = sorted(
        (trial for trial in run.candidates if trial.objective is not None), key=lambda trial: -(trial.objective or 0.0)
    )
    if hole is None or len(scored) < 4:
        return None
    names = hole.search.models
    stacks = [set(layers_of(trial)) for trial in scored]
    depths = [1 + max((i for stack in stacks for model, i in stack if model == name), default=-1) for name in names]

    def shares(some: Sequence[set[tuple[str, int]]]) -> _Floats:
        found = np.full((len(names), max(depths)), np.nan)
        for row, (name, depth) in enumerate(zip(names, depths, strict=True)):
            for layer in range(depth):
                found[row, layer] = sum((name, layer) in stack for stack in some) / len(some)
        return found

    return LayerUse(short_names(names), shares(stacks[: max(1, len(stacks) // 4)]), shares(stacks))


def failures(run: LoadedRun) -> list[tuple[str, list[str]]]:
    """Returns each error of candidates and models, the most frequent first, with the names of those that it ended."""
    found: dict[str, list[str]] = {}
    ended = [(shown_name(name), outcome) for name, outcome in run.baselines.items()]
    for name, outcome in [*ended, *((shown_name(trial.name), trial.outcome) for trial in run.trials)]:
        if outcome.error:
            found.setdefault(outcome.error, []).append(name)
    return sorted(found.items(), key=lambda one: -len(one[1]))


@dataclass(frozen=True)
class Spent:
    """What a search cost.

    Attributes:
        seconds: by ``build``, ``evaluate``, ``other``, of candidates and the models to merge; and ``holdout``.
        prompt_tokens: tokens that models read.
        new_tokens: tokens that models wrote.
    """

    seconds: Mapping[str, float]
    prompt_tokens: int
    new_tokens: int


def spent(run: LoadedRun) -> Spent:
    """Returns what a search cost."""
    searched = [trial.outcome for trial in run.trials] + list(run.baselines.values())
    seconds = {part: sum(one.seconds.get(part, 0.0) for one in searched) for part in ("build", "evaluate", "other")}
    seconds["holdout"] = sum(_total(outcome) for outcome in run.holdout.values())
    every = [*searched, *run.holdout.values()]
    return Spent(seconds, sum(one.prompt_tokens for one in every), sum(one.new_tokens for one in every))
