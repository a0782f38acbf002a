"""Measure a generation of stacks with shared first layers and without, and one stack against mergekit.

    python scripts/bench_stack.py [RECIPE] [--run-dir RUN] [--stacks 64] [--items 8] [--rounds 3] [--json]
    python scripts/bench_stack.py recipes/smollm2-stack.yaml --run-dir runs/stack --mergekit ~/mergekit/bin/python

The generation is one that the genetic search draws in its middle: after the first half of the evaluations that RUN has
on record, with their scores; without --run-dir, after a search of two generations, scored on the same few items. All
stacks are then scored in both ways in turn, with the same batches: each from its first layer on, and sorted so that
the hidden states after the first layers that stacks share are computed once. It counts the work of layers (in tokens
times layers), takes the median of the rounds, and checks that every item has the same score, to the last bit.

--mergekit names the Python of an environment that has mergekit (`pip install mergekit==0.1.5`): three of the stacks are
then merged to disk with it, loaded with transformers and scored on the same items; once with the command mergekit-yaml
and once in a process that has mergekit imported, so that its start is not counted.

Needs a recipe of a stack search, its models, and tasks of log-likelihoods.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from evomerge.architecture import Architecture, fold_of
from evomerge.evaluation import Evaluator
from evomerge.merge import Plan, Planner, compute_device, open_models
from evomerge.paths import find
from evomerge.recipe import Recipe
from evomerge.runtime import LanguageModel, StackRuntime, TorchLanguageModel, by_reference, compute_dtype
from evomerge.search import OPTIMIZERS, Outcome, Proposal, Stack, StackSpace, State
from evomerge.study.record import recorded
from evomerge.tasks import Task

# `python scripts/X.py` puts scripts/ on the path, not the folder around it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.compare_mergekit import Mergekit

Scores = dict[Any, float]


class Bench:
    """The models of a stack search in memory, and some of its items.

    Args:
        recipe: the recipe of the search.
        items: how many items of each task to score.
        device: where stacks run.
    """

    def __init__(self, recipe: Recipe, items: int, device: str) -> None:
        checkpoints = self._checkpoints = open_models(recipe)
        models = [checkpoints[name] for name in recipe.references()]
        depths = [Architecture.of(one.config, one.tensors).num_layers for one in models]
        hole = recipe.stack_hole
        if hole is None:
            sys.exit("the recipe searches for no stack: expected slices: {search: {models: [...]}}")
        fold = fold_of(models[0].config, models[0].tensors) if hole.search.scale else None
        self.space = StackSpace(recipe, depths, fold)
        self._planner = Planner(checkpoints)
        first = self.plan(self.space.parents[0])
        self.dtype = compute_dtype(first.layout, compute_device(device))
        self.runtime = StackRuntime(first, device, self.dtype)
        tasks = [Task.load(find(entry.task, recipe.folders) or Path(entry.task)) for entry in recipe.tasks]
        limits = self.runtime.max_length, self.runtime.vocabulary_size
        self._evaluator = Evaluator(tasks, self.runtime.tokenizer, *limits)
        self.items = [item for item in self._evaluator.items("search") if item.index < items]

    def plan(self, stack: Stack) -> Plan:
        """Returns the plan of a stack."""
        return self._planner.plan(self.space.decode(stack))

    def folder(self, model: str) -> str:
        """Returns the path of a model of the recipe."""
        return str(self._checkpoints[model].folder.resolve())

    def loaded(self, folder: Path) -> LanguageModel:
        """Returns a model on disk, loaded by transformers."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        return TorchLanguageModel(model, self.runtime.tokenizer, [])

    def scores(self, model: LanguageModel) -> Scores:
        """Returns each item's score."""
        return dict(self._evaluator.scores(model, self.items).values)

    def run(self, stacks: Sequence[Stack], *, shared: bool) -> dict[Stack, Scores]:
        """Scores stacks one by one, each from its first layer on, or with shared first layers."""
        plans = {stack: self.plan(stack) for stack in stacks}
        if shared:
            plans = dict(sorted(plans.items(), key=lambda one: by_reference(one[1]) or []))
        self.runtime.expect(plans.values() if shared else ())
        return {stack: self.scores(self.runtime.load(plan)) for stack, plan in plans.items()}

    def generation(self, size: int, run: Path | None) -> list[Stack]:
        """Returns a generation of the genetic search after two others, or after the first half of a record."""
        settings = self.space.recipe.settings().model_copy(update={"population": size})
        search = OPTIMIZERS["genetic"](self.space, settings)
        if run is None:
            for _ in range(2):
                asked = search.ask(size)
                found = self.run([proposal.genome for proposal in asked], shared=True)
                for proposal in asked:
                    score = statistics.fmean(found[proposal.genome].values())
                    search.tell(proposal, Outcome(State.COMPLETE, (score,)))
        else:
            told = sorted(
                (trial.proposal.id, self.space.from_json(trial.proposal.genome), trial.outcome)
                for trial in recorded(run).trials
                if trial.proposal is not None
            )
            for id, genome, outcome in told[: max(1, len(told) // 2 // size) * size]:
                search.tell(Proposal(id, genome, id // size), outcome)
        return [proposal.genome for proposal in search.ask(size)]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns what `work` returns, its seconds, and its processor seconds."""
    start, busy = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - start, time.process_time() - busy


def measure(bench: Bench, stacks: Sequence[Stack], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the figures of a generation, scored with shared first layers and without."""
    spent: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    run, saved = 0, 0
    known: dict[Stack, Scores] = {}
    different = 0
    for turn in range(rounds):
        say(f"generation: round {turn + 1} of {rounds}")
        for shared in (False, True) if turn % 2 == 0 else (True, False):
            before = bench.runtime.layer_runs
            found, *seconds = timed(lambda shared=shared: bench.run(stacks, shared=shared))
            after = bench.runtime.layer_runs
            spent[shared].append((seconds[0], seconds[1]))
            if shared:
                run, saved = after.run - before.run, after.shared - before.shared
            known = known or found
            different += sum(found[stack][item] != known[stack][item] for stack in stacks for item in bench.items)
    apart, together = (
        [statistics.median(kind) for kind in zip(*spent[shared], strict=True)] for shared in (False, True)
    )
    return {
        "stacks": len(stacks),
        "layers": [min(map(len, stacks)), max(map(len, stacks))],
        "items": len(bench.items),
        "rounds": rounds,
        "layer_runs": run + saved,
        "layer_runs_shared": run,
        "saved": round(saved / (run + saved), 4),
        "seconds": round(apart[0], 2),
        "seconds_shared": round(together[0], 2),
        "times_as_fast": round(apart[0] / together[0], 2),
        "processor_seconds": round(apart[1], 2),
        "processor_seconds_shared": round(together[1], 2),
        "times_as_fast_by_processor": round(apart[1] / together[1], 2),
        "different_scores": different,
    }


def against_mergekit(bench: Bench, stacks: Sequence[Stack], python: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the figures of single stacks: scored from memory, and merged by mergekit to disk, loaded and scored."""
    spent: dict[str, list[float]] = {"ours": [], "command": [], "merge": [], "load": [], "score": []}
    furthest = 0.0
    bench.runtime.expect(())
    with tempfile.TemporaryDirectory() as scratch:
        mergekit = Mergekit(python, Path(scratch, "log"), Path(scratch))
        for turn, stack in enumerate(stacks):
            say(f"mergekit: stack {turn + 1} of {len(stacks)}")
            folder, recipe = Path(scratch, str(turn)), Path(scratch, f"{turn}.yaml")
            recipe.write_text(bench.plan(stack).recipe.merge_only().with_models(bench.folder).to_yaml())
            own, seconds, _ = timed(lambda stack=stack: bench.run([stack], shared=False)[stack])
            spent["ours"].append(seconds)
            command = [str(Path(python).with_name("mergekit-yaml")), str(recipe), str(folder)]
            _, seconds, _ = timed(lambda command=command: subprocess.run(command, check=True, capture_output=True))
            spent["command"].append(seconds)
            shutil.rmtree(folder)
            fault, seconds, _ = timed(lambda recipe=recipe, folder=folder: mergekit.merge(recipe, folder))
            if fault:
                sys.exit(f"mergekit: {fault}")
            spent["merge"].append(seconds)
            model, seconds, _ = timed(lambda folder=folder: bench.loaded(folder))
            spent["load"].append(seconds)
            theirs, seconds, _ = timed(lambda model=model: bench.scores(model))
            spent["score"].append(seconds)
            furthest = max(furthest, *(abs(own[item] - theirs[item]) for item in own))
            shutil.rmtree(folder)
        mergekit.close()
    found = {name: round(statistics.median(times), 3) for name, times in spent.items()}
    after = found["load"] + found["score"]
    return {
        "stacks": len(stacks),
        "items": len(bench.items),
        "seconds": found.pop("ours"),
        "mergekit_seconds": found,
        "times_as_fast": round((found["command"] + after) / statistics.median(spent["ours"]), 1),
        "times_as_fast_as_merge_alone": round((found["merge"] + after) / statistics.median(spent["ours"]), 1),
        "furthest_score": furthest,
    }


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("recipes/smollm2-stack.yaml")
    parser.add_argument("recipe", type=Path, nargs="?", default=default, help=f"a stack search (default: {default})")
    parser.add_argument("--run-dir", metavar="RUN", type=Path, help="the folder of that search; it may be running")
    parser.add_argument("--stacks", type=int, default=64, help="stacks of a generation (default: 64)")
    parser.add_argument("--items", type=int, default=8, help="items of each task to score (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the generation (default: 3)")
    parser.add_argument("--device", default="cpu", help="where stacks run (default: cpu)")
    parser.add_argument("--mergekit", metavar="PYTHON", help="the Python of an environment that has mergekit")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say("loading the models and drawing a generation")
    bench = Bench(Recipe.load(arguments.recipe), arguments.items, arguments.device)
    stacks = bench.generation(arguments.stacks, arguments.run_dir)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "dtype": str(bench.dtype).removeprefix("torch.")}
    found["generation"] = own = measure(bench, stacks, arguments.rounds, say)
    if arguments.mergekit:
        found["mergekit"] = theirs = against_mergekit(bench, stacks[:3], arguments.mergekit, say)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"{own['stacks']} stacks of {own['layers'][0]} to {own['layers'][1]} layers on {own['items']} items:"
        f" {100 * own['saved']:.1f}% of the layers' work saved,"
        f" {own['seconds_shared']:.1f} s instead of {own['seconds']:.1f} s: {own['times_as_fast']:.2f} times as fast"
        f" ({own['times_as_fast_by_processor']:.2f} by processor seconds); {own['different_scores']} scores differ"
    )
    if arguments.mergekit:
        print(
            f"one stack on {theirs['items']} items: {theirs['seconds']:.2f} s, {theirs['times_as_fast']:.1f} times as"
            f" fast as mergekit-yaml, loading and scoring ({theirs['times_as_fast_as_merge_alone']:.1f} times without"
            f" mergekit's start); scores differ by at most {theirs['furthest_score']:.1e}"
        )


if __name__ == "__main__":
    main()
