"""Searching on a test set: refused, or said wherever the result is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge import api
from evomerge.errors import EvomergeError
from evomerge.publish import card_files
from evomerge.recipe import Recipe, load
from evomerge.report.page import report_page
from evomerge.study import load_run
from tests.study.search_case import write_case

TASKS = """\
tasks: [{task: tasks/task.yaml}]
data: {"openai/gsm8k": tasks/rows.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A search on GSM8K's test problems, read from a local file beside the recipe."""
    path = write_case(tmp_path, evaluations=4)
    (tmp_path / "tasks" / "task.yaml").write_text(
        'type: perplexity\nname: maths\ndata: {path: openai/gsm8k, name: main, split: test}\nprompt: "{{ q }}"\n'
        'target: "{{ a }}"\nsplits: {search: [0, 8], holdout: [8, 24]}\n'
    )
    head, _, rest = path.read_text().partition("tasks:\n")
    path.write_text(head + TASKS + "search:" + rest.partition("search:")[2])
    return path


def test_a_search_on_a_test_set_stops_with_an_explanation(recipe: Path):
    with pytest.raises(EvomergeError) as raised:
        api.prepared(recipe)
    (fault,) = str(raised.value).splitlines()
    for words in (f"{recipe}:", '"maths" are of a test set', "allow_test_set: true", "holdout"):
        assert words in fault


def test_result_report_and_card_say_that_a_test_set_was_searched(recipe: Path, tmp_path: Path):
    recipe.write_text(recipe.read_text() + "allow_test_set: true\n")
    run = tmp_path / "run"
    api.search(recipe, run, device="cpu")
    said = "The search items of maths are of a test set"
    result = json.loads((run / "result.json").read_text())
    assert result["notes"][0].startswith(said)
    assert result["search"]["tasks"][0]["searched_test_set"] is True
    assert said in card_files(Recipe.load(run / "best.yaml"), "it", run)["README.md"]
    assert said in report_page(load_run(run), run)


def test_resuming_notices_changed_local_files_but_not_moved_ones(recipe: Path, tmp_path: Path):
    recipe.write_text(recipe.read_text() + "allow_test_set: true\n")
    run, rows = tmp_path / "run", tmp_path / "tasks" / "rows.jsonl"
    api.search(recipe, run, device="cpu")
    moved = rows.with_name("moved.jsonl")
    moved.write_bytes(rows.read_bytes())
    data = {"openai/gsm8k": moved}
    api.search(recipe, run, device="cpu", data=data, evaluations=5)
    moved.write_text(rows.read_text().replace("it is 3", "it is 5"))
    with pytest.raises(EvomergeError, match="task maths: its files changed"):
        api.search(recipe, run, device="cpu", data=data, evaluations=6)


def test_a_data_set_that_no_task_reads_is_a_fault_of_the_recipe(recipe: Path):
    text = recipe.read_text().replace("openai/gsm8k", "openai/gsm8", 1)
    recipe.write_text(text + "allow_test_set: true\n")
    (recipe.parent / "tasks" / "task.yaml").write_text(
        (recipe.parent / "tasks" / "task.yaml")
        .read_text()
        .replace("{path: openai/gsm8k, name: main, split: test}", "rows.jsonl")
    )
    with pytest.raises(EvomergeError, match="openai/gsm8: no task reads this data set"):
        api.prepared(load(recipe))
