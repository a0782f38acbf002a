"""The genetic search: what each operator does, and what the search does with them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import Mutations, Recipe, SearchSettings
from evomerge.search import OPTIMIZERS, Layer, Outcome, Stack, StackSpace, State
from evomerge.search.stack_operators import MUTATIONS, block_repeats, crossed, depth_wise
from tests.search.test_stack_space import DEPTHS, Fold, recipe

PLAIN = StackSpace(recipe(), DEPTHS)
SCALED = StackSpace(recipe(scale=[0.5, 1.5]), DEPTHS, Fold())
ONCE = StackSpace(recipe(repeats=1, min_layers=2), DEPTHS)
TIGHT = StackSpace(recipe(models=["a"], repeats=1, min_layers=1, max_layers=1), [1])
SEEDS = st.integers(0, 2**32 - 1)


def single(depth: int, **hole) -> StackSpace:
    return StackSpace(recipe(models=["a"], repeats=1, min_layers=depth, max_layers=depth, **hole), [depth])


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def is_inside(part: Stack, whole: Stack) -> bool:
    """Whether the layers of `part` are among those of `whole`, in their order."""
    rest = iter(whole)
    return all(layer in rest for layer in part)


def changes(one: Stack, two: Stack) -> list[int]:
    return [i for i, (left, right) in enumerate(zip(one, two, strict=True)) if left != right]


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("space", [PLAIN, SCALED, ONCE, TIGHT], ids=["plain", "scaled", "once", "tight"])
@given(seed=SEEDS)
def test_every_mutation_keeps_a_stack_within_the_bounds(name: str, space: StackSpace, seed: int):
    rng = generator(seed)
    stack = space.sample(rng)
    mutated = MUTATIONS[name](space, stack, rng)
    assert space.repaired(mutated) == mutated


@pytest.mark.parametrize("space", [PLAIN, SCALED, ONCE, TIGHT], ids=["plain", "scaled", "once", "tight"])
@given(seed=SEEDS)
def test_crossover_keeps_stacks_within_the_bounds_and_takes_layers_of_both(space: StackSpace, seed: int):
    rng = generator(seed)
    one, two = space.sample(rng), space.sample(rng)
    child = crossed(space, one, two, rng)
    assert space.repaired(child) == child
    head = next((i for i, pair in enumerate(zip(child, one, strict=False)) if pair[0] != pair[1]), len(child))
    if len(child) > space.min_layers:
        assert is_inside(child[head:], two)


@given(seed=SEEDS)
def test_models_of_one_depth_cross_to_the_first_layers_of_one_and_the_last_of_the_other(seed: int):
    space = StackSpace(recipe(repeats=1), (6, 6))
    a, b = space.parents
    assert crossed(space, a, b, generator(seed)) in {a[:k] + b[k:] for k in range(7)}


@given(seed=SEEDS)
def test_every_mutation_does_what_its_name_says(seed: int):
    rng = generator(seed)
    stack = SCALED.sample(rng)
    inserted = MUTATIONS["insert"](SCALED, stack, rng)
    assert is_inside(stack, inserted)
    assert len(inserted) == min(len(stack) + 1, 9)
    deleted = MUTATIONS["delete"](SCALED, stack, rng)
    assert is_inside(deleted, stack)
    assert len(deleted) == max(len(stack) - 1, 3)
    swapped = MUTATIONS["swap"](SCALED, stack, rng)
    assert Counter(swapped) == Counter(stack)
    assert len(changes(swapped, stack)) in (0, 2)
    moved = MUTATIONS["move_block"](SCALED, stack, rng)
    assert Counter(moved) == Counter(stack)
    repeated = MUTATIONS["repeat_block"](SCALED, stack, rng)
    assert is_inside(stack, repeated)
    assert {layer[:2] for layer in repeated} == {layer[:2] for layer in stack}
    replaced = MUTATIONS["other_model"](SCALED, stack, rng)
    for i in changes(replaced, stack):
        assert replaced[i].model != stack[i].model
        assert replaced[i][1:] == stack[i][1:]
    jittered = MUTATIONS["jitter_scale"](SCALED, stack, rng)
    assert [layer[:2] for layer in jittered] == [layer[:2] for layer in stack]
    assert len(changes(jittered, stack)) <= 1
    assert len(changes(replaced, stack)) <= 1


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_changes_something_where_it_can(name: str):
    rng = generator(0)
    space = StackSpace(recipe(scale=[0.5, 1.5], models=["a", "b"], min_layers=2, max_layers=30), DEPTHS, Fold())
    changed = sum(MUTATIONS[name](space, space.parents[0], rng) != space.parents[0] for _ in range(100))
    assert changed > 90


def test_plain_stacks_have_one_models_first_layers_and_anothers_last():
    space = StackSpace(recipe(max_layers=12), DEPTHS)
    found = depth_wise(space)
    a, b = space.parents
    assert set(found) == {a[:k] + b[k:] for k in range(1, 5)} | {b[:k] + a[k:] for k in range(1, 4)}


def test_block_repeats_are_models_with_one_block_twice():
    space = StackSpace(recipe(models=["a"], max_layers=6), [4])
    expected = {
        tuple(Layer(0, i) for i in (*range(end), *range(first, 4)))
        for first in range(4)
        for end in range(first + 1, 5)
        if end - first <= 2
    }
    assert set(block_repeats(space)) == expected
    assert block_repeats(ONCE) == []


def complete(score: float) -> Outcome:
    return Outcome(State.COMPLETE, (float(score),))


def run(space: StackSpace, evaluations: int, objective, optimizer: str = "genetic", **settings) -> list:
    """Returns (generation, stack, score) in the order of evaluation; ends early where none is asked for."""
    search = OPTIMIZERS[optimizer](space, SearchSettings(**settings))
    told = []
    while len(told) < evaluations and (asked := search.ask(evaluations - len(told))):
        for proposal in asked:
            told.append((proposal.generation, proposal.genome, objective(proposal.genome)))
            search.tell(proposal, complete(told[-1][2]))
    return told


def test_the_first_generation_has_the_parents_plain_stacks_and_block_repeats():
    space = StackSpace(recipe(max_layers=12), DEPTHS)
    first = [proposal.genome for proposal in OPTIMIZERS["genetic"](space, SearchSettings()).ask(1000)]
    assert first[:2] == space.parents
    assert len(first) == len(set(first)) == 32
    assert set(depth_wise(space)) <= set(first)
    assert len(set(block_repeats(space)) & set(first)) >= 15


@pytest.mark.parametrize("repeats", [1, 2])
def test_no_stack_is_proposed_twice_and_the_search_ends_with_the_space(repeats: int):
    space = StackSpace(recipe(models=["a"], repeats=repeats, min_layers=1, max_layers=3), [3])
    told = run(space, 1000, len, population=4)
    stacks = [stack for _, stack, _ in told]
    assert len(stacks) == len(set(stacks))
    assert set(stacks) == set(space.all_stacks())
    assert len(stacks) == {1: 15, 2: 3 + 9 + 24}[repeats]


def test_a_search_that_has_ended_stays_so_and_takes_what_is_left_to_tell():
    space = StackSpace(recipe(models=["a"], repeats=1, min_layers=1, max_layers=1), [3])
    search = OPTIMIZERS["genetic"](space, SearchSettings(population=2))
    first = search.ask(10)
    assert len(first) == 2
    for proposal in first:
        search.tell(proposal, complete(0))
    (last,) = search.ask(10)
    assert search.ask(1) == []
    search.tell(last, complete(0))
    assert search.ask(1) == search.ask(1) == []


def test_rates_decide_which_mutations_happen():
    rates = {**dict.fromkeys(Mutations.model_fields, 0.0), "swap": 1.0}
    space = single(6)
    search = OPTIMIZERS["genetic"](space, SearchSettings(population=8, mutations=Mutations(**rates)))
    parent, *others = [proposal.genome for proposal in search.ask(8)]
    assert [parent] == space.parents
    assert [len(changes(stack, parent)) for stack in others] == [2] * 7


def hidden_order(seed: int, layers: int = 7):
    """A score that is highest, 0, where the layers are in a hidden order."""
    order = generator(100 + seed).permutation(layers).tolist()

    def score(stack: Stack) -> float:
        ranks = [order.index(layer.layer) for layer in stack]
        return -sum(one > two for i, one in enumerate(ranks) for two in ranks[i:])

    return score


@pytest.mark.parametrize("seed", range(3))
def test_a_hidden_order_is_found_where_random_search_does_not(seed: int):
    space, score = single(7), hidden_order(seed)
    assert max(one[2] for one in run(space, 500, score, seed=seed)) == 0
    assert max(one[2] for one in run(space, 500, score, "random", seed=seed)) < 0


def test_scales_are_found():
    space = StackSpace(recipe(models=["a"], repeats=1, min_layers=3, max_layers=3, scale=[0.5, 2]), [3], Fold())
    told = run(space, 1200, lambda stack: -sum(abs(layer.scale - 0.7) for layer in stack))
    assert max(score for _, _, score in told) > -0.15


def test_the_best_stays_a_parent_however_bad_later_generations_are():
    """With one mutation and a score that falls with time, children still descend from the first generation."""
    rates = {**dict.fromkeys(Mutations.model_fields, 0.0), "swap": 1.0}
    space = single(8)
    count = iter(range(10_000))
    told = run(space, 24, lambda _: -next(count), population=4, mutations=Mutations(**rates))
    best = told[0][1]
    last = [stack for generation, stack, _ in told if generation == told[-1][0]]
    assert min(len(changes(stack, best)) for stack in last) <= 4


def test_the_recipe_gives_the_search_its_settings():
    text = """
merge_method: passthrough
slices: {search: {models: [a], repeats: 1}}
search: {population: 3, mutations: {delete: 1.0}}
"""
    document = Recipe.parse(text)
    search = OPTIMIZERS[document.settings().optimizer](StackSpace(document, [6]), document.settings())
    assert len(search.ask(100)) == 3
