"""Plans: precedence, gradients, filters, slices; the two sinks give the same bits."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from evomerge.checkpoint import Checkpoint, CheckpointView
from evomerge.errors import ArchitectureError, CheckpointError, MergeError, RecipeError
from evomerge.merge import Plan, WeightStore, into_directory, into_tensors, plan
from evomerge.recipe import Recipe
from evomerge.runtime import LiveModel
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_checkpoint(folder / "base", seed=0)
    return {
        "base": base,
        "a": tiny_checkpoint(folder / "a", seed=1, base=base),
        "b": tiny_checkpoint(folder / "b", seed=2, base=base, dtype=torch.bfloat16),
        "deep": tiny_checkpoint(folder / "deep", seed=3, layers=6),
        "wide": tiny_checkpoint(folder / "wide", seed=4, hidden=32),
        "vocabulary": tiny_checkpoint(folder / "vocabulary", seed=5, extra_tokens=["<extra>"]),
    }


def planned(text: str, models: dict[str, Path]) -> Plan:
    recipe = Recipe.parse(text, "r.yaml")
    return plan(recipe, {name: Checkpoint.open(str(models[name])) for name in recipe.references()})


def from_disk(made: Plan) -> WeightStore:
    return WeightStore(made.layout.checkpoints, "disk", torch.device("cpu"), reused=False)


def merged(text: str, models: dict[str, Path]) -> dict[str, torch.Tensor]:
    made = planned(text, models)
    found = {info.name: torch.empty(info.shape, dtype=info.dtype) for info in made.layout.tensors}
    into_tensors(made, found, from_disk(made))
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


METHODS = {
    "linear": "merge_method: linear\n"
    "models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: [0, 1]}}]\n",
    "slerp": "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 0.5, 1]}\n",
    "ties": "merge_method: ties\nbase_model: base\nmodels:\n"
    "  - {model: a, parameters: {weight: 0.7, density: 0.4}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.8}}\n",
    "dare_ties": "merge_method: dare_ties\nbase_model: base\nmodels:\n"
    "  - {model: a, parameters: {weight: 0.7, density: 0.4}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.8}}\n",
    "stack": "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n"
    "  - sources: [{model: b, layer_range: [1, 4]}]\n",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
@pytest.mark.parametrize("name", METHODS)
def test_memory_and_disk_hold_the_same_bits_and_transformers_loads_them(
    name: str, dtype: str | None, models: dict[str, Path], tmp_path: Path
):
    made = planned(METHODS[name] + (f"dtype: {dtype}\n" if dtype else ""), models)
    into_directory(made, tmp_path / "out", shard_bytes=20_000)
    live = LiveModel(made, "cpu", made.layout.dtype)
    store = WeightStore(made.layout.checkpoints, "memory", torch.device("cpu"))
    store.load()
    live.fill(made, store)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32 if dtype is None else "auto")
    on_disk, in_memory = loaded.state_dict(), live.model.state_dict()
    assert on_disk.keys() == in_memory.keys()
    for key, tensor in on_disk.items():
        assert torch.equal(tensor.float(), in_memory[key].float()), key
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert loaded.config.num_hidden_layers == (6 if name == "stack" else 4)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.isfinite(loaded(input_ids=ids).logits).all()


@pytest.mark.parametrize("name", METHODS)
def test_bits_are_the_same_on_one_thread_and_on_two(name: str, models: dict[str, Path], tmp_path: Path):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made = planned(METHODS[name] + "dtype: bfloat16\n", models)
            into_directory(made, tmp_path / str(threads))
            results += [tensors(tmp_path / str(threads)), merged(METHODS[name] + "dtype: bfloat16\n", models)]
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(tensor, other[key]) for key, tensor in results[0].items())


def test_filling_again_overwrites_every_value(models: dict[str, Path]):
    first, second = planned(METHODS["ties"], models), planned(METHODS["linear"], models)
    live = LiveModel(first, "cpu", first.layout.dtype)
    live.fill(first, from_disk(first))
    live.fill(second, from_disk(second))
    fresh = LiveModel(second, "cpu", second.layout.dtype)
    fresh.fill(second, from_disk(second))
    for key, tensor in fresh.model.state_dict().items():
        assert torch.equal(tensor, live.model.state_dict()[key])


def test_passthrough_copies_every_bit(models: dict[str, Path]):
    found = merged("merge_method: passthrough\nmodels: [{model: b}]\n", models)
    expected = tensors(models["b"])
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name])


def weights_of(made: Plan, name: str) -> list[float]:
    (job,) = [job for job in made.layout.jobs if job.info.name == name]
    parameters = made.parameters(job)
    assert parameters is not None
    return [float(model["weight"]) for model in parameters.models]


def test_a_gradient_follows_the_depth_and_starts_at_what_lies_outside_the_layers(models: dict[str, Path]):
    made = planned(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [0, 1]}},"
        " {model: b, parameters: {weight: [1, 0.5, 1]}}]\n",
        models,
    )
    layer = "model.layers.%d.mlp.up_proj.weight"
    found = [weights_of(made, layer % i) for i in range(4)]
    assert [w for w, _ in found] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [w for _, w in found] == pytest.approx([1, 2 / 3, 2 / 3, 1])
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert weights_of(made, name) == [0, 1]


def test_the_source_comes_before_its_slice_before_the_whole(models: dict[str, Path]):
    made = planned(
        """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 0.1}]}}
      - {model: b, layer_range: [0, 2]}
    parameters: {weight: [{filter: up_proj, value: 0.2}, {filter: self_attn, value: 0.3}]}
  - sources:
      - {model: a, layer_range: [2, 4]}
      - {model: b, layer_range: [2, 4]}
parameters: {weight: 0.4}
""",
        models,
    )
    assert weights_of(made, "model.layers.0.mlp.up_proj.weight") == [0.1, 0.2]
    assert weights_of(made, "model.layers.1.self_attn.q_proj.weight") == [0.3, 0.3]
    assert weights_of(made, "model.layers.1.mlp.down_proj.weight") == [0.1, 0.4]
    assert weights_of(made, "model.layers.2.mlp.up_proj.weight") == [0.4, 0.4]


def test_a_stack_takes_its_layers_in_order_with_the_ends_of_its_first_and_last_models(models: dict[str, Path]):
    made = planned(METHODS["stack"], models)
    found = merged(METHODS["stack"], models)
    a, b = tensors(models["a"]), tensors(models["b"])
    name = "model.layers.%d.mlp.up_proj.weight"
    for layer, (model, own) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        assert torch.equal(found[name % layer].float(), model[name % own].float())
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["model.norm.weight"], b["model.norm.weight"])
    assert made.layout.config["num_hidden_layers"] == 6


def test_a_deeper_model_merges_with_one_that_lacks_its_last_layers(models: dict[str, Path]):
    sources = "{model: deep, layer_range: [4, 6], parameters: {weight: 1}}, {model: base, layer_range: [1, 3]}"
    out = merged(f"merge_method: linear\nslices: [{{sources: [{sources}]}}]\nparameters: {{weight: 3}}\n", models)
    deep, base = tensors(models["deep"]), tensors(models["base"])
    name = "self_attn.q_proj.weight"
    for layer in (0, 1):
        mean = 0.25 * deep[f"model.layers.{layer + 4}.{name}"] + 0.75 * base[f"model.layers.{layer + 1}.{name}"]
        torch.testing.assert_close(out[f"model.layers.{layer}.{name}"], mean)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_without_a_dtype_the_result_has_the_widest_of_its_sources(order: tuple[str, str], models: dict[str, Path]):
    entries = ", ".join(f"{{model: {name}, parameters: {{weight: 1}}}}" for name in order)
    made = planned(f"merge_method: linear\nmodels: [{entries}]\n", models)
    assert {info.dtype for info in made.layout.tensors} == {torch.float32}
    made = planned(
        "merge_method: task_arithmetic\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1}}]\n", models
    )
    assert {info.dtype for info in made.layout.tensors} == {torch.float32}


def test_two_layers_of_one_model_merge(models: dict[str, Path]):
    found = merged(
        "merge_method: linear\n"
        "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: a, layer_range: [2, 4]}]}]\n"
        "parameters: {weight: 1}\n",
        models,
    )
    a = tensors(models["a"])
    name = "model.layers.%d.mlp.up_proj.weight"
    torch.testing.assert_close(found[name % 1], (a[name % 1] + a[name % 3]) / 2)


def test_a_tied_head_is_not_written(tmp_path: Path):
    tied = tiny_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    made = planned("merge_method: passthrough\nmodels: [{model: tied}]\n", {"tied": tied})
    assert "lm_head.weight" not in [info.name for info in made.layout.tensors]
    into_directory(made, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma3_text"])
def test_other_architectures_fill_and_load(kind: str, tmp_path: Path):
    base = tiny_checkpoint(tmp_path / "base", kind=kind)
    found = {"base": base} | {
        name: tiny_checkpoint(tmp_path / name, seed=seed, base=base) for seed, name in enumerate("ab", start=1)
    }
    made = planned(METHODS["ties"], found)
    into_directory(made, tmp_path / "out")
    live = LiveModel(made, "cpu", made.layout.dtype)
    live.fill(made, from_disk(made))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, live.model.state_dict()[key]), key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (METHODS["linear"].replace("model: b", "model: deep"), "r.yaml:2: models[1].model: deep does not fit a"),
        (METHODS["linear"].replace("model: b", "model: wide"), "wide does not fit a"),
        (METHODS["linear"].replace("model: b", "model: vocabulary"), "vocabular"),
        ("merge_method: linear\nmodels: [{model: a}]\n", 'r.yaml:2: models[0]: linear needs "weight" of a'),
        (
            METHODS["stack"].replace("[1, 4]", "[2, 5]"),
            "slices[1].sources[0].layer_range: the range ends at 5, but b has 4 layers; end at 4 or less",
        ),
        (METHODS["stack"].replace("model: b, layer_range: [1, 4]", "model: wide, layer_range: [1, 4]"), "shape"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_place(text: str, words: str, models: dict[str, Path]):
    if "wide" in text and "slices" in text:
        # A stack of layers of another width: its first tensor that does not fit is named by the live model.
        made = planned(text, models)
        with pytest.raises(ArchitectureError, match=words):
            LiveModel(made, "cpu", made.layout.dtype)
        return
    with pytest.raises(RecipeError) as caught:
        planned(text, models)
    assert words in str(caught.value)


def test_a_merge_that_is_not_finite_is_refused(models: dict[str, Path]):
    text = METHODS["linear"].replace("weight: 0.3", "weight: 1.0e+8")
    with pytest.raises(MergeError, match="not finite in float16"):
        merged(text + "parameters: {normalize: false}\ndtype: float16\n", models)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_nan_in_a_source_is_found_when_it_is_loaded(place, tmp_path: Path):
    from safetensors.torch import save_file

    folder = tiny_checkpoint(tmp_path / "nan")
    broken = tensors(folder)
    broken["model.norm.weight"][3] = float("nan")
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    store = WeightStore({"nan": Checkpoint.open(str(folder))}, place, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"nan: model\.norm\.weight has 1 values that are NaN"):
        store.load()


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_views_may_make_tensors_of_any_layout(place: Literal["memory", "disk"], models: dict[str, Path]):
    class Turned(CheckpointView):
        def made(self, name: str) -> torch.Tensor:
            tensor = self.inner.read(name)
            return tensor.T.contiguous().T if tensor.ndim == 2 else tensor

    made = planned(METHODS["linear"], models)
    turned = {name: Turned(checkpoint, difference="turned") for name, checkpoint in made.layout.checkpoints.items()}
    store = WeightStore(turned, place, torch.device("cpu"))
    store.load()
    found = {info.name: torch.empty(info.shape, dtype=info.dtype) for info in made.layout.tensors}
    into_tensors(made, found, store)
    expected = merged(METHODS["linear"], models)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
