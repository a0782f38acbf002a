"""The space: holes to dimensions, and every genome to a recipe."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import Recipe
from evomerge.search import NumberSpace

RECIPE = Recipe.parse(
    """
merge_method: linear
models:
  - model: a
    parameters: {weight: {search: [0, 2], layers: 3}}
  - model: b
    parameters: {weight: {search: [-1, 1], layers: 2, interpolate: true}}
  - model: c
    parameters: {weight: {search: [0.001, 1], log: true}}
  - model: d
    parameters: {weight: {search: [0, 1], init: 0.9}}
"""
)
A, B, C, D = RECIPE.holes()


def space(depth: int = 7) -> NumberSpace:
    return NumberSpace(RECIPE, depths={A: depth, B: depth}, starts={A: 0.25, B: -3.0})


def weights(recipe: Recipe) -> list:
    return [entry.parameters["weight"] for entry in recipe.models or ()]


def test_one_dimension_for_each_number():
    names = [dimension.name for dimension in space().dimensions]
    assert names == [
        "models[0].parameters.weight[0]",
        "models[0].parameters.weight[1]",
        "models[0].parameters.weight[2]",
        "models[1].parameters.weight[0]",
        "models[1].parameters.weight[1]",
        "models[2].parameters.weight",
        "models[3].parameters.weight",
    ]


def test_optuna_shows_the_names_of_models_and_locations_where_these_end_alike():
    names = list(space().parameters((0.5,) * 7))
    assert names == [
        "a: weight[0]",
        "a: weight[1]",
        "a: weight[2]",
        "b: weight[0]",
        "b: weight[1]",
        "c: weight",
        "d: weight",
    ]
    entry = "parameters: {weight: [{filter: mlp, value: {search: [0, 1]}}, {value: 1}]}"
    recipe = Recipe.parse(
        "merge_method: linear\nparameters: {lambda: {search: [0, 1]}}\n"
        f"models: [{{model: org/math, {entry}}}, {{model: you/m, {entry}}}, {{model: me/m, {entry}}}]\n"
    )
    assert set(NumberSpace(recipe, depths={}).parameters((0.5,) * 4)) == {
        "math: weight[0].value",
        "models[1].parameters.weight[0].value",
        "models[2].parameters.weight[0].value",
        "parameters.lambda",
    }


def test_the_start_is_init_or_the_given_start_moved_into_the_range_or_the_middle():
    starts = [dimension.start for dimension in space().dimensions]
    assert starts == pytest.approx([0.25] * 3 + [-1.0] * 2 + [math.sqrt(0.001)] + [0.9])
    assert space().start == pytest.approx([0.125] * 3 + [0.0] * 2 + [0.5] + [0.9])


def test_groups_share_a_number_and_points_interpolate():
    first, second, third, fourth = weights(space().decode([0, 0.5, 1, 0.25, 1, 1, 0.1]))
    assert first == (0, 0, 0, 1, 1, 2, 2)  # floor(3 i / 7)
    assert second == (-0.5, 1)
    assert third == 1
    assert fourth == 0.1


@given(st.lists(st.floats(), min_size=7, max_size=7), st.integers(3, 50))
def test_every_genome_decodes_to_a_recipe_without_holes_in_range(genome: list[float], depth: int):
    found = space(depth)
    recipe = found.decode(genome)
    assert not recipe.holes()
    for entry, low, high in zip(recipe.models or (), [0, -1, 0.001, 0], [2, 1, 1, 1], strict=True):
        value = entry.parameters["weight"]
        for number in value if isinstance(value, tuple) else (value,):
            assert low <= number <= high
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert Recipe.model_validate(json.loads(json.dumps(recipe.as_data()))) == recipe


@given(st.lists(st.floats(0, 1), min_size=7, max_size=7).map(tuple))
def test_a_genome_survives_json(genome: tuple[float, ...]):
    found = space()
    assert found.from_json(json.loads(json.dumps(found.to_json(genome)))) == genome


@given(st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_numbers_are_rounded_and_what_the_recipe_holds(genome: list[float]):
    found = space()
    numbers = found.numbers(genome)
    held = weights(found.decode(genome))
    assert held[3] == numbers["models[3].parameters.weight"]
    assert len(f"{held[3]:.12g}") <= len("0.0000123456") + 6
    for dimension, gene in zip(found.dimensions, genome, strict=True):
        assert dimension.gene(dimension.number(gene)) == pytest.approx(gene, abs=1e-5)
