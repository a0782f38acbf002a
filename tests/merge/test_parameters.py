"""A recipe's parameters against its method: every fault is told with its place, before any model is read."""

import pytest

from evomerge.errors import RecipeError
from evomerge.merge import checked_method, hole_starts, parents
from evomerge.recipe import Recipe

TIES = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.5}
  - model: b
    parameters: {weight: 0.5, density: %s}
%s
"""


def faults_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        checked_method(Recipe.parse(text, "r.yaml"))
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    ("density", "rest", "words"),
    [
        (
            "0.5, wieght: 1",
            "",
            'r.yaml:7: models[1].parameters.wieght: ties has no parameter "wieght"; did you mean "weight"?',
        ),
        ("1.5", "", "r.yaml:7: models[1].parameters.density: density is 1.5; expected a number from 0 to 1"),
        ("{search: [0.1, 1.5]}", "", "search is [0.1, 1.5], but density is a number from 0 to 1"),
        ("[0.1, {search: [0, 1], layers: 2}]", "", "density[1]: layers is not allowed inside a list"),
        ("[{filter: mlp, value: -1}]", "", "density[0].value: density is -1"),
        ("true", "", "density is True"),
        (
            "0.5",
            "parameters: {normalize: 0.5}",
            "r.yaml:8: parameters.normalize: normalize is 0.5; expected true or false",
        ),
        ("0.5", "parameters: {normalize: {search: [0, 1]}}", "cannot be searched"),
        ("0.5, t: {search: [0, 1]}", "", "ties does not use t"),
    ],
)
def test_a_faulty_parameter_is_refused(density: str, rest: str, words: str):
    assert words in faults_of(TIES % (density, rest))


def test_a_whole_number_does_not_change_with_depth():
    karcher = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: [1, 10]}\n"
    assert "max_iter is a whole number, 0 or more, which cannot change with depth" in faults_of(karcher)


def test_parameters_of_other_methods_are_let_pass_where_they_are_not_searched():
    assert checked_method(Recipe.parse(TIES % ("0.5, t: 0.3", "parameters: {int8_mask: true}"))).name == "ties"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: tise\nmodels: [{model: a}]\n", 'no merge method "tise"; did you mean "ties"?'),
        ("merge_method: ties\nmodels: [{model: a}, {model: b}]\n", 'add "base_model"'),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\n", "found 2"),
        ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]\n", "passthrough merges 1 model,"),
        ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n", "found 0"),
    ],
)
def test_a_method_that_cannot_take_these_models_is_refused(text: str, words: str):
    assert words in faults_of(text)


def test_parents_are_the_models_listed_and_the_end_of_a_slerp():
    assert parents(Recipe.parse(TIES % (0.5, ""))) == ("a", "b")
    slerp = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}\n"
    assert parents(Recipe.parse(slerp)) == ("a", "b")


def test_searches_start_at_the_parents_mean():
    recipe = Recipe.parse(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "  - {model: a, parameters: {weight: {search: [0, 1]}, density: {search: [0.2, 1]}}}\n"
        "  - {model: b, parameters: {weight: [{search: [0, 1]}, 0]}}\n"
        "parameters: {lambda: {search: [0, 2]}}\n"
    )
    starts = hole_starts(recipe, checked_method(recipe), 2)
    assert starts["models", 0, "parameters", "weight"] == 0.5
    assert starts["models", 1, "parameters", "weight", 0] == 0.5
    assert starts["parameters", "lambda"] == 1.0
