"""Which merges on record are best, where not all of them were scored on all items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.search import State
from evomerge.study.trial import Trial

FINALISTS = 5
"""How many merges are scored on the holdout, and after a search on subsets of the items on all search items. The first
one wins: a winner chosen by its holdout score would have the highest of five draws, a biased score."""

MOST_COMPARED = 400
"""Of more candidates, the most recent half of this many and the best of the others are compared: the time grows with
the cube of their number."""

_VARIANCES = (0.1, 0.3, 1.0)
"""Of the objective over genomes, in units of its variance over candidates."""

_LENGTHS = (0.1, 0.3, 1.0, 3.0)
"""Squared, in units of the median squared distance of two candidates."""

_SHIFTS = (0.0, 1.0)
"""Of a generation, whose candidates share easy or hard items, in units of each candidate's noise."""

_Floats = NDArray[np.float64]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the scored merges, best first, ties in the order in which they were drawn; each recipe once.

    A merge that was scored on all items is represented by that trial. Others have their standing as the objective;
    when candidates have been scored on all items at the end of a search, those that were not come behind them.
    """
    found: dict[str, Trial] = {}
    for trial in sorted(_standing(trials), key=_place(trials)):
        found.setdefault(trial.key, trial)
    return list(found.values())


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Returns the first of those that are `ranked`; None if none was scored."""
    return min(_standing(trials), key=_place(trials), default=None)


def _place(trials: Sequence[Trial]) -> Callable[[Trial], tuple[bool, float, bool, int]]:
    """Returns the order of trials, given all on record."""
    ended = bool(trials) and trials[-1].final

    def place(trial: Trial) -> tuple[bool, float, bool, int]:
        partial = trial.outcome.state is State.PARTIAL
        return ended and partial, -(trial.objective or 0.0), partial, trial.drawn

    return place


def _standing(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the scored trials with their standings as objectives."""
    scores = standings(trials)
    return [
        trial
        if trial.outcome.state is State.COMPLETE
        else replace(trial, outcome=replace(trial.outcome, objectives=(scores[trial.number],)))
        for trial in trials
        if trial.number in scores
    ]


def standings(trials: Sequence[Trial]) -> dict[int, float]:
    """Returns the objective on all items of each scored merge, by the number of its trial.

    Where not all items were scored, it is what a Gaussian process over the genomes expects, given the objectives that
    were estimated and their standard errors: a candidate that is far above its neighbours by a few lucky items is taken
    to be a little above them. The process's settings are averaged, each by its likelihood. Rasmussen and Williams 2006,
    "Gaussian Processes for Machine Learning", §2.2 and §5.4.
    """
    scored = [trial for trial in trials if trial.objective is not None]
    found = {one.number: one.objective or 0.0 for one in scored if one.outcome.state is State.COMPLETE}
    if len(found) == len(scored):
        return found
    known = {trial.key: found[trial.number] for trial in scored if trial.number in found}
    compared = _compared([trial for trial in scored if trial.proposal])
    for trial, value in zip(compared, _expected(compared), strict=True):
        found.setdefault(trial.number, known.get(trial.key, value))
    return found


def coordinates(genomes: Sequence[Any]) -> _Floats:
    """Returns genomes as points, shape (genomes, dimensions): of stacks, how often each layer follows each other.

    Args:
        genomes: as JSON data, see `Space.to_json`.
    """
    if not any(isinstance(gene, list) for genome in genomes for gene in genome):
        return np.array(genomes, dtype=np.float64)
    pairs = [Counter(pairwise([(-1, -1), *(tuple(layer[:2]) for layer in genome)])) for genome in genomes]
    columns = {pair: i for i, pair in enumerate(dict.fromkeys(pair for counts in pairs for pair in counts))}
    found = np.zeros((len(genomes), len(columns)))
    for row, counts in enumerate(pairs):
        for pair, count in counts.items():
            found[row, columns[pair]] = count
    return found


def squared_distances(points: _Floats, others: _Floats) -> _Floats:
    """Returns the squared distance of each point to each other one, shape (points, others)."""
    found: _Floats = np.square(points[:, None] - others[None]).sum(-1)
    return found


def typical(distances: _Floats) -> float:
    """Returns the median of the squared distances that are not 0; 1 where there is none."""
    apart = distances[distances > 0]
    return float(np.median(apart)) if apart.size else 1.0


def _compared(trials: list[Trial]) -> list[Trial]:
    if len(trials) <= MOST_COMPARED:
        return trials
    half = MOST_COMPARED // 2
    best = sorted(trials[:-half], key=lambda trial: (-(trial.objective or 0.0), trial.drawn))[:half]
    kept = {trial.number for trial in (*best, *trials[-half:])}
    return [trial for trial in trials if trial.number in kept]


def _expected(trials: Sequence[Trial]) -> list[float]:
    """Returns the objective that is expected of each trial."""
    scores = np.array([trial.objective for trial in trials], dtype=np.float64)
    noise = np.array([trial.outcome.standard_error**2 for trial in trials])
    noise += 1e-6 * scores.var() + 1e-12
    groups = np.array([trial.proposal.generation for trial in trials if trial.proposal])
    shared = (groups[:, None] == groups) * np.sqrt(np.outer(noise, noise))
    distances = squared_distances(*2 * (coordinates([trial.proposal.genome for trial in trials if trial.proposal]),))
    likelihoods, expected = [], []
    for variance, length, shift in product(_VARIANCES, _LENGTHS, _SHIFTS):
        smooth = variance * scores.var() * np.exp(-distances / (2 * length * typical(distances)))
        lower = np.linalg.cholesky(smooth + shift * shared + np.diag(noise))
        solved = np.linalg.solve(lower, np.stack([scores, np.ones_like(scores)], axis=1))
        mean = (solved[:, 0] @ solved[:, 1]) / (solved[:, 1] @ solved[:, 1])
        rest = solved[:, 0] - mean * solved[:, 1]
        likelihoods.append(-rest @ rest / 2 - np.log(np.diag(lower)).sum())
        expected.append(mean + smooth @ np.linalg.solve(lower.T, rest))
    weights = np.exp(np.array(likelihoods) - max(likelihoods))
    found: list[float] = (weights @ np.array(expected) / weights.sum()).tolist()
    return found
