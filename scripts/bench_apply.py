"""Measure `evomerge apply` against `mergekit-yaml`: seconds to a model on disk, and peak memory.

    python scripts/bench_apply.py BASE A B --mergekit ~/mergekit/bin/python [--method ties] [--rounds 3] [--json]
    python scripts/bench_apply.py --memory [--scratch DIR] [--json]          (writes up to 45 GB, and removes it)

The first form runs both commands in turn, each in a fresh process, on a recipe of BASE and its fine-tunes A and B. It
reports the seconds of the whole process, from start to end, and of the merge itself, after all imports: from the
recipe to the folder. The second makes a pair of checkpoints of 6 GB and a pair of 12 GB, with the shapes of Llama 3.2
3B and twice its layers, merges each pair, and reports the process's peak memory, as `/usr/bin/time -v` does. There
--mergekit is optional.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from bench_build import recipe_of

from evomerge.checkpoint import CheckpointWriter, TensorInfo

SIDES = ("evomerge", "mergekit")


# The commands that a user would type, with a stop-watch between their imports and their work.
PROGRAMS = {
    "evomerge": """
import sys, time
import evomerge.merge
from evomerge.cli import main
sys.argv = ["evomerge", "apply", *sys.argv[1:]]
""",
    "mergekit": """
import sys, time
import torch, transformers
import mergekit.merge
from mergekit.scripts.run_yaml import main
sys.argv = ["mergekit-yaml", *sys.argv[1:], "--lazy-unpickle", "--quiet"]
""",
}
WATCH = """
start = time.perf_counter()
try:
    main()
except SystemExit as end:
    if end.code:
        raise
finally:
    print(time.perf_counter() - start, file=sys.stderr)
"""


class Run(NamedTuple):
    """What a process used.

    Attributes:
        seconds: from start to end.
        merging: seconds of those spent after the imports.
        peak_bytes: its peak memory.
    """

    seconds: float
    merging: float
    peak_bytes: float


def run(arguments: list[str]) -> Run:
    """Runs a program whose last line is the seconds of its merge."""
    start = time.perf_counter()
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert process.stderr is not None
    text = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{text.decode(errors='replace')[-2000:]}")
    seconds = time.perf_counter() - start
    return Run(seconds, float(text.split()[-1]), used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def merge(side: str, data: dict[str, Any], folder: Path, mergekit: str | None) -> Run:
    """Merges once."""
    recipe, out = folder / "recipe.yaml", folder / "out"
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    python = sys.executable if side == "evomerge" else str(mergekit)
    found = run([python, "-c", PROGRAMS[side] + WATCH, str(recipe), str(out)])
    shutil.rmtree(out)
    return found


def speed(methods: list[str], models: list[str], mergekit: str, rounds: int) -> list[dict[str, Any]]:
    """Returns the figures of each method; the two programs take turns."""
    figures = []
    with tempfile.TemporaryDirectory(dir=Path(models[0]).parent) as folder:
        for method in methods:
            found: dict[str, list[Run]] = {side: [] for side in SIDES}
            for step in range(rounds):
                for side in SIDES:
                    print(f"{method}: {side}, round {step + 1} of {rounds}", file=sys.stderr, flush=True)
                    found[side].append(merge(side, recipe_of(method, models, step), Path(folder), mergekit))
            row: dict[str, Any] = {"method": method}
            for side in SIDES:
                row[side] = statistics.median(run.seconds for run in found[side])
                row[f"{side}_merging"] = statistics.median(run.merging for run in found[side])
                row[f"{side}_peak_bytes"] = max(run.peak_bytes for run in found[side])
            figures.append(_compared(row))
    return figures


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    """Adds how many times as fast evomerge is, if mergekit ran too."""
    if "mergekit" in row:
        row["times_as_fast"] = row["mergekit"] / row["evomerge"]
        row["times_as_fast_merging"] = row["mergekit_merging"] / row["evomerge_merging"]
    return row


def shapes(layers: int) -> Iterator[TensorInfo]:
    """Yields the tensors of Llama 3.2 3B, whose head is its embedding, with `layers` layers."""
    hidden, inner, keys, words = 3072, 8192, 1024, 128_256
    sizes = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (keys, hidden),
    }
    yield TensorInfo("model.embed_tokens.weight", torch.bfloat16, (words, hidden))
    for layer in range(layers):
        for name, shape in sizes.items():
            yield TensorInfo(f"model.layers.{layer}.{name}.weight", torch.bfloat16, shape)
    yield TensorInfo("model.norm.weight", torch.bfloat16, (hidden,))


def make(folder: Path, layers: int, seed: int) -> int:
    """Writes a checkpoint of random values; returns its bytes."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "vocab_size": 128_256,
        "dtype": "bfloat16",
    }
    layout = list(shapes(layers))
    # The same values over and over: only the size matters here.
    values = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(torch.bfloat16)
    with CheckpointWriter(folder, layout) as out:
        for info in layout:
            for start in range(0, info.numel, len(values)):
                out.write(info.name, values[: info.numel - start], start)
        out.commit(config=config)
    return sum(info.nbytes for info in layout)


def memory(scratch: Path | None, methods: list[str], mergekit: str | None) -> list[dict[str, Any]]:
    """Returns the peak memory for models of one size and of twice that size."""
    figures = []
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        for layers in (28, 60):
            folder = Path(place) / str(layers)
            folder.mkdir()
            models = [str(folder / name) for name in ("base", "tuned")]
            print(f"making two checkpoints of {layers} layers", file=sys.stderr, flush=True)
            nbytes = max(make(Path(model), layers, seed) for seed, model in enumerate(models))
            for method in methods:
                data = recipe_of(method, [*models, models[1]], 0)
                data["models"] = data["models"][:1]
                row: dict[str, Any] = {"method": method, "bytes_each": nbytes}
                for side in SIDES[: 2 if mergekit else 1]:
                    print(f"{method}: {side}", file=sys.stderr, flush=True)
                    row[side], row[f"{side}_merging"], row[f"{side}_peak_bytes"] = merge(side, data, folder, mergekit)
                figures.append(_compared(row))
            shutil.rmtree(folder)
    return figures


def table(figures: list[dict[str, Any]]) -> str:
    """Returns the figures as lines of text."""
    lines = []
    for row in figures:
        size = f" of {row['bytes_each'] / 1e9:.1f} GB" if "bytes_each" in row else ""
        sides = "; ".join(
            f"{side} {row[side]:.1f} s ({row[f'{side}_merging']:.1f} s merging), "
            f"{row[f'{side}_peak_bytes'] / 1e9:.2f} GB at most"
            for side in SIDES
            if side in row
        )
        ratio = ""
        if "times_as_fast" in row:
            ratio = f"; {row['times_as_fast']:.1f} times as fast ({row['times_as_fast_merging']:.1f} merging)"
        lines.append(f"{row['method']}{size}: {sides}{ratio}")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="BASE A B, folders of checkpoints")
    parser.add_argument("--method", action="append", help="a merge method, repeatable (default: linear and ties)")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the Python of an environment that has mergekit")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program (default: 3)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory on large models made for this")
    parser.add_argument("--scratch", type=Path, help="where --memory makes its models (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    methods = arguments.method or ["linear", "ties"]
    if arguments.memory:
        figures = memory(arguments.scratch, methods, arguments.mergekit)
    elif len(arguments.models) != 3 or not arguments.mergekit:
        parser.error("give BASE, A, B and --mergekit PYTHON, or --memory")
    else:
        models = [str(Path(model).resolve()) for model in arguments.models]
        figures = speed(methods, models, arguments.mergekit, arguments.rounds)
    print(json.dumps({"merges": figures}, indent=2) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
