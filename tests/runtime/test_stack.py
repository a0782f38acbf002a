"""Stacks by reference against the same stacks written to disk and loaded by transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.architecture import fold_of
from evomerge.checkpoint import Checkpoint
from evomerge.errors import ArchitectureError
from evomerge.merge import Plan, Planner, into_directory
from evomerge.recipe import Recipe
from evomerge.runtime import LikelihoodRequest, StackRuntime, by_reference, verify_fold
from evomerge.runtime.prefixes import Prefixes
from tests.tiny import auto_class, tiny_checkpoint

KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "mixtral", "mamba")

# (model, layer, scale of the residual stream before it): layers of two models, one that is run twice in a row, one that
# comes back later, and one left out.
SCALED = (("a", 0, 1.25), ("a", 1, 0.7), ("a", 1, 1.4), ("b", 3, 0.6), ("a", 1, 1.5), ("b", 0, 0.9))
PLAIN = tuple((model, layer, 1.0) for model, layer, _ in SCALED)
IDS = torch.tensor([[5, 80, 121, 9, 200, 33, 7, 64, 150, 12, 18, 90], [45, 3, 250, 61, 88, 17, 5, 4, 101, 31, 77, 6]])

SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "gemma3": SLIDING,
    "qwen2": {**SLIDING, "use_sliding_window": True},
    "minimax": {"num_local_experts": 2, "layer_types": ["full_attention"] * 4},
}


class Models:
    """Two tiny models of a kind, and plans of stacks of their layers."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        # Large weights, so that what a layer adds is as large as the stream, and a wrong factor shows.
        config = SETTINGS.get(kind, {})
        folders = {
            name: tiny_checkpoint(folder / name, seed, kind, scale=0.3, **config) for seed, name in enumerate("ab")
        }
        self.checkpoints = {name: Checkpoint.open(str(path)) for name, path in folders.items()}
        self.planner = Planner(self.checkpoints)
        self.fold = fold_of(self.checkpoints["a"].config, self.checkpoints["a"].tensors)

    def plan(self, stack: Sequence[tuple[str, int, float]]) -> Plan:
        factor, slices = 1.0, []
        for model, layer, scale in stack:
            factor /= scale
            source: dict[str, Any] = {"model": model, "layer_range": [layer, layer + 1]}
            source["parameters"] = self.fold.parameters(factor)
            slices.append({"sources": [source]})
        return self.planner.plan(Recipe.model_validate({"merge_method": "passthrough", "slices": slices}))

    def runtime(self, first: Plan, **options: Any) -> StackRuntime:
        return StackRuntime(first, "cpu", torch.float32, **options)

    def written(self, made: Plan, folder: Path) -> Any:
        into_directory(made, folder)
        model, told = auto_class(self.kind).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(told.values()), told
        return model.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    return cache(lambda kind: Models(tmp_path_factory.mktemp(kind), kind))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def generated(model: Any, *, use_cache: bool) -> list[list[int]]:
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), use_cache=use_cache, **options)
    return tokens.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [*KINDS, "gemma3"])
def test_a_stack_computes_the_bits_of_the_written_model(
    kind: str, models: Callable[[str], Models], tmp_path: Path
) -> None:
    made = models(kind).plan(PLAIN)
    model, expected = models(kind).runtime(made).module(made), models(kind).written(made, tmp_path / "out")
    assert torch.equal(logits(model), logits(expected))
    tokens = generated(expected, use_cache=False)
    assert generated(expected, use_cache=True) == tokens
    assert generated(model, use_cache=True) == tokens
    assert generated(model, use_cache=False) == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_stack_is_the_folded_model(kind: str, models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models(kind).plan(SCALED)
    model, expected = models(kind).runtime(made).module(made), models(kind).written(made, tmp_path / "out")
    found = logits(model)
    assert difference(found, logits(expected)) < 1e-4
    tokens = generated(expected, use_cache=True)
    assert generated(model, use_cache=True) == tokens
    assert generated(model, use_cache=False) == tokens
    # The scales take part.
    plain = models(kind).plan(PLAIN)
    assert difference(logits(models(kind).runtime(plain).module(plain)), found) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_fold_is_verified_against_a_residual_stream_that_is_scaled(
    kind: str, models: Callable[[str], Models]
) -> None:
    assert 0 < verify_fold(models(kind).plan(SCALED)) < 2e-5


def test_a_fold_that_does_something_else_is_refused(models: Callable[[str], Models]) -> None:
    # The names in MiniMax's blocks are Mixtral's, but what a branch is added to is what its norm gives.
    with pytest.raises(ArchitectureError, match=r"scaling the residual stream is not the same as folding .* 1e-04 or"):
        verify_fold(models("minimax").plan(SCALED))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_scaling_the_stream_itself_gives_the_logits_of_the_stack(
    kind: str, models: Callable[[str], Models], tmp_path: Path
) -> None:
    # Norms add an epsilon to a variance that is scaled here and not there: with large embeddings it is nothing.
    own = models(kind)
    large = {}
    for name, checkpoint in own.checkpoints.items():
        model = auto_class(kind).from_pretrained(checkpoint.folder)
        model.get_input_embeddings().weight.data *= 300
        shutil.copytree(checkpoint.folder, tmp_path / name)
        model.save_pretrained(tmp_path / name)
        large[name] = Checkpoint.open(str(tmp_path / name))
    plain, scaled = (Planner(large).plan(own.plan(stack).recipe) for stack in (PLAIN, SCALED))
    expected = own.written(plain, tmp_path / "out")
    for layer, (_, _, scale) in zip(expected.model.layers, SCALED, strict=True):
        layer.register_forward_pre_hook(lambda _, args, scale=scale: (args[0] * scale, *args[1:]))
    assert difference(logits(own.runtime(scaled).module(scaled)), logits(expected)) < 1e-4


def test_every_stack_is_made_of_references(models: Callable[[str], Models]) -> None:
    own = models("llama")
    plans = [own.plan(PLAIN), own.plan([("b", layer, 0.9) for layer in (0, 1, 2, 3, 3)])]
    runtime = own.runtime(plans[0])
    seen = []
    for made in plans * 2:
        module: Any = runtime.module(made)
        assert module.config.num_hidden_layers == len(module.model.layers) == len(by_reference(made) or ())
        seen.append((logits(module), {parameter.data_ptr() for parameter in module.parameters()}))
    assert seen[0][1] == seen[2][1]
    assert seen[1][1] == seen[3][1]
    assert torch.equal(seen[0][0], seen[2][0])
    assert torch.equal(seen[1][0], logits(own.runtime(plans[1]).module(plans[1])))


def test_layers_run_with_the_settings_of_the_model_that_gives_the_config(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "a", 0, scale=0.3)
    tiny_checkpoint(
        tmp_path / "b", 1, scale=0.3, rms_norm_eps=0.5, rope_parameters={"rope_type": "default", "rope_theta": 10.0}
    )
    checkpoints = {name: Checkpoint.open(str(tmp_path / name)) for name in "ab"}
    runtime = None
    for index, stack in enumerate(("ab", "ba", "ab")):
        slices = [{"sources": [{"model": name, "layer_range": [0, 3]}]} for name in stack]
        made = Planner(checkpoints).plan(Recipe.model_validate({"merge_method": "passthrough", "slices": slices}))
        into_directory(made, tmp_path / f"out{index}")
        runtime = runtime or StackRuntime(made, "cpu", torch.float32)
        expected = auto_class("llama").from_pretrained(tmp_path / f"out{index}")
        assert torch.equal(logits(runtime.module(made)), logits(expected))


def test_kinds_of_layers_that_the_first_stack_lacks_have_their_masks(
    models: Callable[[str], Models], tmp_path: Path
) -> None:
    own = models("qwen2")
    first, second = own.plan([("a", 1, 1.0), ("b", 3, 1.0)]), own.plan([("a", 1, 1.0), ("b", 2, 1.0), ("b", 3, 1.0)])
    runtime = own.runtime(first)
    assert torch.equal(logits(runtime.module(second)), logits(own.written(second, tmp_path / "out")))


def test_what_is_stored_in_bfloat16_is_rounded_in_memory_too(models: Callable[[str], Models], tmp_path: Path) -> None:
    own = models("llama")
    data = own.plan(PLAIN).recipe.model_dump(exclude_unset=True) | {"dtype": "bfloat16"}
    made = own.planner.plan(Recipe.model_validate(data))
    assert torch.equal(logits(own.runtime(made).module(made)), logits(own.written(made, tmp_path / "out")))


def test_models_of_other_sizes_are_refused_and_the_runtime_still_works(
    models: Callable[[str], Models], tmp_path: Path
) -> None:
    own = models("llama")
    wide = Checkpoint.open(str(tiny_checkpoint(tmp_path / "wide", intermediate_size=48)))
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in ("a", "wide")]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    first = own.plan(PLAIN)
    runtime = own.runtime(first)
    expected = logits(runtime.module(first))
    with pytest.raises(ArchitectureError, match=r"gate_proj.weight of shape \[48, 16\], .* has one of \[32, 16\]"):
        runtime.module(Planner({**own.checkpoints, "wide": wide}).plan(recipe))
    assert torch.equal(logits(runtime.module(first)), expected)


def test_layers_that_take_keys_and_values_from_others_are_refused(models: Callable[[str], Models]) -> None:
    made = models("llama").plan(PLAIN)
    sharing = replace(made, layout=replace(made.layout, config={**made.layout.config, "num_kv_shared_layers": 2}))
    with pytest.raises(ArchitectureError, match="take keys and values from other layers"):
        models("llama").runtime(sharing)


REQUESTS = [LikelihoodRequest((1, 5, 9 + row), tuple(range(20, 24 + row))) for row in range(5)]
# Of 6 to 10 tokens that are read, the first two are the same: each token once, or padded to the longest.
PACKED, PADDED = 2 + sum(range(4, 9)), 5 * 10
STACKS = (
    (("a", 0, 1.0), ("a", 1, 1.0), ("a", 2, 1.0)),
    (("a", 0, 1.0), ("a", 1, 1.0), ("a", 3, 1.0), ("a", 0, 1.0)),
    (("a", 0, 1.0), ("a", 1, 1.0), ("a", 3, 1.0), ("b", 0, 1.0)),
    (("a", 0, 1.0), ("a", 1, 1.25), ("a", 3, 1.0), ("b", 0, 1.0)),
    (("b", 0, 1.0), ("a", 1, 1.0), ("a", 3, 1.0)),
)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "mamba"])
@pytest.mark.parametrize(("budget", "shared"), [(2**30, 2 + 3 + 1), (0, 0)])
def test_shared_first_layers_are_run_once_and_give_the_same_bits(
    kind: str, budget: int, shared: int, models: Callable[[str], Models]
) -> None:
    own = models(kind)
    plans = [own.plan(stack) for stack in STACKS]
    without = own.runtime(plans[0])
    alone = [without.load(made).loglikelihoods(REQUESTS) for made in plans]
    assert without.layer_runs.shared == 0
    runtime = own.runtime(plans[0], prefix_bytes=budget)
    runtime.expect(plans)
    assert [runtime.load(made).loglikelihoods(REQUESTS) for made in plans] == alone
    tokens = PADDED if kind == "mamba" else PACKED
    assert runtime.layer_runs.shared == tokens * shared
    assert runtime.layer_runs.run + runtime.layer_runs.shared == without.layer_runs.run
    assert without.layer_runs.run >= tokens * sum(map(len, STACKS))


def test_other_batches_share_nothing(models: Callable[[str], Models]) -> None:
    own = models("llama")
    plans = [own.plan(stack) for stack in STACKS[:2]]
    runtime = own.runtime(plans[0])
    runtime.expect(plans)
    runtime.load(plans[0]).loglikelihoods(REQUESTS)
    found = runtime.load(plans[1]).loglikelihoods(REQUESTS[:3])
    assert found == own.runtime(plans[1]).load(plans[1]).loglikelihoods(REQUESTS[:3])
    assert runtime.layer_runs.shared == 0


def test_of_prefixes_those_that_spare_the_fewest_layers_are_dropped_first() -> None:
    states = torch.zeros(10)
    prefixes = Prefixes(2 * states.nbytes)
    paths = [("ids", *"abcdefg"), ("ids", *"abcdefh"), ("ids", *"abcdx"), ("ids", *"ay")]
    prefixes.expect(paths)
    prefixes.begin(paths[0])
    for depth in range(1, 8):
        prefixes.offer(depth, b"batch", states + depth)
    assert prefixes.nbytes == 2 * states.nbytes
    found = []
    for path in paths[1:]:
        prefixes.begin(path)
        found.append(prefixes.deepest(b"batch")[0])
    # After a alone, one layer would be spared once; after abcd four, twice, and after abcdef two more.
    assert found == [6, 4, 0]
    assert prefixes.nbytes == 0


@pytest.mark.parametrize(
    "scale",
    [[{"filter": "o_proj", "value": 0.5}, {"value": 1.0}], [{"filter": "up_proj", "value": 0.5}, {"value": 1.0}], 0.5],
    ids=["one branch", "another tensor", "all tensors"],
)
def test_a_scale_that_is_none_of_a_layer_is_not_by_reference(scale: Any, models: Callable[[str], Models]) -> None:
    own = models("llama")
    source = {"model": "a", "layer_range": [0, 4], "parameters": {"scale": scale}}
    made = own.planner.plan(Recipe.model_validate({"merge_method": "passthrough", "slices": [{"sources": [source]}]}))
    assert by_reference(made) is None
    with pytest.raises(ArchitectureError, match="is not a stack of whole layers"):
        own.runtime(made)


def test_a_merge_of_weights_is_not_by_reference(models: Callable[[str], Models]) -> None:
    entries = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    assert (
        by_reference(models("llama").planner.plan(Recipe.model_validate({"merge_method": "linear", "models": entries})))
        is None
    )


def test_layers_of_a_plan_are_read_off_it(models: Callable[[str], Models]) -> None:
    found = by_reference(models("gemma2").plan(SCALED))
    assert found is not None
    factor = 1.0
    for (model, layer, scale), own in zip(SCALED, found, strict=True):
        factor /= scale
        assert own == (model, layer, pytest.approx(factor))
