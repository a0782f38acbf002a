"""Every kind of model end to end: it merges, it stacks, transformers loads it, and memory holds what disk does."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evomerge.checkpoint import Checkpoint
from evomerge.errors import ArchitectureError
from evomerge.merge import Plan, WeightStore, into_directory, plan
from evomerge.recipe import Recipe
from evomerge.runtime import LiveModel
from tests.tiny import IMAGE_KINDS, IMAGE_TOKEN, KINDS, auto_class, tiny_checkpoint

RECIPES = {
    "linear": "merge_method: linear\n"
    "models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: [0, 1]}}]\n",
    "ties": "merge_method: ties\nbase_model: base\ndtype: bfloat16\nmodels:\n"
    "  - {model: a, parameters: {weight: 0.7, density: 0.4}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.8}}\n",
    "stack": "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n"
    "  - sources: [{model: b, layer_range: [1, 4]}]\n",
}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the folders of a base and its fine-tunes a and b, made once for each kind."""

    @cache
    def made(kind: str) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(kind)
        base = tiny_checkpoint(folder / "base", kind=kind, tokenizer=False)
        tunes = {
            name: tiny_checkpoint(folder / name, seed, kind, base=base, tokenizer=False)
            for seed, name in enumerate("ab", start=1)
        }
        return {"base": base, **tunes}

    return made


def planned(recipe: str, folders: dict[str, Path]) -> Plan:
    parsed = Recipe.parse(recipe, "r.yaml")
    return plan(parsed, {name: Checkpoint.open(str(folders[name])) for name in parsed.references()})


def loaded(made: Plan, folder: Path, kind: str) -> nn.Module:
    """The plan's model, written to a folder and loaded by transformers, which must find nothing amiss."""
    into_directory(made, folder)
    model, told = auto_class(kind).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    return model


def live(made: Plan) -> nn.Module:
    """The plan's model, filled in place."""
    resident = LiveModel(made, "cpu", made.layout.dtype)
    resident.fill(made, WeightStore(made.layout.checkpoints, "disk", torch.device("cpu"), reused=False))
    return resident.model


def assert_same_values(on_disk: nn.Module, in_memory: nn.Module) -> None:
    one, other = on_disk.state_dict(), in_memory.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.float(), other[name].float()), name


def assert_writes(model: Any, kind: str) -> None:
    """The model must go on with a text, after an image where it takes one, and with finite numbers."""
    inputs: dict[str, Any] = {"input_ids": torch.tensor([[1, 40, 41, 42]])}
    if kind in IMAGE_KINDS:
        pixels = {"pixel_values": torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)}
        if kind == "qwen2_vl":
            pixels = {"pixel_values": torch.linspace(-1, 1, 16 * 48).reshape(16, 48)}
            pixels["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        image = torch.full((1, 4), IMAGE_TOKEN)
        inputs = {"input_ids": torch.cat([torch.tensor([[1, 4]]), image, torch.tensor([[5, 40]])], 1), **pixels}
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
        if kind == "gemma3":
            inputs["token_type_ids"] = inputs.pop("mm_token_type_ids")
        elif kind == "llava":
            inputs.pop("mm_token_type_ids")
    with torch.no_grad():
        out = model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert out.sequences.shape[1] == inputs["input_ids"].shape[1] + 3
    assert all(torch.isfinite(logits).all() for logits in out.logits)


@pytest.mark.parametrize("kind", [*KINDS, *IMAGE_KINDS])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_merge_loads_as_it_was_scored(kind: str, method: str, parents: Any, tmp_path: Path) -> None:
    made = planned(RECIPES[method], parents(kind))
    model = loaded(made, tmp_path / "out", kind)
    assert_same_values(model, live(made))
    if method == "ties":
        assert_writes(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_loads_as_it_was_scored(kind: str, parents: Any, tmp_path: Path) -> None:
    made = planned(RECIPES["stack"], parents(kind))
    model = loaded(made, tmp_path / "out", kind)
    assert model.config.num_hidden_layers == 6
    assert_same_values(model, live(made))
    assert_writes(model, kind)


def test_an_encoder_merges_and_loads_but_is_not_searched(parents: Any, tmp_path: Path) -> None:
    made = planned(RECIPES["ties"], parents("bert"))
    model: Any = loaded(made, tmp_path / "out", "bert")
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[1, 40, 41]])).logits).all()
    stack = loaded(planned(RECIPES["stack"], parents("bert")), tmp_path / "stack", "bert")
    assert len(stack.bert.encoder.layer) == 6
    with pytest.raises(ArchitectureError, match=r"BertForMaskedLM does not generate text.*evomerge apply"):
        LiveModel(made, "cpu", made.layout.dtype)
