"""A planner that has planned other recipes plans as a new one does, and lays recipes of one structure out once."""

from pathlib import Path

import pytest

from evomerge.checkpoint import Checkpoint
from evomerge.errors import RecipeError
from evomerge.merge import Plan, Planner, plan
from evomerge.recipe import Recipe
from tests.tiny import tiny_checkpoint

HEAD = "merge_method: ties\nbase_model: base\nmodels:\n"
RECIPES = {
    "scalars": HEAD + "  - {model: a, parameters: {weight: X, density: Y}}\n  - {model: b, parameters: {weight: Y}}\n",
    "gradients": HEAD
    + "  - {model: a, parameters: {weight: [X, Y, 0]}}\n  - {model: b, parameters: {weight: [0, X]}}\n",
    "filters": HEAD
    + "  - model: a\n    parameters:\n"
    + "      weight: [{filter: self_attn, value: [X, Y]}, {filter: mlp, value: Y}, {value: 1}]\n"
    + "  - {model: b, parameters: {density: {filter: layers.2, value: X}}}\n"
    + "parameters: {weight: Y, lambda: [{filter: norm, value: X}, {value: Y}]}\n",
    "slices": "merge_method: linear\nslices:\n"
    "  - sources: [{model: a, layer_range: [0, 2], parameters: {weight: X}},"
    " {model: b, layer_range: [1, 3], parameters: {weight: Y}}]\n"
    "  - sources: [{model: b, layer_range: [2, 4], parameters: {weight: [{filter: mlp, value: X}, {value: Y}]}}]\n",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    paths: dict[str, Path] = {"base": tiny_checkpoint(folder / "base", seed=0)}
    paths |= {name: tiny_checkpoint(folder / name, seed=1 + i, base=paths["base"]) for i, name in enumerate("ab")}
    return {name: Checkpoint.open(str(path)) for name, path in paths.items()}


def recipe(name: str, x: float, y: float) -> Recipe:
    return Recipe.parse(RECIPES[name].replace("X", str(x)).replace("Y", str(y)))


def values(made: Plan) -> dict[str, object]:
    return {job.info.name: (job.inputs, job.base, made.parameters(job)) for job in made.layout.jobs}


def test_candidates_are_planned_as_if_each_were_the_first(models: dict[str, Checkpoint]) -> None:
    planner = Planner(models)
    for x, y in [(0.25, 0.5), (0.75, 1.0), (1.0, 0.125)]:
        for name in RECIPES:
            assert values(planner.plan(recipe(name, x, y))) == values(plan(recipe(name, x, y), models)), name


def test_tensors_with_other_filters_or_depths_have_values_of_their_own(models: dict[str, Checkpoint]) -> None:
    made = plan(recipe("filters", 0.25, 0.5), models)
    weights = {name: parameters.models[0]["weight"] for name, (_, _, parameters) in values(made).items()}
    assert weights["model.layers.0.self_attn.q_proj.weight"] == 0.25
    assert weights["model.layers.3.self_attn.q_proj.weight"] == 0.5
    assert weights["model.layers.3.mlp.up_proj.weight"] == 0.5
    assert weights["model.layers.3.input_layernorm.weight"] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_alone_do_not_change_the_layout(name: str, models: dict[str, Checkpoint]) -> None:
    planner = Planner(models)
    first, second = planner.plan(recipe(name, 0.25, 0.5)), planner.plan(recipe(name, 0.5, 0.75))
    assert first.layout is second.layout
    assert first.values != second.values


def test_a_number_that_says_how_layers_lie_changes_the_layout(models: dict[str, Checkpoint]) -> None:
    planner = Planner(models)
    one = recipe("slices", 0.25, 0.5)
    text = RECIPES["slices"].replace("X", "0.25").replace("Y", "0.5").replace("[2, 4]", "[1, 3]")
    other = Recipe.parse(text)
    assert one.structure() != other.structure()
    assert values(planner.plan(one)) != values(planner.plan(other))


def test_a_candidate_with_a_number_out_of_range_is_refused_after_others_were_planned(
    models: dict[str, Checkpoint],
) -> None:
    planner = Planner(models)
    planner.plan(recipe("scalars", 0.25, 0.5))
    with pytest.raises(RecipeError, match="density is 2"):
        planner.plan(recipe("scalars", 1, 2))
