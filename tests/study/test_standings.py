"""Which of merges that were scored on different items is best, and what they would score on all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.recipe import ItemSubsets
from evomerge.search import Outcome, Proposal, State
from evomerge.study import Objective, Trial
from evomerge.study.estimates import Estimator
from evomerge.study.standings import best_of, ranked, standings

PARTIAL, COMPLETE = State.PARTIAL, State.COMPLETE


def trial(
    number: int, gene: float, score: float, error: float = 0.1, *, final: bool = False, generation: int = 0
) -> Trial:
    outcome = Outcome(PARTIAL if error else COMPLETE, (score,), standard_error=error)
    return Trial(number, Proposal(number, [gene], generation), {"gene": gene}, outcome, final)


def hill(rng: np.random.Generator, noise: float) -> list[Trial]:
    genes = rng.random(60)
    return [
        trial(i, gene, 0.7 - (gene - 0.4) ** 2 + noise * rng.standard_normal(), noise) for i, gene in enumerate(genes)
    ]


def test_a_lucky_candidate_is_not_the_best():
    rng = np.random.default_rng(0)
    lucky = trial(60, 0.95, 1.0, 0.1)
    trials = [*hill(rng, 0.1), lucky]
    assert max(trials, key=lambda one: one.objective) is lucky
    best = best_of(trials)
    assert abs(best.proposal.genome[0] - 0.4) < 0.2
    assert best.objective == pytest.approx(0.7, abs=0.06)


def test_standings_are_nearer_to_the_truth_than_the_scores():
    for seed in range(5):
        trials = hill(np.random.default_rng(seed), 0.1)
        found = standings(trials)
        truth = [0.7 - (one.proposal.genome[0] - 0.4) ** 2 for one in trials]
        errors = [
            math.dist(truth, values)
            for values in ([found[one.number] for one in trials], [one.objective for one in trials])
        ]
        assert errors[0] < errors[1] / 2


def test_a_generation_with_easy_items_does_not_win():
    rng = np.random.default_rng(1)
    hard = [trial(i, gene, 0.7 - (gene - 0.4) ** 2, 0.05) for i, gene in enumerate(rng.random(20))]
    easy = [
        trial(20 + i, 0.8 + gene / 10, 0.8 - (0.4 + gene / 10) ** 2, 0.05, generation=1)
        for i, gene in enumerate(rng.random(5))
    ]
    assert best_of([*hard, *easy]).number < 20


def test_what_was_scored_on_all_items_has_its_score_and_comes_first_in_the_end():
    trials = [trial(0, 0.1, 0.9), trial(1, 0.2, 0.5), trial(2, 0.9, 0.3), trial(3, 0.2, 0.55, 0.0, final=True)]
    assert next(one.number for one in ranked(trials)) == 3
    assert standings(trials)[1] == standings(trials)[3] == 0.55
    assert len(ranked(trials)) == 3


def test_complete_trials_are_ranked_by_their_scores_alone():
    trials = [trial(i, i / 10, score, 0.0) for i, score in enumerate([0.2, 0.5, 0.5, 0.1])]
    assert [one.number for one in ranked(trials)] == [1, 2, 0, 3]


def test_stacks_are_compared_by_their_order_of_layers():
    def stack(number: int, layers: list[int], score: float) -> Trial:
        genome = [[0, layer, 1.0] for layer in layers]
        return Trial(
            number, Proposal(number, genome, 0), {"layers": layers}, Outcome(PARTIAL, (score,), standard_error=0.1)
        )

    good = [stack(i, [0, 1, 2, 3, i % 4], 0.6) for i in range(12)]
    bad = [stack(12 + i, [3, 2, 1, 0, i % 4], 0.2) for i in range(12)]
    odd = stack(24, [3, 2, 1, 0, 1], 0.65)
    assert best_of([*good, *bad, odd]).number < 12


class Landscape:
    """Binary items of two tasks, whose solution depends on a gene."""

    sizes = {"one": 60, "two": 30}  # noqa: RUF012

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.hardness = self.rng.normal(size=90)
        self.liking = self.rng.uniform(size=90)

    def scores(self, gene: float) -> np.ndarray:
        return (2 - 6 * abs(self.liking - gene) > self.hardness).astype(float)

    def outcome(self, gene: float, count: int) -> Outcome:
        values = self.scores(gene)
        items = {}
        for task, part in (("one", values[:60]), ("two", values[60:])):
            chosen = set(self.rng.permutation(len(part))[:count].tolist())
            items[task] = tuple(float(value) if i in chosen else None for i, value in enumerate(part))
        return Outcome(PARTIAL, items=items)


def errors_of(estimator: str, seeds: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the errors of estimates and of means over the subset, and the standard errors."""
    found = []
    objective = Objective({"one": 2.0, "two": 1.0})
    for seed in range(seeds):
        land = Landscape(seed)
        known = Estimator(objective, land.sizes, ItemSubsets(start=1, estimator=estimator))
        for gene in (0.1, 0.9):
            known.learn(land.outcome(gene, 60), -1)
        for generation in range(12):
            for gene in land.rng.uniform(0.3, 0.7, size=8).tolist():
                known.learn(land.outcome(gene, 8), generation, [gene])
        outcome = land.outcome(0.5, 8)
        values = land.scores(0.5)
        truth = objective({"one": values[:60].mean(), "two": values[60:].mean()})
        estimate, error = known.estimate(outcome, 12, [0.5])
        found.append((estimate - truth, objective(outcome.means) - truth, error))
    return tuple(np.array(found).T)


@pytest.mark.parametrize(("estimator", "less"), [("items", 0.85), ("neighbors", 0.7)])
def test_predictions_by_earlier_candidates_take_noise_from_estimates(estimator: str, less: float):
    errors, plain, told = errors_of(estimator)
    assert abs(errors.mean()) < 2.5 * errors.std() / math.sqrt(len(errors))
    assert errors.std() < less * plain.std()
    assert 0.6 < told.mean() / errors.std() < 1.7


def test_estimates_of_a_generation_do_not_depend_on_its_order():
    land = Landscape(0)
    outcomes = [(land.outcome(gene, 8), [gene]) for gene in (0.2, 0.5, 0.8)]
    found = []
    for order in (outcomes, outcomes[::-1]):
        known = Estimator(Objective({"one": 1.0, "two": 1.0}), land.sizes, ItemSubsets(start=1, estimator="neighbors"))
        known.learn(Landscape(1).outcome(0.5, 60), -1)
        known.learn(outcomes[0][0], 0, [0.4])
        estimates = {}
        for outcome, genome in order:
            estimates[genome[0]] = known.estimate(outcome, 1, genome)
            known.learn(outcome, 1, genome)
        found.append(estimates)
    assert found[0] == found[1]
