"""The command line as a user meets it: help, faults, and the way from a search to a model that scores the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from evomerge.study import Record
from tests.study.search_case import write_case


def evomerge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evomerge", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("case")
    recipe = write_case(folder, evaluations=10)
    return folder, evomerge("search", recipe, "--run-dir", folder / "run", "--evaluations", 6)


def test_help_shows_examples_and_needs_no_torch():
    slow = "import sys, evomerge.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", slow], check=False).returncode == 0
    text = evomerge("--help").stdout
    for command in ("search", "apply", "eval", "check", "runs"):
        assert command in text
        assert f"Example: evomerge {command}" in evomerge(command, "--help").stdout


def test_a_search_ends_with_a_table_and_a_plain_sentence(found):
    _, done = found
    assert done.returncode == 0, done.stderr
    assert "mean of the parents" in done.stdout
    assert "winner: " in done.stdout
    assert "6 evaluations" in done.stdout
    assert ("Beaten: the winner" in done.stdout) != ("Not beaten: the winner" in done.stdout)


def test_the_model_that_is_written_scores_what_the_search_recorded_item_for_item(found):
    folder, _ = found
    run, out = folder / "run", folder / "merged"
    assert evomerge("apply", run / "best.yaml", out).returncode == 0
    AutoModelForCausalLM.from_pretrained(out)
    tasks = [folder / "tasks" / "likely.yaml", folder / "tasks" / "written.yaml"]
    scored = json.loads(evomerge("eval", out, *tasks, "--split", "both", "--json").stdout)
    result = json.loads((run / "result.json").read_text())
    with Record(run) as record:
        best = max(record.trials, key=lambda trial: (trial.objective, -trial.number))
        holdout = record.attribute(f"holdout:{result['winner']['trial']}")
    for row in scored["scores"]:
        recorded = best.outcome.items if row["split"] == "search" else holdout["items"]
        assert row["items"] == list(recorded[row["task"]]), (row["task"], row["split"])
    unwritten = json.loads(evomerge("eval", run / "best.yaml", *tasks, "--split", "both", "--json").stdout)
    assert [row["items"] for row in unwritten["scores"]] == [row["items"] for row in scored["scores"]]


def test_runs_are_listed(found):
    folder, _ = found
    done = evomerge("runs", folder)
    result = json.loads((folder / "run" / "result.json").read_text())
    assert done.stdout.splitlines()[0].startswith(f"{folder / 'run'}: finished, 6 evaluations, best ")
    assert result["verdict"] in done.stdout
    assert evomerge("runs", folder / "nowhere").stderr.startswith(f"error {folder / 'nowhere'}: cannot be listed")


def test_an_existing_folder_is_not_overwritten_unless_asked(found):
    folder, _ = found
    best, out = folder / "run" / "best.yaml", folder / "kept"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    refused = evomerge("apply", best, out)
    assert refused.returncode == 1
    assert "kept" in refused.stderr
    assert (out / "mine.txt").read_text() == "keep me"
    assert evomerge("apply", best, out, "--overwrite").returncode == 0
    assert not (out / "mine.txt").exists()


def test_check_says_what_is_searched_and_what_it_needs(found):
    folder, _ = found
    text = evomerge("check", folder / "recipe.yaml").stdout
    assert "3 numbers by cma-es, 10 evaluations" in text
    assert "models[0].parameters.weight[1]: 0 to 1, from 0.5" in text
    assert "likely, 8 items to search on, 16 held out" in text
    assert "memory:" in text
    assert "no holes" in evomerge("check", folder / "run" / "best.yaml").stdout


def test_faults_are_told_in_plain_lines_with_status_1(found, tmp_path: Path):
    folder, _ = found
    bad = tmp_path / "bad.yaml"
    bad.write_text((folder / "recipe.yaml").read_text().replace("weight: {search: [0, 1]}", "wieght: 1"))
    for command in (("check", bad), ("search", bad), ("apply", bad, tmp_path / "out")):
        done = evomerge(*command)
        assert done.returncode == 1
        assert f'{bad}:7: models[1].parameters.wieght: task_arithmetic has no parameter "wieght"' in done.stderr
        assert "Traceback" not in done.stderr
    done = evomerge("apply", folder / "recipe.yaml", tmp_path / "out")
    assert "a hole is left to search" in done.stderr
    assert not (tmp_path / "out").exists()
    done = evomerge("eval", tmp_path / "nowhere", folder / "tasks" / "likely.yaml")
    assert done.returncode == 1
    assert "nowhere" in done.stderr


def test_a_search_in_a_folder_of_another_is_refused_and_its_record_kept(found):
    folder, _ = found
    done = evomerge("search", folder / "recipe.yaml", "--run-dir", folder / "run", "--seed", 5)
    assert done.returncode == 1
    assert "started with other search settings" in done.stderr
    with Record(folder / "run") as record:
        assert len(record.trials) == 7
