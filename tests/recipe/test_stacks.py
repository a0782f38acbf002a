"""A hole in place of the slices: faults with their locations, defaults, and what else of the recipe it changes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.merge import checked_method, open_recipe
from evomerge.recipe import Mutations, Recipe, SearchSettings, StackHole

SEARCH = """\
merge_method: passthrough
slices:
  search: {models: [a, b], repeats: 2, scale: [0.5, 1.5]}
dtype: bfloat16
"""


def hole(**given) -> StackHole:
    return StackHole.model_validate({"search": {"models": ["a", "b"], **given}})


def faults_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "r.yaml")
    return list(caught.value.faults)


def test_a_recipe_whose_slices_are_searched_has_one_hole_and_its_models_as_parents():
    recipe = Recipe.parse(SEARCH + "base_model: c\n")
    assert list(recipe.holes()) == [("slices",)]
    assert recipe.number_holes() == {}
    assert recipe.stack_hole == recipe.holes()["slices",]
    assert recipe.parents() == ("a", "b")
    assert recipe.references() == ("a", "b", "c")
    assert checked_method(recipe).name == "passthrough"
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert recipe.with_models(str.upper).references() == ("A", "B", "C")


def test_filling_the_hole_gives_a_recipe_without_one():
    slices = Recipe.parse("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n").slices
    filled = Recipe.parse(SEARCH).fill({("slices",): slices})
    assert filled.holes() == {}
    assert filled.as_data() == {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}],
        "dtype": "bfloat16",
    }


def test_every_fault_is_reported_at_once_with_its_line():
    faults = faults_of(
        "merge_method: ties\n"
        "slices:\n"
        "  search:\n"
        "    models: [a, b, a]\n"
        "    repeats: 0\n"
        "    min_layer: 3\n"
        "    max_layers: 20000\n"
        "    scale: [1.5, 0.5]\n"
        "    encoding: list\n"
        "parameters: {weight: 1}\n"
        "search: {mutations: {swop: 0.1, insert: 2}}\n"
    )
    assert any("r.yaml:4: slices.search.models: a is listed more than once" in fault for fault in faults)
    assert "r.yaml:5: slices.search.repeats: expected 1 or more, found 0" in faults
    assert 'r.yaml:6: slices.search.min_layer: unknown key "min_layer"; did you mean "min_layers"?' in faults
    assert "r.yaml:7: slices.search.max_layers: expected 10000 or less, found 20000" in faults
    assert any(fault.startswith("r.yaml:8: slices.search.scale: scale is [1.5, 0.5]") for fault in faults)
    assert "r.yaml:9: slices.search.encoding: expected 'order' or 'indicator', found 'list'" in faults
    assert any(fault.startswith("r.yaml:1: merge_method:") and "expected passthrough" in fault for fault in faults)
    assert any(fault.startswith("r.yaml:10: parameters.weight:") for fault in faults)
    assert 'r.yaml:11: search.mutations.swop: unknown key "swop"; did you mean "swap"?' in faults
    assert any(fault.startswith("r.yaml:11: search.mutations.insert: expected 1") for fault in faults)
    assert len(faults) == 10


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ("{search: {models: []}}", "slices.search.models: expected a list of at least 1"),
        ("{search: {models: [a], min_layers: 9, max_layers: 3}}", "min_layers is 9, more than max_layers, 3"),
        ("{search: {models: [a], scale: [1.1, 1.5]}}", "with 1 between them"),
        ("{search: {models: [a], scale: [0, 2]}}", "a low number above 0"),
        ("{search: {models: [a], scale: [1, .inf]}}", "scale is [1, inf]"),
        ("{search: [0, 1]}", 'expected a mapping of keys to values with "models", found [0, 1]'),
        ("{models: [a]}", 'slices: "search" is missing'),
        ("[]", "slices: expected a list of at least 1"),
    ],
)
def test_a_faulty_hole_is_refused(slices: str, words: str):
    faults = faults_of(f"merge_method: passthrough\nslices: {slices}\n")
    assert any(words in fault for fault in faults)
    assert all(fault.startswith("r.yaml:2:") for fault in faults)


def test_another_merge_method_is_the_only_fault_of_a_good_hole():
    (fault,) = faults_of(SEARCH.replace("passthrough", "linear"))
    assert fault.startswith("r.yaml:1: merge_method:")
    assert "found 'linear'" in fault


def test_rates_that_make_no_new_stack_are_refused():
    (fault,) = faults_of(SEARCH + f"search: {{mutations: {dict.fromkeys(Mutations.model_fields, 0)}}}\n")
    assert "every rate is 0" in fault


def test_rates_that_are_not_given_keep_their_defaults():
    rates = Recipe.parse(SEARCH + "search: {mutations: {swap: 0.9}}\n").settings().mutations
    assert rates == Mutations(swap=0.9)
    assert rates.insert == Mutations().insert


def test_the_default_optimizer_is_genetic_for_stacks_in_any_order():
    assert Recipe.parse(SEARCH).settings() == SearchSettings(optimizer="genetic")
    given = Recipe.parse(SEARCH + "search: {evaluations: 7, population: 3}\n").settings()
    assert (given.optimizer, given.evaluations, given.population) == ("genetic", 7, 3)
    assert Recipe.parse(SEARCH + "search: {optimizer: random}\n").settings().optimizer == "random"
    indicator = SEARCH.replace("repeats", "encoding: indicator, repeats")
    assert Recipe.parse(indicator).settings().optimizer == "cma-es"


@pytest.mark.parametrize(
    ("given", "depths", "bounds"),
    [
        ({}, (12, 20), (6, 32)),  # no more than all layers once
        ({"repeats": 2}, (12, 20), (6, 40)),
        ({"repeats": 9}, (1, 1), (1, 2)),
        ({"min_layers": 3, "max_layers": 9}, (12, 20), (3, 9)),
        ({"max_layers": 4}, (12, 20), (4, 4)),
        ({"min_layers": 30, "repeats": 9}, (4, 5), (30, 30)),
    ],
)
def test_the_bounds_of_a_stack(given: dict, depths: tuple[int, int], bounds: tuple[int, int]):
    assert hole(**given).bounds(depths) == bounds


@given(
    depths=st.lists(st.integers(1, 100), min_size=2, max_size=2),
    repeats=st.integers(1, 5),
    most=st.none() | st.integers(1, 500),
)
def test_without_a_least_depth_there_is_always_a_stack(depths: list[int], repeats: int, most: int | None):
    low, high = hole(repeats=repeats, max_layers=most).bounds(depths)
    assert 1 <= low <= high <= repeats * sum(depths)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="min_layers is 40, but 9 layers, used 2 times at most, make no more than 18"):
        hole(min_layers=40, repeats=2).bounds((4, 5))


def test_a_recipe_with_the_hole_cannot_be_applied(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(SEARCH)
    with pytest.raises(RecipeError) as caught:
        open_recipe(path)
    assert any(f"{path}:2: slices: the recipe has a hole" in fault for fault in caught.value.faults)
    # And the models, which are not here, are named where the hole lists them.
    assert any(f"{path}:3: slices.search.models[0]: a" in fault for fault in caught.value.faults)
