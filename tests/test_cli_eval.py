"""evomerge eval: several models and tasks, comparisons, formats, limits, completions in a file, and interruptions."""

import json
import os
from pathlib import Path

import pytest

import evomerge as package
from evomerge.cli import INTERRUPTED
from evomerge.study import compare
from tests.study.search_case import write_case
from tests.test_cli import _due, ctrl_c, evomerge
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    write_case(folder)
    (folder / "mean.yaml").write_text(
        f"{{merge_method: linear, models: [{{model: {folder}/a, parameters: {{weight: 1}}}},"
        f" {{model: {folder}/b, parameters: {{weight: 1}}}}], dtype: bfloat16}}\n"
    )
    return folder


def tasks(case: Path) -> list[Path]:
    return [case / "tasks" / "likely.yaml", case / "tasks" / "written.yaml"]


def test_several_models_are_scored_and_compared_as_from_python(case: Path):
    models = [case / "mean.yaml", case / "a", case / "b"]
    done = evomerge("eval", "--compare", *models, *tasks(case), "--split", "both", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone = [package.evaluate(str(model), tasks(case), splits=["search", "holdout"]) for model in models]
    assert [one["scores"] for one in found["evaluations"]] == [
        json.loads(json.dumps(one.as_data()["scores"])) for one in alone
    ]
    assert [one["model"] for one in found["evaluations"]] == list(map(str, models))
    assert [(one["second"], one["split"], one["task"]) for one in found["comparisons"]] == [
        (str(model), split, task)
        for model in models[1:]
        for split in ("search", "holdout")
        for task in ("likely", "written")
    ]
    first, second = ({"likely": one.scores[0].items} for one in alone[:2])
    expected = compare(first, second, {"likely": 1.0}, str(models[1]))
    one = found["comparisons"][0]
    assert (one["difference"], one["gained"], one["lost"], one["p"]) == (
        expected.difference,
        expected.gained,
        expected.lost,
        expected.p,
    )
    assert one["interval"] == list(expected.interval)


def test_tables_in_markdown_have_a_line_for_each_score_and_comparison(case: Path):
    done = evomerge("eval", "--compare", case / "a", case / "b", *tasks(case), "--format", "markdown")
    lines = done.stdout.splitlines()
    assert lines[0] == "| model | task | split | items | score | 95% interval |"
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: |"
    assert [line.split(" | ")[:4] for line in lines[2:6]] == [
        [f"| {model}", task, "holdout", "16"] for model in "ab" for task in ("likely", "written")
    ]
    assert "a minus b, paired by item; p: exact sign test" in lines
    assert sum(line.startswith("| likely | holdout | ") for line in lines) == 1


def test_a_limit_scores_the_first_items(case: Path):
    found = [
        json.loads(evomerge("eval", case / "a", *tasks(case), "--format", "json", *limit).stdout)["evaluations"][0]
        for limit in ((), ("--limit", 5), ("--limit", 500))
    ]
    for whole, some, more in zip(*(one["scores"] for one in found), strict=True):
        assert some["items"] == pytest.approx(whole["items"][:5], rel=1e-5)  # Other batches, other last bits.
        assert more["items"] == whole["items"]
        assert some.get("completions") == (whole["completions"][:5] if "completions" in whole else None)


def test_every_item_is_written_to_a_file(case: Path, tmp_path: Path):
    file = tmp_path / "items.jsonl"
    done = evomerge(
        "eval", case / "a", case / "b", *tasks(case), "--limit", 3, "--completions", file, "--format", "json"
    )
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 12
    scores = [score for one in json.loads(done.stdout)["evaluations"] for score in one["scores"]]
    assert [line["score"] for line in lines] == [item for score in scores for item in score["items"]]
    written = [line["completion"] for line in lines if line["task"] == "written"]
    assert written == [text for score in scores for text in score.get("completions", ())]
    assert lines[4] == {
        "model": str(case / "a"),
        "task": "written",
        "split": "holdout",
        "index": 1,
        "prompt": "what is 9 and 12?",
        "target": " it is 21.",
        "completion": written[1],
        "score": 0.0,
    }
    assert "completion" not in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "b"), "no task among the arguments"),
        (("likely.yaml",), "no model among the arguments"),
        (("a", "likely.yaml", "--compare"), "is the only model"),
        (("a", "nothing.yaml"), "nothing.yaml: cannot be read"),
        (("a", "likely.yaml", "likely.yml"), "has the same name as"),
        (("a", "nowhere", "likely.yaml"), "nowhere: no such folder"),
        (("a", "likely.yaml", "--completions", "no/such/file"), "no/such/file: cannot be written"),
        (("a", "faulty.yaml"), "unknown type 'gnerate'"),
    ],
)
def test_bad_input_is_reported_before_anything_is_scored(case: Path, monkeypatch, arguments, words):
    monkeypatch.chdir(case)
    for name in ("likely.yaml", "likely.yml"):
        (case / name).write_text((case / "tasks" / "likely.yaml").read_text().replace("rows", "tasks/rows"))
    (case / "faulty.yaml").write_text("type: gnerate\n")
    done = evomerge("eval", *arguments)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "bug" not in done.stderr


@pytest.mark.parametrize("limit", [0, -1, "many"])
def test_a_limit_is_a_positive_number(case: Path, limit):
    done = evomerge("eval", case / "a", *tasks(case), "--limit", limit)
    assert done.returncode == 2
    assert "--limit" in done.stderr


def test_ctrl_c_keeps_the_scores_that_are_complete(case: Path, tmp_path: Path):
    file = tmp_path / "items.jsonl"
    # The models are opened before the file, and their tokenizers loaded after it.
    _due[file.name] = lambda: _due.update({f"{os.sep}b{os.sep}tokenizer_config.json": ctrl_c})
    done = evomerge("eval", case / "a", case / "b", *tasks(case), "--format", "json", "--completions", file)
    _due.clear()
    assert (done.returncode, done.stderr) == (INTERRUPTED, "Stopped: the scores above are complete.\n")
    (only,) = json.loads(done.stdout)["evaluations"]
    assert [len(score["items"]) for score in only["scores"]] == [16, 16]
    assert len(file.read_text().splitlines()) == 32


def test_verbose_says_on_standard_error_how_a_model_is_run(tmp_path: Path):
    write_case(tmp_path)
    model = tiny_checkpoint(tmp_path / "mamba", kind="mamba")
    command = ["eval", model, tmp_path / "tasks" / "written.yaml", "--format", "json"]
    plain, verbose = evomerge(*command), evomerge("--verbose", *command)
    assert plain.returncode == verbose.returncode == 0, verbose.stderr
    assert "prompts of equal length" not in plain.stderr
    assert "prompts of equal length" in " ".join(verbose.stderr.split())
    scores = [json.loads(done.stdout)["evaluations"][0]["scores"][0]["score"] for done in (plain, verbose)]
    assert scores[0] == scores[1]
