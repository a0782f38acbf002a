"""Measure how long scoring a model takes: here, and in lm-eval with its `hf` model.

    python scripts/bench_eval.py MODEL [--data gsm8k_test.jsonl] [--rounds 3] [--json]
    python scripts/bench_eval.py models/smollm2-135m-instruct --case perplexity --case generation --items 16

Both sides take turns in one run, on the same items and the same loaded float32 model; the figures are medians. Seconds
are of the processor (user and system) and on the wall, and include tokenizing. Counted are the tokens that go through
the model, padding included, by a hook; and the least that there is to run, where sequences share what they begin with.
lm-eval runs with the batch size that is fastest on a few of the items. Its automatic one is not tried: it begins with
64 sequences of the greatest length, which takes more memory than most machines have.

The items are questions and answers of --data, a JSONL file of GSM8K's form, or made up. Needs a checkpoint and lm-eval
(pip install evomerge[lm-eval]). With one thread and SmolLM2-135M, a round of all cases takes about 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# `python scripts/X.py` puts scripts/ on the path, not the folder around it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lm_eval_cases import CASES, SHOTS, Answered, Ours, Theirs, least_tokens, load, read_rows, write_task

GOALS = {
    "5-shot choices": 8.0,
    "0-shot choices": 1.7,
    "perplexity": 1.3,
    "generation": 3.0,
    "5-shot generation": 5.0,
}
"""How many times as fast as lm-eval a case should be."""

BATCH_SIZES = (1, 8, 16)
PROBED = 16
"""The sequences on which batch sizes are compared."""


def best_batch_size(module: Any, tokenizer: Any, task: Any, sizes: Sequence[int]) -> int:
    """Returns the batch size with which lm-eval takes the least processor time for a few items."""
    if len(sizes) == 1:
        return sizes[0]
    items = PROBED // max(1, len(task.items("search")[0].choices))
    return min(sizes, key=lambda size: Theirs(module, tokenizer, size)(task, items).processor)


def side(rounds: Sequence[Answered]) -> dict[str, Any]:
    """Returns the figures of a side."""
    return {
        "processor_seconds": statistics.median(one.processor for one in rounds),
        "wall_seconds": statistics.median(one.wall for one in rounds),
        "tokens": rounds[0].tokens,
    }


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the figures as a table."""
    lines = [
        f"{'':18}{'evomerge':>30}{'lm-eval':>36}{'times':>9}\n"
        f"{'case':18}{'cpu s':>8}{'wall s':>8}{'tokens':>8}{'/tree':>6}"
        f"{'batch':>8}{'cpu s':>9}{'wall s':>9}{'tokens':>10}{'as fast':>9}{'goal':>6}"
    ]
    for name, one in figures.items():
        ours, theirs = one["evomerge"], one["lm_eval"]
        lines.append(
            f"{name:18}{ours['processor_seconds']:8.1f}{ours['wall_seconds']:8.1f}{ours['tokens']:8}"
            f"{ours['tokens'] / one['least_tokens']:6.2f}{theirs['batch_size']:8}{theirs['processor_seconds']:9.1f}"
            f"{theirs['wall_seconds']:9.1f}{theirs['tokens']:10}{one['times_as_fast']:9.1f}{one['goal'] or '':>6}"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder")
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable (default: those with a goal)")
    parser.add_argument("--items", type=int, default=40, help="of each case (default: 40)")
    parser.add_argument("--new-tokens", type=int, default=48, help="the most of a completion (default: 48)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a JSONL file of GSM8K's form (default: made up)")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of both sides (default: 1)")
    parser.add_argument(
        "--batch-size", action="append", type=int, help="lm-eval's, repeatable: the best of them (default: 1, 8 and 16)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    module, tokenizer = load(arguments.model)
    rows = read_rows(arguments.data, arguments.items + SHOTS + 1)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.case or GOALS:
            task = write_task(name, rows, Path(temporary), arguments.new_tokens)
            size = best_batch_size(module, tokenizer, task, arguments.batch_size or BATCH_SIZES)
            say(f"{name}: lm-eval's batch size is {size}")
            ours, theirs = Ours(module, tokenizer), Theirs(module, tokenizer, size)
            mine, other = [], []
            for step in range(arguments.rounds):
                mine.append(ours(task))
                other.append(theirs(task))
                seconds = f"evomerge {mine[-1].processor:.1f} s, lm-eval {other[-1].processor:.1f} s"
                say(f"{name}: round {step + 1} of {arguments.rounds}: {seconds}")
            one = {"evomerge": side(mine), "lm_eval": {**side(other), "batch_size": size}}
            one["least_tokens"] = least_tokens(ours.requests, ours.written)
            one["times_as_fast"] = one["lm_eval"]["processor_seconds"] / one["evomerge"]["processor_seconds"]
            one["goal"] = GOALS.get(name)
            figures[name] = one
    whole = {"items": arguments.items, "threads": arguments.threads, "rounds": arguments.rounds, "cases": figures}
    print(json.dumps(whole, indent=2) if arguments.json else table(figures))


if __name__ == "__main__":
    main()
