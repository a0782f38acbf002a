"""Measure how long one candidate takes to build in memory: here, in mergekit, and as a plain copy of its bytes.

    python scripts/bench_build.py BASE A B [--method ties --method linear] [--rounds 5] [--json]
    python scripts/bench_build.py models/smollm2-135m-instruct models/smollm2-english-math models/smollm2-spanish \
        --mergekit ~/mergekit/bin/python

All sides take turns in one run, on the same models and threads; the figures are medians. Every round uses different
weights and densities, as the candidates of a search do. The plain copy reads every model once and writes the merge
once. --mergekit names the Python of an environment that has mergekit (`pip install mergekit==0.1.5`); mergekit then
computes every tensor and keeps none.

Needs torch and three checkpoints of one architecture. With mergekit, a round of all methods takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from evomerge.kernels import PIECE, pieces
from evomerge.merge import Plan, WeightStore, into_tensors, open_models, plan
from evomerge.methods import METHODS
from evomerge.recipe import Recipe

METHODS_COMPARED = ("linear", "slerp", "ties", "dare_ties", "della", "breadcrumbs")

MERGEKIT = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
from transformers import AutoConfig
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    config = MergeConfiguration.model_validate(json.loads(line))
    options = MergeOptions(cuda=False, lazy_unpickle=True, quiet=True)
    known = AutoConfig.from_pretrained(str(config.referenced_models()[0].model.path))
    start = time.perf_counter()
    planner = MergePlanner(config, get_architecture_info(config, options), options=options, out_model_config=known)
    planner._plan()
    tasks = [task for _, task in planner._tensors]
    for _, tensor in Executor(tasks, math_device="cpu", storage_device="cpu").run(quiet=True):
        del tensor
    print(json.dumps(time.perf_counter() - start), flush=True)
"""


def recipe_of(method: str, models: list[str], step: int) -> dict[str, Any]:
    """Returns a recipe of `method`; each step has other numbers, as each candidate of a search has."""
    base, *others = models
    numbers = {
        "weight": (0.6 + 0.01 * step, 0.5 - 0.01 * step),
        "density": (0.5 + 0.01 * step, 0.3 + 0.01 * step),
        "t": (0.3 + 0.01 * step,) * 2,
    }
    declared = METHODS[method]
    # With two models beside the base where the method takes them; slerp goes from one to the other.
    listed = others if declared.models[1] is None else others[:1]
    each = [
        {p.name: numbers[p.name][i] for p in declared.parameters if p.per_model and p.name in numbers}
        for i in range(len(listed))
    ]
    data: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": model, "parameters": own} for model, own in zip(listed, each, strict=True)],
        "dtype": "bfloat16",
        "parameters": {
            p.name: numbers[p.name][0] for p in declared.parameters if not p.per_model and p.name in numbers
        },
    }
    if declared.base != "unused":
        data["base_model"] = base if declared.base != "endpoint" else others[-1]
    if declared.base == "endpoint":
        data["models"].append({"model": others[-1]})
    return data


class Ours:
    """Builds candidates as a search does: models in memory, the merge written in place.

    Attributes:
        first: seconds for the first candidate, which includes measuring the models.
    """

    def __init__(self, method: str, models: list[str]) -> None:
        self.method, self.models = method, models
        made = self._plan(0)
        self.store = WeightStore(made.layout.checkpoints, "memory", torch.device("cpu"))
        self.store.load()
        self.result = {info.name: torch.zeros(info.shape, dtype=info.dtype) for info in made.layout.tensors}
        self.first = self.build(0)

    def _plan(self, step: int) -> Plan:
        recipe = Recipe.model_validate(recipe_of(self.method, self.models, step))
        return plan(recipe, open_models(recipe))

    def build(self, step: int) -> float:
        """Returns the seconds for one candidate."""
        made = self._plan(step)
        return timed(lambda: into_tensors(made, self.result, self.store))

    def copy(self) -> float:
        """Returns the seconds to read all models and write the output, with nothing computed."""
        made = self._plan(0)

        def copied(name: str) -> None:
            (job,) = (job for job in made.layout.jobs if job.info.name == name)
            operands = self.store.operands(job)
            target = self.result[name].view(-1)
            scratch = torch.empty(PIECE, dtype=target.dtype)
            first, *others = operands.with_base
            for start, stop in pieces(target.numel()):
                for tensor in others:  # read only: the scratch stays in the cache
                    scratch[: stop - start].copy_(tensor.piece(start, stop))
                target[start:stop].copy_(first.piece(start, stop))

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return timed(lambda: list(pool.map(copied, sorted(self.result, key=lambda n: -self.result[n].numel()))))


class Mergekit:
    """mergekit in its own process, started once."""

    def __init__(self, python: str, models: list[str]) -> None:
        self.models = models
        self.process = subprocess.Popen(
            [python, "-c", MERGEKIT, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )

    def build(self, method: str, step: int) -> float:
        """Returns the seconds for one candidate."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(recipe_of(method, self.models, step)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("mergekit ended; is it installed in that environment? (pip install mergekit==0.1.5)")
        return float(json.loads(line))


def timed(work: Callable[[], object]) -> float:
    """Returns the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(ours: Ours, mergekit: Mergekit | None, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the figures of one method."""
    method = ours.method
    seconds: dict[str, list[float]] = {"build": [], "copy": [], "mergekit": []}
    for step in range(1, rounds + 1):
        say(f"{method}: round {step} of {rounds}")
        seconds["build"].append(ours.build(step))
        seconds["copy"].append(ours.copy())
        # mergekit's rounds take a hundred times longer, and vary less.
        if mergekit is not None and step <= max(1, rounds // 3):
            seconds["mergekit"].append(mergekit.build(method, step))
    found: dict[str, Any] = {"method": method, "first": ours.first}
    found |= {side: statistics.median(times) for side, times in seconds.items() if times}
    found["times_copy"] = found["build"] / found["copy"]
    if "mergekit" in found:
        found["times_as_fast"] = found["mergekit"] / found["build"]
    return found


def table(figures: list[Mapping[str, Any]]) -> str:
    """Returns the figures as a table."""
    lines = [f"{'method':18}{'first s':>9}{'build s':>9}{'copy s':>9}{'/ copy':>8}{'mergekit s':>12}{'as fast':>9}"]
    for row in figures:
        theirs = f"{row['mergekit']:12.2f}{row['times_as_fast']:8.0f}x" if "mergekit" in row else ""
        lines.append(
            f"{row['method']:18}{row['first']:9.3f}{row['build']:9.3f}{row['copy']:9.3f}{row['times_copy']:8.1f}{theirs}"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, role in (("base", "the base model"), ("a", "a fine-tune of it"), ("b", "another fine-tune of it")):
        parser.add_argument(name, metavar=name.upper(), type=Path, help=f"{role}, a folder")
    parser.add_argument(
        "--method",
        action="append",
        choices=sorted(METHODS),
        help="repeatable (default: the README's six)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="candidates to build (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for every side")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the Python of an environment that has mergekit")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = [str(model.resolve()) for model in (arguments.base, arguments.a, arguments.b)]
    mergekit = Mergekit(arguments.mergekit, models) if arguments.mergekit else None

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    figures = [
        measure(Ours(method, models), mergekit, arguments.rounds, say)
        for method in arguments.method or METHODS_COMPARED
    ]
    whole = {"threads": arguments.threads, "methods": figures}
    print(json.dumps(whole, indent=2) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
