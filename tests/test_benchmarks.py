"""Benchmarks in scripts/ that need no large models: they run, and find what they claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import bench_items, bench_stack
from tests.study.search_case import write_case
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


def test_searches_on_subsets_are_compared_with_those_on_all_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_case(tmp_path, evaluations=6)
    options = ["--seeds", "2", "--items", "4", "--evaluations", "8", "--svg", str(tmp_path / "cost.svg"), "--json"]
    monkeypatch.setattr(sys, "argv", ["bench_items", str(recipe), *options])
    bench_items.main()
    found = json.loads(capsys.readouterr().out)
    ends = {kind: [run["curve"][-1] for run in runs] for kind, runs in found["runs"].items()}
    assert [items for items, _ in ends["all"]] == [6 * 16] * 2
    assert all(8 * 4 < items < 8 * 4 + 5 * 16 for items, _ in ends["subsets"])
    gains = [after - before for (_, before), (_, after) in zip(ends["all"], ends["subsets"], strict=True)]
    difference, error = found["summary"]["difference"]
    assert difference == pytest.approx(sum(gains) / 2)
    assert error == pytest.approx(abs(gains[0] - gains[1]) / 2)
    texts = [text.text for text in ElementTree.parse(tmp_path / "cost.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "items: 4, 8 evaluations" in texts


def test_item_evaluations_are_written_out_below_a_picture_of_curves() -> None:
    curve = [(256, 0.5), (15_360, 0.75)]
    drawn = bench_items.picture({"all": [curve], "subsets": [curve]}, {"all": "all", "subsets": "auto"}).file()
    assert ">10,000<" in drawn
    assert "e+" not in drawn
