"""What is not of floating-point numbers is never merged: it is the same in all models, and copied, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import RecipeError
from evomerge.merge import open_recipe
from tests.tiny import tiny_checkpoint

HELD = "model.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(8)[None]


def changed(folder: Path, **tensors: torch.Tensor) -> None:
    """Gives a checkpoint the tensors `q` and `k` (weights of its first layer) and `ids` (a buffer of that layer)."""
    names = {"q": HELD, "k": HELD.replace("q_proj", "k_proj"), "ids": "model.layers.0.position_ids"}
    file = folder / "model.safetensors"
    save_file(load_file(file) | {names[key]: tensor for key, tensor in tensors.items()}, file, {"format": "pt"})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "a", layers=1)
    tiny_checkpoint(tmp_path / "b", 1, base=tmp_path / "a")
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("which", ["a", "b", "ab"])
def test_quantized_models_are_refused(models: Path, dtype: torch.dtype, which: str) -> None:
    for seed, name in enumerate(which):
        weight = torch.randint(0, 100, (16, 16), generator=torch.Generator().manual_seed(seed))
        changed(models / name, q=weight.to(dtype), k=weight[:8].to(dtype))
    with pytest.raises(RecipeError) as caught:
        open_recipe(models / "recipe.yaml")
    dtype_name = str(dtype).removeprefix("torch.")
    faults = caught.value.faults
    # Integers are at fault where they are not the first model's.
    for name, fault in zip(which[-len(faults) :], faults, strict=True):
        assert f"recipe.yaml:2: models[{'ab'.index(name)}]: {name}: model.layers.0.self_attn." in fault
        assert f"_proj.weight is {dtype_name}, which cannot be merged; is the model quantized? load and save" in fault


def test_packed_weights_of_a_quantized_model_are_refused_even_where_they_are_the_same(models: Path) -> None:
    for name in "ab":
        changed(models / name, q=torch.zeros(16, 16, dtype=torch.int32))
        config = json.loads((models / name / "config.json").read_text())
        (models / name / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(RecipeError, match=f"{HELD} is int32, which cannot be merged; is the model quantized"):
        open_recipe(models / "recipe.yaml")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_numbers_that_differ_and_cannot_be_merged_are_refused(models: Path, dtype: torch.dtype) -> None:
    changed(models / "a", ids=IDS.to(dtype))
    changed(models / "b", ids=(IDS - 1).to(dtype))
    with pytest.raises(
        RecipeError, match=r"b: model.layers.0.position_ids is .*, which cannot be merged; such numbers"
    ):
        open_recipe(models / "recipe.yaml")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_position_ids_and_masks_that_all_models_share_are_copied(models: Path, dtype: torch.dtype) -> None:
    for name in "ab":
        changed(models / name, ids=IDS.to(dtype))
    jobs = {job.info.name: job for job in open_recipe(models / "recipe.yaml").layout.jobs}
    job = jobs["model.layers.0.position_ids"]
    assert job.slot is None
    assert job.info.dtype == dtype
