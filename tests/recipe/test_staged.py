"""Recipes with stages: what they hold, and what is refused."""

from pathlib import Path

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, StagedRecipe, load

TEXT = """\
stages:
  weights:
    merge_method: linear
    models:
      - {model: a, parameters: {weight: {search: [0, 1]}}}
      - {model: b, parameters: {weight: 1}}
  layers:
    merge_method: passthrough
    slices: {search: {models: [weights, a]}}
tasks: [{task: one.yaml}]
"""


def loaded(folder: Path, text: str) -> Recipe | StagedRecipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load(path)


def test_stages_are_recipes_with_the_same_tasks(tmp_path: Path):
    found = loaded(tmp_path, TEXT)
    assert isinstance(found, StagedRecipe)
    assert list(found.stages) == ["weights", "layers"]
    assert [[task.task for task in stage.tasks] for stage in found.stages.values()] == [["one.yaml"]] * 2
    assert found.stages["layers"].parents() == ("weights", "a")
    assert found.stages["layers"].folders[0] == tmp_path
    assert isinstance(loaded(tmp_path, "merge_method: linear\nmodels: [{model: a}]\n"), Recipe)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("search: [0, 1]", "search: [1, 0]", r"recipe.yaml:5: stages\.weights\.models\[0\]\.parameters\.weight"),
        ("models: [weights, a]", "models: [weights, a], repeat: 2", r":9: .*repeat: unknown key \"repeat\""),
        ("passthrough", "linear", r"recipe.yaml:8: stages\.layers\.merge_method: .*expected passthrough"),
        ("[weights, a]", "[b, a]", r"recipe.yaml:2: stages\.weights: no later stage merges weights"),
        ("{model: b,", "{model: layers,", r":2: stages\.weights: merges layers, which is not an earlier stage"),
        ("  weights:\n", "  we/ights:\n", r'"we/ights" is not a name for a folder'),
        ("{search: [0, 1]}", "1", r"stages\.weights: nothing to search"),
        ("    merge_method: linear", "    tasks: []\n    merge_method: linear", r":3: stages\.weights\.tasks: .* root"),
        ("tasks: [{task: one.yaml}]", "", r'"tasks" is missing'),
        ("tasks: [{task: one.yaml}]", "tasks: [{tasks: one.yaml}]", r"recipe.yaml:10: tasks\[0\]"),
        ("  layers:", "layers:", r'unknown key "layers"'),
    ],
)
def test_faults_of_stages_have_their_lines(tmp_path: Path, old: str, new: str, message: str):
    assert old in TEXT
    with pytest.raises(RecipeError, match=message):
        loaded(tmp_path, TEXT.replace(old, new))


def test_faults_of_all_stages_are_found_at_once(tmp_path: Path):
    text = TEXT.replace("search: [0, 1]", "search: [1, 0]").replace("passthrough", "linear")
    with pytest.raises(RecipeError) as caught:
        loaded(tmp_path, text)
    assert len(caught.value.faults) == 2


def test_a_recipe_with_stages_is_not_one_recipe(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(TEXT)
    with pytest.raises(RecipeError, match=r"recipe.yaml:1: stages: stages make a model in several searches"):
        Recipe.load(tmp_path / "recipe.yaml")
