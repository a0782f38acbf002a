"""Scores on benchmarks that the Hub registers, as the files from which its leaderboards read them.

Format: https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from evomerge.document import to_yaml

FOLDER = ".eval_results"


class Benchmark(NamedTuple):
    """A data set on the Hub that has a leaderboard.

    Attributes:
        name: its configuration; None is the data set's only one.
        split: the split that the leaderboard is about.
        task_id: the leaderboard's name in the data set's eval.yaml.
        metrics: the metrics whose mean is what the leaderboard shows, the share of right answers.
    """

    name: str | None
    split: str
    task_id: str
    metrics: frozenset[str]


BENCHMARKS: Mapping[str, Benchmark] = {
    "openai/gsm8k": Benchmark("main", "test", "gsm8k", frozenset({"last_number", "regex"})),
    "TIGER-Lab/MMLU-Pro": Benchmark(None, "test", "mmlu_pro", frozenset({"accuracy", "last_number", "regex"})),
}
"""Benchmarks that the Hub registers, by their data sets."""


def benchmark_files(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the files of the winner's scores on whole benchmarks, by their names in a model's folder.

    Args:
        result: what result.json holds. A score on a part of a benchmark is not the benchmark's.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found = {}
    for task in (result.get("search") or {}).get("tasks", ()):
        rows = task.get("holdout_data") or {}
        score = (result["winner"]["holdout_tasks"] or {}).get(task["task"])
        known = BENCHMARKS.get(rows.get("path", ""))
        if known is None or score is None or rows["rows"] is not None or task["metric"] not in known.metrics:
            continue
        if (rows["name"], rows["split"]) != (known.name, known.split):
            continue
        entry = EvalResultEntry(
            dataset_id=rows["path"],
            task_id=known.task_id,
            value=score,
            dataset_revision=rows["revision"],
            notes=f"evomerge, metric {task['metric']}",
        )
        found[f"{FOLDER}/{known.task_id}.yaml"] = to_yaml(eval_result_entries_to_yaml([entry]))
    return found
