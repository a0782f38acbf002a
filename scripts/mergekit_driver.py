"""Runs mergekit for compare_mergekit.py, in the Python that has it: many merges, imported once.

Reads a line of JSON for each merge, {"recipe": path, "out": folder, "seed": number, "adapters": folder}, and answers
with one: {} or {"error": text}. The first line that it writes says which version of mergekit it runs.
"""

import json
import os
import sys
import traceback
from importlib.metadata import version

# mergekit and its libraries print as they like: the answers have the standard output for themselves.
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
    # Whatever a merge dies of is an answer: the next one is another recipe.
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
