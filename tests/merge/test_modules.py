"""Recipes of modules, bases that are merged, and precedence, as the plan has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.errors import RecipeError
from evomerge.merge import Plan, open_models, plan
from evomerge.recipe import Recipe
from tests.tiny import tiny_checkpoint

UP, EMBEDDING = "model.layers.%d.mlp.up_proj.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        tiny_checkpoint(folder / name, seed, layers=2)
    for seed, name in enumerate(("llava", "llava2"), start=5):
        tiny_checkpoint(folder / name, seed, kind="llava", layers=2)
    return folder


@pytest.fixture(autouse=True)
def _there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)


def planned(text: str) -> Plan:
    recipe = Recipe.parse(text, "r.yaml")
    return plan(recipe, open_models(recipe))


def weights_of(made: Plan, name: str) -> dict[str, float]:
    (job,) = [job for job in made.layout.jobs if job.info.name == name]
    parameters = made.parameters(job)
    assert parameters is not None
    values = [float(model["weight"]) for model in parameters.models]
    return {model: value for (model, _), value in zip(job.inputs, values, strict=True)}


def test_the_order_of_precedence_is_source_slice_module_recipe_default():
    made = planned(
        """
merge_method: ties
base_model: base
modules:
  default:
    slices:
      - sources:
          - {model: a, layer_range: [0, 1], parameters: {weight: 1, density: [{filter: mlp, value: 0.1}]}}
          - {model: b, layer_range: [0, 1]}
        parameters: {weight: 2, density: [{filter: up_proj, value: 0.2}]}
      - sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]
    parameters: {weight: 3, density: [{filter: self_attn, value: 0.3}]}
parameters: {weight: 4, density: [{filter: proj, value: 0.4}]}
"""
    )
    assert weights_of(made, UP % 0) == {"a": 1, "b": 2}
    assert weights_of(made, UP % 1) == {"a": 3, "b": 3}
    densities = {
        job.info.name: [model["density"] for model in made.values[job.slot].models]
        for job in made.layout.jobs
        if job.slot is not None
    }
    assert densities[UP % 0] == [0.1, 0.2]
    assert densities["model.layers.0.mlp.down_proj.weight"] == [0.1, 0.4]
    assert densities["model.layers.0.self_attn.q_proj.weight"] == [0.3, 0.3]
    assert densities["model.norm.weight"] == [1, 1]


def test_a_base_that_is_not_listed_is_one_more_model_where_it_has_a_weight():
    listed = "merge_method: linear\nbase_model: base\nmodels: [{model: a}, {model: b, parameters: {weight: 2}}]\n"
    assert weights_of(planned(listed + "parameters: {weight: 1}\n"), EMBEDDING) == {"a": 1, "b": 2, "base": 1}
    own = listed.replace("{model: a}", "{model: a, parameters: {weight: 3}}")
    assert weights_of(planned(own), EMBEDDING) == {"a": 3, "b": 2}
    module = (
        "merge_method: linear\nbase_model: base\nmodules: {default: {models: [{model: a}], parameters: {weight: 1}}}\n"
    )
    assert weights_of(planned(module), EMBEDDING) == {"a": 1, "base": 1}
    one = planned("merge_method: passthrough\nbase_model: base\nmodels: [{model: a}]\n")
    assert {job.inputs for job in one.layout.jobs if job.info.name == EMBEDDING} == {(("a", EMBEDDING),)}


SEVERAL = """
merge_method: linear
modules:
  text_decoder:
    models: [{model: llava}, {model: llava2}]
    parameters: {weight: [1, 3]}
  vision_tower: {models: [{model: llava}, {model: llava2, parameters: {weight: 5}}]}
  multi_modal_projector: {models: [{model: llava2}]}
parameters: {weight: 2}
"""


def test_each_module_of_a_model_of_text_and_images_is_merged_in_its_own_way():
    made = planned(SEVERAL)
    assert {job.info.name for job in made.layout.jobs} == set(made.layout.checkpoints["llava"].tensors)
    seen = {"vision_tower": 0, "multi_modal_projector": 0, "layers": 0}
    for job in made.layout.jobs:
        found = weights_of(made, job.info.name)
        if "vision_tower" in job.info.name:
            seen["vision_tower"] += 1
            assert found == {"llava": 2, "llava2": 5}
        elif "multi_modal_projector" in job.info.name:
            seen["multi_modal_projector"] += 1
            assert found == {"llava2": 2}
        elif ".layers.1." in job.info.name:
            seen["layers"] += 1
            assert found == {"llava": 3, "llava2": 3}
    assert all(seen.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SEVERAL.replace("  vision_tower", "  audio_tower"), 'module "audio_tower" has no tensors; remove it'),
        (
            SEVERAL.replace(
                "{models: [{model: llava2}]}", "{slices: [{sources: [{model: llava, layer_range: [0, 1]}]}]}"
            ),
            "can be made of slices; use models",
        ),
    ],
)
def test_modules_that_a_model_does_not_have_are_refused(text: str, words: str):
    with pytest.raises(RecipeError) as caught:
        planned(text)
    assert words in str(caught.value)


def test_the_result_of_modules_is_that_of_the_same_models():
    one = planned("merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n")
    other = planned(
        "merge_method: linear\nmodules: {default: {models: [{model: a}, {model: b}]}}\nparameters: {weight: 1}\n"
    )
    assert one.layout.jobs == other.layout.jobs
    assert one.layout.config == other.layout.config
    assert torch.equal(load_file("a/model.safetensors")[EMBEDDING], one.layout.checkpoints["a"].read(EMBEDDING))
