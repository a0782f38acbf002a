"""Benchmarks in scripts/ that need no large models: they run, and find what they claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts import bench_stack
from tests.tiny import tiny_checkpoint

TASK = """
type: perplexity
data: items.jsonl
prompt: "{{ text }}:"
target: " {{ text }}"
metric: nll_per_token
splits: {search: [0, 3], holdout: [3, 4]}
"""


def test_a_generation_with_shared_first_layers_has_the_same_scores_for_less_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_checkpoint(tmp_path / "a")
    tiny_checkpoint(tmp_path / "b", 1, base=base)
    (tmp_path / "items.jsonl").write_text("".join(f'{{"text": "{"abc " * n}"}}\n' for n in range(1, 5)))
    (tmp_path / "task.yaml").write_text(TASK)
    recipe = tmp_path / "recipe.yaml"
    hole = "models: [a, b], repeats: 2, min_layers: 3, max_layers: 6, scale: [0.5, 1.5]"
    recipe.write_text(f"merge_method: passthrough\nslices: {{search: {{{hole}}}}}\ntasks: [{{task: task.yaml}}]\n")
    options = ["--stacks", "8", "--items", "2", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["bench_stack", str(recipe), *options])
    bench_stack.main()
    found = json.loads(capsys.readouterr().out)["generation"]
    assert found["stacks"] == 8
    assert found["items"] == 2
    assert found["different_scores"] == 0
    assert 0.1 < found["saved"] < 0.9
    assert 1 - found["layer_runs_shared"] / found["layer_runs"] == pytest.approx(found["saved"], abs=1e-4)
