"""Optimizers: one contract for all, and CMA-ES against pycma's own pure implementation."""

import random

import numpy as np
import pytest
from cma import purecma

from evomerge.recipe import Recipe, SearchSettings
from evomerge.search import OPTIMIZERS, Optimizer, Result, SearchSpace
from evomerge.search.cma_es import default_population


def space(dimensions: int = 4) -> SearchSpace:
    models = "".join(f"  - {{model: m{i}, parameters: {{weight: {{search: [0, 1]}}}}}}\n" for i in range(dimensions))
    return SearchSpace(Recipe.parse(f"merge_method: linear\nmodels:\n{models}"), depths={})


def sphere(genome: tuple[float, ...]) -> float:
    return -sum((gene - 0.3) ** 2 for gene in genome)


def run(optimizer: Optimizer, evaluations: int, objective=sphere) -> list[Result]:
    results: list[Result] = []
    while len(results) < evaluations:
        generation = [Result(genome, objective(genome)) for genome in optimizer.ask()]
        optimizer.tell(generation)
        results += generation
    return results


@pytest.fixture(params=sorted(OPTIMIZERS))
def make(request: pytest.FixtureRequest):
    return OPTIMIZERS[request.param]


def test_the_same_seed_gives_the_same_candidates_bit_for_bit(make):
    one, two = (run(make(space(), SearchSettings(seed=5)), 40) for _ in range(2))
    other = run(make(space(), SearchSettings(seed=6)), 40)
    assert one == two
    assert one != other


def test_candidates_lie_in_the_unit_cube(make):
    for result in run(make(space(), SearchSettings(seed=0, sigma=1.0)), 60):
        assert len(result.genome) == 4
        assert all(0 <= gene <= 1 for gene in result.genome)


def test_the_global_generator_is_neither_read_nor_moved(make):
    before = np.random.get_state()[1].copy()
    one = run(make(space(), SearchSettings(seed=1)), 30)
    assert (np.random.get_state()[1] == before).all()
    optimizer = make(space(), SearchSettings(seed=1))
    two: list[Result] = []
    while len(two) < 30:
        np.random.seed(len(two))
        generation = [Result(genome, sphere(genome)) for genome in optimizer.ask()]
        np.random.random(17)
        optimizer.tell(generation)
        two += generation
    assert two == one


def test_failures_are_taken(make):
    seen = run(make(space(), SearchSettings(seed=2)), 60, lambda genome: None if genome[0] > 0.5 else sphere(genome))
    assert any(result.score is None for result in seen)


def test_a_generation_of_failures_is_taken(make):
    optimizer = make(space(), SearchSettings(seed=3))
    for _ in range(3):
        optimizer.tell([Result(genome, None) for genome in optimizer.ask()])
    assert optimizer.ask()


@pytest.mark.parametrize("name", ["cma-es", "tpe"])
@pytest.mark.parametrize("dimensions", [1, 4])
def test_what_was_scored_counts_and_not_what_was_asked_for(name: str, dimensions: int):
    """Told of points on the other side of the middle, an optimizer goes to the best of those."""
    optimizer = OPTIMIZERS[name](space(dimensions), SearchSettings(seed=0, population=24))
    told = 0
    while told < 24:
        genomes = [tuple(1 - gene for gene in genome) for genome in optimizer.ask()]
        optimizer.tell([Result(genome, genome[0]) for genome in genomes])
        told += len(genomes)
    asked: list[float] = []
    while len(asked) < 24:
        genomes = optimizer.ask()
        asked += [genome[0] for genome in genomes]
        optimizer.tell([Result(genome, None) for genome in genomes])
    assert np.mean(asked) > 0.55


def test_one_dimension_is_searched(make):
    best = max(result.score for result in run(make(space(1), SearchSettings(seed=0)), 60))
    assert best > -0.01


@pytest.mark.parametrize("name", ["cma-es", "tpe"])
def test_learning_beats_chance(name: str):
    def best(which: str) -> float:
        return float(
            np.median(
                [
                    max(result.score for result in run(OPTIMIZERS[which](space(6), SearchSettings(seed=seed)), 120))
                    for seed in range(3)
                ]
            )
        )

    assert best(name) > best("random")


def test_cma_starts_at_the_start_with_the_default_population():
    for dimensions, population in [(2, 6), (4, 8), (10, 10), (40, 15)]:
        assert default_population(dimensions) == population
        assert len(OPTIMIZERS["cma-es"](space(dimensions), SearchSettings()).ask()) == population
    generation = OPTIMIZERS["cma-es"](space(), SearchSettings(sigma=0.001, population=30)).ask()
    assert np.mean(generation, axis=0) == pytest.approx([0.5] * 4, abs=0.002)


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

    ours = [
        max(result.score for result in run(OPTIMIZERS["cma-es"](space(6), SearchSettings(seed=seed)), 40 * 9))
        for seed in range(5)
    ]
    # Both converge linearly: their median exponents agree within a factor of two.
    exponent = np.median(np.log10(-np.array(ours)))
    assert exponent < 0.5 * np.median(np.log10([-pure(seed) for seed in range(5)]))


def test_cma_restarts_with_a_larger_population_where_it_has_converged():
    optimizer = OPTIMIZERS["cma-es"](space(2), SearchSettings(seed=0))
    sizes = []
    for _ in range(150):
        genomes = optimizer.ask()
        sizes.append(len(genomes))
        optimizer.tell([Result(genome, sphere(genome)) for genome in genomes])
    assert sizes[0] == 6
    assert 12 in sizes
    assert max(sizes) <= 48


def test_cma_goes_on_where_all_scores_are_equal():
    optimizer = OPTIMIZERS["cma-es"](space(), SearchSettings(seed=0))
    for _ in range(60):
        genomes = optimizer.ask()
        assert len(genomes) == 8
        optimizer.tell([Result(genome, 1.0) for genome in genomes])


def test_cma_recovers_the_optimum_at_the_edge_of_the_range():
    def slope(genome: tuple[float, ...]) -> float:
        return sum(genome)

    best = max(result.score for result in run(OPTIMIZERS["cma-es"](space(), SearchSettings(seed=0)), 300, slope))
    assert best > 3.99
