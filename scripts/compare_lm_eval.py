"""Shows how far evomerge's scores are from those of lm-eval's `hf` model, on the same items in float32.

    python scripts/compare_lm_eval.py models/smollm2-135m-instruct models/gemma-3-270m
    python scripts/compare_lm_eval.py MODEL --data gsm8k_test.jsonl --items 10 --json

The cases are multiple choice with 0 and 5 solved examples, with choices of one token and of several; the perplexity of
texts; and completions with 0 and 5 solved examples. Printed are the greatest difference of log-likelihoods, for each
token of a target, and the items with another score or completion. A difference above 1e-4 a token, or of any score or
completion, is a failure.

Of a text on its own, lm-eval scores the token that the tokenizer adds before it as well, after another one of the same
(Gemma: two <bos>). Here it is not scored, so lm-eval is asked with add_bos_token=False; what it says otherwise is
printed as a note.

Needs checkpoints (scripts/get_smollm2.py, scripts/get_gemma3.py) and lm-eval (pip install evomerge[lm-eval]).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# `python scripts/X.py` puts scripts/ on the path, not the folder around it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lm_eval_cases import CASES, SHOTS, Ours, Theirs, load, read_rows, write_task

TOLERANCE = 1e-4
"""Nats a token."""


def compare(model: Path, rows: Sequence[dict[str, Any]], folder: Path, new_tokens: int) -> list[dict[str, Any]]:
    """Returns for each case how evomerge's answers for a model differ from lm-eval's."""
    module, tokenizer = load(model)
    found = []
    for name in CASES:
        print(f"{model.name}: {name}", file=sys.stderr, flush=True)
        task = write_task(name, rows, folder, new_tokens)
        ours = Ours(module, tokenizer)
        mine = ours(task)
        alone = task.type == "perplexity"
        theirs = Theirs(module, tokenizer, 1, **({"add_bos_token": False} if alone else {}))(task)
        case: dict[str, Any] = {"model": model.name, "case": name, "items": len(theirs.scores), "note": ""}
        if task.type == "generate":
            differ = sum(a != b for a, b in zip(mine.answers, theirs.answers, strict=True))
            case |= {"different_completions": differ, "mean_length": sum(map(len, mine.answers)) / len(mine.answers)}
            case["agrees"] = differ == 0
        else:
            lengths = [len(request.target) for request in ours.requests]
            pairs = zip(mine.answers, theirs.answers, lengths, strict=True)
            case |= {"nats_a_token": max(abs(a - b) / length for a, b, length in pairs)}
            case |= {"tokens_a_target": [min(lengths), max(lengths)]}
            case["agrees"] = case["nats_a_token"] <= TOLERANCE
        if not alone:
            case["different_scores"] = sum(a != b for a, b in zip(mine.scores, theirs.scores, strict=True))
            case |= {"score": sum(mine.scores) / len(mine.scores)}
            case["agrees"] = case["agrees"] and case["different_scores"] == 0
        elif tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            added = Theirs(module, tokenizer, 1)(task)
            mean = sum(b - a for a, b in zip(mine.answers, added.answers, strict=True)) / len(added.answers)
            case["note"] = f"with the added {tokenizer.bos_token} scored too, lm-eval's texts have {mean:+.2f} nats"
        found.append(case)
    return found


def shown(case: dict[str, Any]) -> str:
    """Returns a case as a line of text."""
    if "nats_a_token" in case:
        least, most = case["tokens_a_target"]
        what = f"{case['nats_a_token']:.1e} nats a token, targets of {least} to {most} tokens"
    else:
        what = f"{case['different_completions']} of {case['items']} completions differ"
    if "score" in case:
        what += f"; {case['different_scores']} of {case['items']} scores differ, mean {case['score']:.3f}"
    note = f"; {case['note']}" if case["note"] else ""
    return f"{case['model']:24}{case['case']:19}{'agrees' if case['agrees'] else 'DIFFERS'}: {what}{note}"


def main() -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", type=Path, help="folders of causal language models")
    parser.add_argument("--items", type=int, default=10, help="of each case (default: 10)")
    parser.add_argument("--new-tokens", type=int, default=48, help="the most of a completion (default: 48)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a JSONL file of GSM8K's form (default: made up)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--json", action="store_true", help="print JSON; progress goes to stderr")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = read_rows(arguments.data, arguments.items + SHOTS + 1)
    with tempfile.TemporaryDirectory() as temporary:
        found = [
            case for model in arguments.model for case in compare(model, rows, Path(temporary), arguments.new_tokens)
        ]
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(map(shown, found)))
    return 0 if all(case["agrees"] for case in found) else 1


if __name__ == "__main__":
    sys.exit(main())
