"""Runs mergekit for scripts/compare_mergekit.py, in the Python that has it: many merges, one import.

Reads a line of JSON for each merge, {"recipe": path, "out": folder, "seed": number, "adapters": folder}, and answers
with one: {} or {"error": text}. Its first line gives mergekit's version.
"""

import json
import os
import sys
import traceback
from importlib.metadata import version

# mergekit and its libraries print freely: their output goes to stderr, so that stdout carries only answers.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import yaml  # noqa: E402
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.merge import run_merge  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402

answers.write(json.dumps({"version": version("mergekit")}) + "\n")
for line in sys.stdin:
    task = json.loads(line)
    answer = {}
    try:
        with open(task["recipe"], encoding="utf-8") as file:
            config = MergeConfiguration.model_validate(yaml.safe_load(file))
        # As `mergekit-yaml RECIPE OUT --random-seed SEED --lora-merge-cache ADAPTERS` does it.
        options = MergeOptions(random_seed=task["seed"], lora_merge_cache=task["adapters"], quiet=True)
        run_merge(config, task["out"], options=options)
    # Any failure is an answer: the next line is another recipe.
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
