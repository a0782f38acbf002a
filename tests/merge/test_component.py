"""A language model merged into the language part of a model of text and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from evomerge.errors import RecipeError
from evomerge.merge import Plan, WeightStore, into_directory, open_models, plan
from evomerge.recipe import Recipe
from evomerge.runtime import LiveModel
from tests.test_architectures import assert_same_values, assert_writes
from tests.tiny import tiny_checkpoint

LANGUAGE = "language_model."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LLaVA, its language part as a model of its own, and fine-tunes of that."""
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "llava", kind="llava")
    part = {name: tensor for name, tensor in tensors(folder / "llava").items() if name.startswith(LANGUAGE)}
    tiny_checkpoint(folder / "part")
    save_file(
        {name.removeprefix(LANGUAGE): tensor for name, tensor in part.items()},
        folder / "part" / "model.safetensors",
        {"format": "pt"},
    )
    for seed, name in enumerate("ab", start=1):
        tiny_checkpoint(folder / name, seed, base=folder / "part")
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def planned(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(folder)
    recipe = Recipe.parse(text, "r.yaml")
    return plan(recipe, open_models(recipe))


RECIPES = {
    "linear": "merge_method: linear\nmodels: [{model: a, parameters: {weight: 0.3}},"
    " {model: b, parameters: {weight: [0, 1]}}, {model: %s, parameters: {weight: 0.5}}]\n",
    "ties": "merge_method: ties\nbase_model: %s\ndtype: bfloat16\nmodels:\n"
    "  - {model: a, parameters: {weight: 0.7, density: 0.4}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.8}}\n",
    "only others": "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n",
    "stack": "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n"
    "  - sources: [{model: %s, layer_range: [1, 4]}]\n",
}
COMPONENT = "component: {language_of: llava}\n"


@pytest.mark.parametrize("name", RECIPES)
def test_the_language_part_is_merged_and_the_rest_is_kept(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPES[name]
    made = planned((text % "llava" if "%s" in text else text) + COMPONENT, models, monkeypatch)
    alone = planned(text % "part" if "%s" in text else text, models, monkeypatch)
    into_directory(made, tmp_path / "out")
    into_directory(alone, tmp_path / "alone")
    found, parent = tensors(tmp_path / "out"), tensors(models / "llava")
    for key, tensor in tensors(tmp_path / "alone").items():
        assert torch.equal(found.pop(LANGUAGE + key), tensor), key
    assert found.keys() == {key for key in parent if not key.startswith(LANGUAGE)}
    for key, tensor in found.items():
        assert tensor.dtype == parent[key].dtype
        assert torch.equal(tensor, parent[key]), key

    model, told = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values()), told
    assert model.config.text_config.num_hidden_layers == (6 if name == "stack" else 4)
    assert model.config.vision_config.num_hidden_layers == 4
    live = LiveModel(made, "cpu", made.layout.dtype)
    live.fill(made, WeightStore(made.layout.checkpoints, "disk", torch.device("cpu"), reused=False))
    assert_same_values(model, live.model)
    assert_writes(model, "llava")


def test_the_config_is_the_whole_models_but_for_what_the_merge_changes(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((models / "llava" / "config.json").read_text())
    made = planned(RECIPES["linear"] % "llava" + COMPONENT, models, monkeypatch)
    assert made.layout.config == before
    assert made.layout.donor.folder.name == "llava"
    made = planned(RECIPES["stack"] % "llava" + COMPONENT + "dtype: bfloat16\n", models, monkeypatch)
    expected = {**before, "dtype": "bfloat16"}
    expected["text_config"] = {**before["text_config"], "num_hidden_layers": 6, "dtype": "bfloat16"}
    assert made.layout.config == expected


def test_rows_that_only_the_whole_model_has_are_its_own(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_checkpoint(tmp_path / "llava", kind="llava", extra_tokens=["<image>", "<row>"])
    for name in "ab":
        (tmp_path / name).symlink_to(models / name)
    made = planned(RECIPES["ties"] % "llava" + COMPONENT, tmp_path, monkeypatch)
    into_directory(made, tmp_path / "out")
    found, parent = tensors(tmp_path / "out"), tensors(tmp_path / "llava")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        assert found[name].shape == (261, 16)
        assert torch.equal(found[name][259:], parent[name][259:].bfloat16())
        assert not torch.equal(found[name][:259], parent[name][:259].bfloat16())
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").config.text_config.vocab_size == 261


@pytest.mark.parametrize(("kind", "text_kind"), [("qwen2_vl", "qwen2"), ("gemma3", "gemma3_text")])
def test_other_models_of_images(kind: str, text_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(tmp_path / "whole", kind=kind, tokenizer=False)
    tiny_checkpoint(tmp_path / "a", 1, text_kind, tokenizer=False)
    made = planned(
        "merge_method: linear\nmodels: [{model: whole}, {model: a}]\nparameters: {weight: 1}\n"
        "component: {language_of: whole}\n",
        tmp_path,
        monkeypatch,
    )
    into_directory(made, tmp_path / "out")
    found, whole, a = (tensors(tmp_path / folder) for folder in ("out", "whole", "a"))
    prefix = "language_model." if kind == "gemma3" else ""
    merged = {prefix + name: (whole[prefix + name] + tensor) / 2 for name, tensor in a.items()}
    assert found.keys() == whole.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, merged.get(name, whole[name]), rtol=1e-6, atol=1e-7)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert_writes(model, kind)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPES["only others"] + "component: {language_of: part}\n", "r.yaml:4: component.language_of: part is a"),
        (RECIPES["only others"] + "component: {vision_of: llava}\n", 'unknown key "vision_of"'),
        (RECIPES["only others"].replace("model: b", "model: wide") + COMPONENT, "wide does not fit llava"),
        (RECIPES["only others"].replace("model: b", "model: more") + COMPONENT, "more has 260 rows in lm_head.weight"),
        (RECIPES["only others"].replace("model: b", "model: llava"), 'add "component: {language_of: llava}"'),
        (RECIPES["only others"] + "component: {language_of: nowhere}\n", "nowhere"),
    ],
)
def test_what_cannot_be_a_component_is_refused(
    text: str, words: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "wide" in text and not (models / "wide").exists():
        tiny_checkpoint(models / "wide", hidden=32, tokenizer=False)
    if "more" in text and not (models / "more").exists():
        tiny_checkpoint(models / "more", extra_tokens=["<more>"], tokenizer=False)
    with pytest.raises(RecipeError) as caught:
        planned(text, models, monkeypatch)
    assert words in str(caught.value)
