"""Optimizers: one contract for all, and CMA-ES against pycma's own pure implementation."""

import json
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from cma import purecma
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe import Recipe, SearchSettings
from evomerge.search import (
    OPTIMIZERS,
    Drawing,
    IndicatorSpace,
    NumberSpace,
    Optimizer,
    Outcome,
    Proposal,
    Stack,
    StackSpace,
    State,
    optimizers_for,
)
from evomerge.search.cma_es import default_population

Genome = tuple[float, ...]
Told = list[tuple[Proposal[Genome], Outcome]]


def space(dimensions: int = 4) -> NumberSpace:
    models = "".join(f"  - {{model: m{i}, parameters: {{weight: {{search: [0, 1]}}}}}}\n" for i in range(dimensions))
    return NumberSpace(Recipe.parse(f"merge_method: linear\nmodels:\n{models}"), depths={})


def sphere(genome: Genome) -> float:
    return -sum((gene - 0.3) ** 2 for gene in genome)


def outcome(score: float | None) -> Outcome:
    return Outcome(State.FAILED, error="of the test") if score is None else Outcome(State.COMPLETE, (score,))


def run(optimizer: Optimizer[Genome], evaluations: int, objective=sphere, at_once: int = 1) -> Told:
    """Asks for `at_once` proposals at a time, and tells them all."""
    told: Told = []
    while len(told) < evaluations:
        for proposal in optimizer.ask(at_once):
            told.append((proposal, outcome(objective(proposal.genome))))
            optimizer.tell(*told[-1])
    return told


def best_of(told: Told) -> float:
    return max(outcome.score for _, outcome in told if outcome.score is not None)


def stacks(encoding: str = "order") -> StackSpace | IndicatorSpace:
    hole = f"{{models: [a, b], repeats: 2, min_layers: 2, max_layers: 7, encoding: {encoding}}}"
    recipe = Recipe.parse(f"merge_method: passthrough\nslices: {{search: {hole}}}\n")
    return StackSpace(recipe, [4, 5]) if encoding == "order" else IndicatorSpace(recipe, [4, 5])


def orderly(stack: Stack) -> float:
    return -sum(abs(layer.layer - i) + (layer.model + i) % 2 for i, layer in enumerate(stack)) - abs(len(stack) - 5)


def valid_stack(stack: Stack) -> bool:
    return stacks().repaired(stack) == stack


def valid_numbers(genome: Genome) -> bool:
    return all(0 <= gene <= 1 for gene in genome)


class Case(NamedTuple):
    """An optimizer on a space that it searches: one line in the table runs the contract."""

    optimizer: str
    space: Callable[[], Any]
    objective: Callable[[Any], float]
    valid: Callable[[Any], bool]
    other: Callable[[Any], Any]
    generational: bool

    def make(self, **given: Any) -> Optimizer[Any]:
        return OPTIMIZERS[self.optimizer](self.space(), SearchSettings(**given))


def nudged(genome: Genome) -> Genome:
    return tuple(math.nextafter(gene, 0.5) for gene in genome)


def reverse(stack: Stack) -> Stack:
    return stack[::-1]


CASES = {
    "cma-es": Case("cma-es", space, sphere, valid_numbers, nudged, generational=True),
    "random": Case("random", space, sphere, valid_numbers, nudged, generational=False),
    "tpe": Case("tpe", space, sphere, valid_numbers, nudged, generational=False),
    "genetic": Case("genetic", stacks, orderly, valid_stack, reverse, generational=True),
    "random stacks": Case("random", stacks, orderly, valid_stack, reverse, generational=False),
    "cma-es of switches": Case("cma-es", lambda: stacks("indicator"), sphere, valid_numbers, nudged, generational=True),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_every_optimizer_is_in_the_table():
    assert {case.optimizer for case in CASES.values()} == set(OPTIMIZERS)
    for case in CASES.values():
        assert case.optimizer in optimizers_for(case.space().recipe)


def test_the_same_seed_gives_the_same_proposals_bit_for_bit(case: Case):
    one, two = (run(case.make(seed=5), 40, case.objective) for _ in range(2))
    other = run(case.make(seed=6), 40, case.objective)
    assert one == two
    assert one != other


def test_proposals_are_numbered_and_valid(case: Case):
    told = run(case.make(seed=0, sigma=1.0), 60, case.objective)
    assert [proposal.id for proposal, _ in told] == list(range(60))
    generations = [proposal.generation for proposal, _ in told]
    assert generations == sorted(generations)
    assert set(generations) == set(range(generations[-1] + 1))
    for proposal, _ in told:
        assert case.valid(proposal.genome)
        assert proposal.items is None


def test_the_global_generator_is_neither_read_nor_moved(case: Case):
    before = np.random.get_state()[1].copy()
    one = run(case.make(seed=1), 30, case.objective)
    assert (np.random.get_state()[1] == before).all()

    def disturbed(genome: Genome) -> float:
        np.random.seed(7)
        return case.objective(genome)

    assert run(case.make(seed=1), 30, disturbed) == one


def test_asking_for_several_at_once_gives_what_can_be_drawn(case: Case):
    optimizer = case.make(seed=4, population=6)
    first = optimizer.ask(100)
    assert [proposal.id for proposal in first] == list(range(len(first)))
    if case.generational:
        assert len(first) == 6
        assert optimizer.ask(1) == []
        for proposal in first[:5]:
            optimizer.tell(proposal, outcome(case.objective(proposal.genome)))
            assert optimizer.ask(1) == []
        optimizer.tell(first[5], outcome(0.0))
        assert [proposal.id for proposal in optimizer.ask(4)] == [6, 7, 8, 9]
        assert [proposal.id for proposal in optimizer.ask(4)] == [10, 11]
    else:
        assert len(first) == 100


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize("told", [0, 3, 17, 30])
def test_telling_a_record_to_a_new_optimizer_continues_exactly(case: Case, told: int, at_once: int):
    """In the order in which it was told, with failures in it, however many were asked for at a time."""
    rng = random.Random(told)
    optimizer = case.make(seed=8)
    record: Told = []
    open_: list[Proposal[Genome]] = []
    while len(record) < told:
        open_ += optimizer.ask(at_once - len(open_))
        proposal = open_.pop(rng.randrange(len(open_)))
        record.append((proposal, outcome(None if rng.random() < 0.2 else case.objective(proposal.genome))))
        assert optimizer.tell(*record[-1])
    again = case.make(seed=8)
    for proposal, found in record:
        stored = json.loads(json.dumps([case.space().to_json(proposal.genome), found.as_data()]))
        again.tell(Proposal(proposal.id, case.space().from_json(stored[0]), 0), Outcome.from_data(stored[1]))
    if at_once == 1:
        assert run(optimizer, 30, case.objective) == run(again, 30, case.objective)
        return
    # What was asked for and never told is asked for again first; then both go on alike.
    open_.sort(key=lambda proposal: proposal.id)
    repeated = again.ask(len(open_))
    assert [proposal.id for proposal in repeated] == [proposal.id for proposal in open_]
    for proposal in open_:
        for one in (optimizer, again):
            one.tell(proposal, outcome(case.objective(proposal.genome)))
    assert run(optimizer, 30, case.objective) == run(again, 30, case.objective)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), seed=st.integers(0, 3))
def test_the_order_of_telling_a_generation_does_not_matter_to_cma(order: list[int], seed: int):
    generations = []
    for turn in (range(8), order):
        optimizer = OPTIMIZERS["cma-es"](space(), SearchSettings(seed=seed))
        asked = optimizer.ask(8)
        for i in turn:
            optimizer.tell(asked[i], outcome(None if i == 5 else sphere(asked[i].genome)))
        generations.append(optimizer.ask(8))
    assert generations[0] == generations[1]


def test_a_proposal_is_told_once_and_not_before_it_can_be_drawn(case: Case):
    optimizer = case.make(seed=0, population=8)
    (proposal,) = optimizer.ask(1)
    assert optimizer.tell(proposal, outcome(1.0)) is True
    with pytest.raises(ValueError, match="proposal 0 was told before"):
        optimizer.tell(proposal, outcome(1.0))
    if case.generational:
        with pytest.raises(ValueError, match="proposal 8 cannot be drawn before earlier ones are told"):
            optimizer.tell(Proposal(8, proposal.genome, 1), outcome(1.0))


def test_another_genome_than_was_drawn_is_accepted_and_said(case: Case):
    optimizer = case.make(seed=0)
    for id in range(20):
        (asked,) = optimizer.ask(1)
        assert asked.id == id
        other = Proposal(id, case.other(asked.genome), asked.generation)
        assert optimizer.tell(other, outcome(case.objective(other.genome))) is (other.genome == asked.genome)
    assert optimizer.ask(1)


@pytest.mark.parametrize("name", ["cma-es", "tpe"])
@pytest.mark.parametrize("dimensions", [1, 4])
def test_what_was_scored_counts_and_not_what_was_asked_for(name: str, dimensions: int):
    """Told of points on the other side of the middle, an optimizer goes to the best of those."""
    optimizer = OPTIMIZERS[name](space(dimensions), SearchSettings(seed=0, population=48))
    for _ in range(48):
        (asked,) = optimizer.ask(1)
        mirrored = tuple(1 - gene for gene in asked.genome)
        optimizer.tell(Proposal(asked.id, mirrored, asked.generation), outcome(mirrored[0]))
    assert np.mean([proposal.genome[0] for proposal in optimizer.ask(48)]) > 0.55


def test_failed_and_partial_outcomes_are_taken(case: Case):
    optimizer = case.make(seed=2)
    for i in range(60):
        (proposal,) = optimizer.ask(1)
        partial = Outcome(State.PARTIAL, (case.objective(proposal.genome),), {"task": (1.0, None)})
        optimizer.tell(proposal, outcome(None) if i % 3 == 0 else partial)
    assert optimizer.ask(1)


def test_only_failures_are_taken(case: Case):
    assert len(run(case.make(seed=3), 30, lambda genome: None)) == 30


def test_a_failure_ranks_behind_every_score_in_cma():
    def next_mean(worst: float | None) -> float:
        optimizer = OPTIMIZERS["cma-es"](space(), SearchSettings(seed=0))
        asked = sorted(optimizer.ask(8), key=lambda proposal: proposal.genome[0])
        for rank, proposal in enumerate(asked):
            optimizer.tell(proposal, outcome(worst if rank == 7 else -1e6 * rank))
        return float(np.mean([proposal.genome for proposal in optimizer.ask(8)]))

    assert next_mean(None) == next_mean(-1e9)


@pytest.mark.parametrize("name", ["cma-es", "random", "tpe"])
def test_one_dimension_is_searched(name: str):
    assert best_of(run(OPTIMIZERS[name](space(1), SearchSettings(seed=0)), 60)) > -0.01


@pytest.mark.parametrize("name", ["cma-es", "tpe"])
def test_learning_beats_chance(name: str):
    def best(which: str) -> float:
        runs = [run(OPTIMIZERS[which](space(6), SearchSettings(seed=seed)), 120) for seed in range(3)]
        return float(np.median([best_of(told) for told in runs]))

    assert best(name) > best("random")


def test_genomes_of_any_kind_can_be_searched():
    """A walk over lists of (model, layer, scale): no optimizer's bookkeeping knows what a genome is."""

    class Walk(Drawing[tuple[tuple[str, int, float], ...]]):
        def __init__(self) -> None:
            super().__init__()
            self.best = (("a", 0, 1.0),)

        def _draw(self):
            return (*self.best, ("b", self._count, 0.5)), self._count

        def _learn(self, proposal, outcome):
            if outcome.score is not None:
                self.best = proposal.genome

    walk = Walk()
    first, second = walk.ask(2)
    assert walk.tell(second, outcome(1.0))
    assert walk.ask(1)[0].genome == (("a", 0, 1.0), ("b", 1, 0.5), ("b", 2, 0.5))
    foreign = Proposal(5, (("c", 3, 2.0),), 5)
    assert not walk.tell(foreign, outcome(1.0))
    assert [proposal.id for proposal in walk.ask(3)] == [3, 4, 6]
    assert walk.tell(first, outcome(1.0))


def test_an_outcome_keeps_every_number_as_data():
    found = Outcome(
        State.PARTIAL, (0.1 + 0.2, -1e-310), {"a": (1 / 3, None, 5e-324), "b": (None,)}, {"build": 0.1}, 7, 9, "why"
    )
    data = json.loads(json.dumps(found.as_data()))
    assert Outcome.from_data({**data, "kind": "candidate"}) == found
    assert found.means == {"a": pytest.approx((1 / 3 + 5e-324) / 2)}
    assert found.score == 0.1 + 0.2
    assert Outcome(State.FAILED, error="why").score is None


def test_cma_starts_at_the_start_with_the_default_population():
    for dimensions, population in [(2, 6), (4, 8), (10, 10), (40, 15)]:
        assert default_population(dimensions) == population
        assert len(OPTIMIZERS["cma-es"](space(dimensions), SearchSettings()).ask(100)) == population
    generation = OPTIMIZERS["cma-es"](space(), SearchSettings(sigma=0.001, population=30)).ask(30)
    assert np.mean([proposal.genome for proposal in generation], axis=0) == pytest.approx([0.5] * 4, abs=0.002)


def test_cma_does_as_well_as_the_pure_implementation():
    def pure(seed: int) -> float:
        normal = random.Random(seed).normalvariate
        strategy = purecma.CMAES([0.5] * 6, 1 / 6, popsize=default_population(6), randn=normal)
        best = -np.inf
        for _ in range(40):
            points = strategy.ask()
            values = [-sphere(tuple(point)) for point in points]
            strategy.tell(points, values)
            best = max(best, -min(values))
        return best

    ours = [best_of(run(OPTIMIZERS["cma-es"](space(6), SearchSettings(seed=seed)), 40 * 9)) for seed in range(5)]
    # Both converge linearly: their median exponents agree within a factor of two.
    exponent = np.median(np.log10(-np.array(ours)))
    assert exponent < 0.5 * np.median(np.log10([-pure(seed) for seed in range(5)]))


def test_cma_restarts_with_a_larger_population_where_it_has_converged():
    optimizer = OPTIMIZERS["cma-es"](space(2), SearchSettings(seed=0))
    sizes = []
    for _ in range(150):
        generation = optimizer.ask(100)
        sizes.append(len(generation))
        for proposal in generation:
            optimizer.tell(proposal, outcome(sphere(proposal.genome)))
    assert sizes[0] == 6
    assert 12 in sizes
    assert max(sizes) <= 48


def test_cma_continues_where_all_scores_are_equal():
    optimizer = OPTIMIZERS["cma-es"](space(), SearchSettings(seed=0))
    for _ in range(60):
        generation = optimizer.ask(100)
        assert len(generation) == 8
        for proposal in generation:
            optimizer.tell(proposal, outcome(1.0))


def test_cma_recovers_the_optimum_at_the_edge_of_the_range():
    assert best_of(run(OPTIMIZERS["cma-es"](space(), SearchSettings(seed=0)), 300, sum)) > 3.99
