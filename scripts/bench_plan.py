"""Measure how long it takes to decode and plan a candidate: from a genome to the values of every tensor.

    python scripts/bench_plan.py [--rounds 20] [--json]

Merges of three shapes: SmolLM2-135M (272 tensors), Mixtral 8x7B (995), and a Mixtral with 64 experts a layer (6,371).
Their files have headers and no weights: planning reads none. Every candidate has other numbers: a weight for each layer
and model, and a density for each model, one of them by a filter. The layout is made for the first.

And stacks of 30 to 40 layers of three models shaped like SmolLM2-135M, in any order, each at most twice, without scales
and with one for each layer. Here every candidate has a layout of its own, and is loaded as well, by reference to the
models in memory, which takes 1 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from evomerge.architecture import fold_of
from evomerge.checkpoint import TensorInfo
from evomerge.checkpoint.header import encode_header
from evomerge.merge import Planner, open_models
from evomerge.recipe import Recipe
from evomerge.runtime import StackRuntime
from evomerge.search import NumberSpace, StackSpace

SMOLLM2 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
MIXTRAL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "num_local_experts": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": SMOLLM2,
    "mixtral-8x7b": MIXTRAL,
    "mixtral-64x7b": {**MIXTRAL, "num_local_experts": 64},
}


def tensors_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and shape of every tensor of a Llama or a Mixtral."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    keys = hidden // heads * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{stem}.{norm}.weight", (hidden,)
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys), ("o_proj", hidden)):
            yield f"{stem}.self_attn.{name}.weight", (rows, hidden)
        if "num_local_experts" in config:
            yield f"{stem}.block_sparse_moe.gate.weight", (config["num_local_experts"], hidden)
            for expert in range(config["num_local_experts"]):
                for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
                    yield f"{stem}.block_sparse_moe.experts.{expert}.{name}.weight", shape
        else:
            for name, shape in (
                ("gate_proj", (inner, hidden)),
                ("up_proj", (inner, hidden)),
                ("down_proj", (hidden, inner)),
            ):
                yield f"{stem}.mlp.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def write_header(folder: Path, config: dict[str, Any]) -> str:
    """Writes a checkpoint with a header and a sparse file in place of its weights; returns its path."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    infos = [TensorInfo(name, torch.bfloat16, shape) for name, shape in tensors_of(config)]
    head = encode_header(infos)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(info.nbytes for info in infos))
    return str(folder)


def recipe_of(base: str, models: list[str], layers: int) -> Recipe:
    """Returns a recipe with a hole for each layer and model, and a density for each model."""
    weight = {"search": [0, 1], "layers": layers}
    density: list[Any] = [{"filter": "self_attn", "value": {"search": [0.1, 1]}}, {"value": 0.5}]
    parameters = [{"weight": weight, "density": density}, {"weight": weight, "density": {"search": [0.1, 1]}}]
    entries = [{"model": model, "parameters": own} for model, own in zip(models, parameters, strict=True)]
    return Recipe.model_validate(
        {"merge_method": "ties", "base_model": base, "models": entries, "dtype": "bfloat16", "tasks": [], "search": {}}
    )


def measure(folder: Path, config: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Returns milliseconds for the first candidate and, as a median, for each after it."""
    names = [write_header(folder / name, config) for name in ("base", "a", "b")]
    recipe = recipe_of(names[0], names[1:], config["num_hidden_layers"])
    checkpoints = open_models(recipe)
    space = NumberSpace(recipe, depths=dict.fromkeys(recipe.holes(), config["num_hidden_layers"]))
    planner, rng = Planner(checkpoints), np.random.default_rng(0)
    spent = []
    for _ in range(rounds + 1):
        genome = rng.random(len(space)).tolist()
        start = time.perf_counter()
        made = planner.plan(space.decode(genome))
        spent.append(time.perf_counter() - start)
    return {"tensors": len(made.layout.jobs), "numbers": len(space), **figures(spent)}


def measure_stacks(folder: Path, rounds: int, scale: tuple[float, float] | None) -> dict[str, Any]:
    """Returns milliseconds for the first stack and, as medians, for each after it."""
    names = [write_header(folder / name, SMOLLM2) for name in ("a", "b", "c")]
    tokenizer = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(names[0])
    hole = {"models": names, "repeats": 2, "min_layers": 30, "max_layers": 40, "scale": scale}
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": {"search": hole}, "dtype": "bfloat16"})
    checkpoints = open_models(recipe)
    fold = None if scale is None else fold_of(SMOLLM2, checkpoints[names[0]].tensors)
    space = StackSpace(recipe, [SMOLLM2["num_hidden_layers"]] * len(names), fold)
    planner, rng = Planner(checkpoints), np.random.default_rng(0)
    runtime = StackRuntime(planner.plan(space.decode(space.parents[0])), "cpu", torch.bfloat16)
    spent, planned = [], []
    for _ in range(rounds + 1):
        genome = space.sample(rng)
        start = time.perf_counter()
        made = planner.plan(space.decode(genome))
        planned.append(time.perf_counter() - start)
        runtime.load(made)
        spent.append(time.perf_counter() - start)
    found = {"tensors": len(made.layout.jobs), **figures(spent)}
    return {**found, "plan_ms": figures(planned)["candidate_ms"]}


def figures(seconds: list[float]) -> dict[str, float]:
    """Returns milliseconds for the first candidate, and the median and the most for those after it."""
    first, *others = (1000 * one for one in seconds)
    found = {"first_ms": first, "candidate_ms": statistics.median(others), "slowest_ms": max(others)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Prints a line, or a JSON entry, for each shape of model and for stacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="candidates after the first (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = {}
    for name, config in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(Path(folder), config, arguments.rounds)
    for name, scale in (("stack", None), ("scaled stack", (0.5, 1.5))):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure_stacks(Path(folder), arguments.rounds, scale)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, row in found.items():
        what = f"{row['numbers']} numbers" if "numbers" in row else f"{row['plan_ms']:.2f} ms of them to plan"
        print(
            f"{name:16} {row['tensors']:5} tensors: {row['candidate_ms']:6.2f} ms a candidate"
            f" (the first {row['first_ms']:.0f} ms), {what}"
        )


if __name__ == "__main__":
    main()
