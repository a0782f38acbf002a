"""Places in a live model against what transformers makes of the same checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, ConversionOps, Transpose, WeightConverter

from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.errors import ArchitectureError
from evomerge.runtime.live import materialized, skeleton
from evomerge.runtime.placement import places
from tests.tiny import auto_class, tiny_checkpoint


def filled(folder: Path) -> tuple[Any, dict[str, torch.Tensor | None]]:
    """A live model with the checkpoint's values, written at their places, and these places."""
    checkpoint = Checkpoint.open(str(folder))
    model = materialized(skeleton(checkpoint.config, torch.float32), torch.float32, "cpu")
    found = places(model, checkpoint.tensors.values(), "it")
    for name, place in found.items():
        if place is not None:
            place.copy_(checkpoint.read(name))
    return model, found


def assert_loads_alike(folder: Path, model: Any, kind: str = "llama") -> None:
    expected = auto_class(kind).from_pretrained(folder, dtype=torch.float32).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_experts_are_stacked_by_their_numbers_and_written_in_place(tmp_path: Path) -> None:
    # With more than ten experts the names' own order is another.
    folder = tiny_checkpoint(tmp_path, kind="mixtral", num_local_experts=12, tokenizer=False)
    model, found = filled(folder)
    assert_loads_alike(folder, model)
    fused = model.model.layers[1].mlp.experts.gate_up_proj
    name = "model.layers.1.block_sparse_moe.experts.10.w3.weight"
    place = found[name]
    assert place is not None
    assert place.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert torch.equal(fused[10, 32:], load_file(folder / "model.safetensors")[name])


def convert(
    monkeypatch: pytest.MonkeyPatch, sources: str | list[str], targets: Any, *operations: ConversionOps
) -> None:
    """Has transformers convert tensors of Llama models when it loads them."""
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # Makes the table.
    entries = [WeightConverter(sources, targets, operations=list(operations))]
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "llama", entries)


def rewritten(folder: Path, change: Any) -> Path:
    """A checkpoint as it lay on disk before it was converted."""
    from safetensors.torch import save_file

    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_transposed_tensor_is_written_through_a_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rewritten(
        tiny_checkpoint(tmp_path, tokenizer=False),
        lambda tensors: {n: t.T.contiguous() if "up_proj" in n else t for n, t in tensors.items()},
    )
    convert(monkeypatch, "mlp.up_proj.weight", "mlp.up_proj.weight", Transpose(0, 1))
    model, found = filled(folder)
    place = found["model.layers.0.mlp.up_proj.weight"]
    assert place is not None
    assert place.shape == (16, 32)
    assert not place.is_contiguous()
    assert_loads_alike(folder, model)


def test_rows_are_joined_in_the_order_of_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def split(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        whole = {n: t for n, t in tensors.items() if "up_proj" in n}
        # By name, b comes after a; the conversion puts it first.
        parts = {n.replace("up_proj", "up_b"): t[:10].clone() for n, t in whole.items()}
        parts |= {n.replace("up_proj", "up_a"): t[10:].clone() for n, t in whole.items()}
        return {n: t for n, t in tensors.items() if n not in whole} | parts

    folder = rewritten(tiny_checkpoint(tmp_path, tokenizer=False), split)
    convert(monkeypatch, ["mlp.up_b.weight", "mlp.up_a.weight"], "mlp.up_proj.weight", Concatenate(0))
    model, _ = filled(folder)
    assert_loads_alike(folder, model)


def test_a_conversion_that_is_no_placement_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = rewritten(
        tiny_checkpoint(tmp_path, tokenizer=False),
        lambda tensors: (
            {n: t for n, t in tensors.items() if "gate_proj" not in n and "up_proj" not in n}
            | {f"model.layers.{i}.mlp.both.weight": torch.zeros(64, 16) for i in range(4)}
        ),
    )
    convert(monkeypatch, "mlp.both.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], Chunk(0))
    with pytest.raises(ArchitectureError, match=r"both\.weight: transformers computes .*up_proj.* from it with Chunk"):
        filled(folder)


def infos(folder: Path, *without: str) -> list[TensorInfo]:
    tensors: Sequence[TensorInfo] = list(Checkpoint.open(str(folder)).tensors.values())
    return [info for info in tensors if not info.name.endswith(without or ("none",))]


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_what_is_not_filled_is_told(kind: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, kind=kind, tokenizer=False)
    model = skeleton(Checkpoint.open(str(folder)).config, torch.float32)
    assert None not in places(model, infos(folder), "it").values()
    # One of two halves of an expert's parameter is missing in Mixtral: then the shapes do not agree.
    missing, words = {
        "llama": (
            "layers.1.mlp.up_proj.weight",
            r"it: 1 of the model's parameters are missing .*layers\.1\.mlp\.up_proj",
        ),
        "mixtral": ("layers.1.block_sparse_moe.experts.2.w1.weight", "joined with others, has shape"),
    }[kind]
    with pytest.raises(ArchitectureError, match=words):
        places(model, infos(folder, missing), "it")


def test_a_tensor_that_the_model_does_not_have_has_no_place(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, tokenizer=False)
    model = skeleton(Checkpoint.open(str(folder)).config, torch.float32)
    further = TensorInfo("model.layers.4.eh_proj.weight", torch.float32, (4, 4))
    found = places(model, [*infos(folder), further], "it")
    assert found[further.name] is None
    assert sum(place is None for place in found.values()) == 1


NAMES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    # What transformers 5 itself has in memory, and some have saved.
    "llava, by its new names": (
        "llava",
        [
            ("language_model.lm_head.", "lm_head."),
            ("language_model.model.", "model.language_model."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ],
    ),
    "llava, with CLIP's own module in between": (
        "llava",
        [("vision_tower.", "vision_tower.vision_model.")],
    ),
    "qwen2_vl, by its new names": ("qwen2_vl", [("model.", "model.language_model."), ("visual.", "model.visual.")]),
    "gemma3, by its new names": (
        "gemma3",
        [
            ("language_model.model.", "model.language_model."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ],
    ),
    "gpt2, as the Hub has it": ("gpt2", [("transformer.", "")]),
    "llama, without its head's model": ("llama", [("model.", "")]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_checkpoints_have_had(case: str, tmp_path: Path) -> None:
    kind, prefixes = NAMES[case]
    folder = tiny_checkpoint(tmp_path, kind=kind, layers=2, tokenizer=False)

    def renamed(name: str) -> str:
        old, new = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
        return new + name.removeprefix(old)

    before = set(load_file(folder / "model.safetensors"))
    rewritten(folder, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()})
    assert set(load_file(folder / "model.safetensors")) != before
    model, found = filled(folder)
    assert None not in found.values()
    assert_loads_alike(folder, model, kind)
