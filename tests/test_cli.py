"""The command line as a user sees it: help, errors, and the way from a search to a model with the same scores."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from evomerge.checkpoint import UNFINISHED
from evomerge.cli import INTERRUPTED, main
from evomerge.cli.app import out as console
from evomerge.cli.display import SearchDisplay
from evomerge.recipe import Recipe
from evomerge.study import Record, prepare
from tests.study.search_case import write_case, write_staged_case


def evomerge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command does, in this process: importing torch again for each takes seconds."""
    command = ["evomerge", *map(str, arguments)]
    before, handler = sys.argv, signal.getsignal(signal.SIGINT)
    sys.argv = command
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as end,
        ):
            main()
    finally:
        sys.argv = before
        signal.signal(signal.SIGINT, handler)
    return subprocess.CompletedProcess(command, end.value.code, out.getvalue(), err.getvalue())


def in_a_process(code: str, *arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    """What the command does in a process of its own, where `code` runs after evomerge.cli is imported."""
    script = f"import os, signal, sys\nfrom evomerge.cli import main\n{code}\nmain()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=text, timeout=120)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("case")
    recipe = write_case(folder, evaluations=10)
    return folder, evomerge("search", recipe, "--run-dir", folder / "run", "--evaluations", 6)


def test_help_shows_examples_and_needs_no_torch():
    slow = "import sys, evomerge.cli.app; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", slow], check=False).returncode == 0
    # Ctrl-C is handled from here on.
    slow = "import sys, evomerge.cli; assert not {'typer', 'rich', 'pydantic', 'yaml'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", slow], check=False).returncode == 0
    text = evomerge("--help").stdout
    for command in ("search", "apply", "publish", "eval", "check", "show", "report", "runs"):
        assert command in text
        assert f"Example: evomerge {command}" in evomerge(command, "--help").stdout
        assert evomerge(command, "-h").stdout == evomerge(command, "--help").stdout
    assert evomerge("-h").stdout == text


def test_show_draws_a_recipe_whose_models_are_not_here(tmp_path: Path):
    recipe, svg = tmp_path / "stack.yaml", tmp_path / "stack.svg"
    recipe.write_text("merge_method: passthrough\nslices: [{sources: [{model: org/m, layer_range: [2, 5]}]}]\n")
    shown = evomerge("show", recipe, "--svg", svg)
    assert shown.returncode == 0
    assert "A m         AAA\n" in shown.stdout
    assert f"{svg}: written" in shown.stdout
    assert svg.read_text().startswith("<svg ")
    failed = evomerge("show", recipe, "--svg", tmp_path / "none" / "stack.svg")
    assert failed.returncode == 1
    assert "stack.svg: cannot be written: No such file or directory" in failed.stderr


def test_a_search_ends_with_a_table_and_a_plain_sentence(found):
    _, done = found
    assert done.returncode == 0, done.stderr
    assert "mean of the parents" in done.stdout
    assert "winner: " in done.stdout
    assert "6 evaluations" in done.stdout
    assert ("Beaten: the winner" in done.stdout) != ("Not beaten: the winner" in done.stdout)


def test_the_mean_of_the_parents_has_one_line_in_the_table_and_is_called_that_in_all(found):
    _, done = found
    assert len(re.findall(r"^│ (winner: )?mean of the parents ", done.stdout, re.MULTILINE)) == 1
    assert "│ mean " not in done.stdout.replace("│ mean of the parents", "")
    assert "holdout: mean of the parents, " in done.stdout


def test_the_model_that_is_written_scores_what_the_search_recorded_item_for_item(found):
    folder, _ = found
    run, out = folder / "run", folder / "merged"
    applied = evomerge("apply", run / "best.yaml", out)
    assert (applied.returncode, applied.stdout.count("\n")) == (0, 1)
    AutoModelForCausalLM.from_pretrained(out)
    tasks = [folder / "tasks" / "likely.yaml", folder / "tasks" / "written.yaml"]
    scored = json.loads(evomerge("eval", out, *tasks, "--split", "both", "--format", "json").stdout)
    result = json.loads((run / "result.json").read_text())
    with Record(run) as record:
        best = max(record.trials, key=lambda trial: (trial.objective, -trial.number))
        holdout = record.attribute(f"holdout:{result['winner']['trial']}")
    for row in scored["evaluations"][0]["scores"]:
        recorded = best.outcome.items if row["split"] == "search" else holdout["items"]
        assert row["items"] == list(recorded[row["task"]]), (row["task"], row["split"])
    unwritten = json.loads(evomerge("eval", run / "best.yaml", *tasks, "--split", "both", "--format", "json").stdout)
    assert unwritten["evaluations"][0]["scores"] == scored["evaluations"][0]["scores"]


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
    (out / "mine.txt").rename(folder / "mine.txt")
    assert evomerge("apply", best, out).returncode == 0
    (folder / "mine.txt").rename(out / "mine.txt")
    refused = evomerge("apply", best, out, "--overwrite")
    assert refused.returncode == 1
    assert "holds more than a model: mine.txt" in refused.stderr
    (out / "mine.txt").unlink()
    assert evomerge("apply", best, out, "--overwrite").returncode == 0
    for held in (folder, folder / "a", folder / "run"):
        before = sorted(folder.rglob("*"))
        refused = evomerge("apply", best, held, "--overwrite")
        assert "a model or the recipe of this merge" in refused.stderr
        assert sorted(folder.rglob("*")) == before
    for size in ("inf", "nan"):
        refused = evomerge("apply", best, folder / "new", "--shard-size", size)
        assert "Invalid value for '--shard-size'" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_check_says_what_is_searched_and_what_it_needs(found):
    folder, _ = found
    text = evomerge("check", folder / "recipe.yaml").stdout
    assert "3 numbers by cma-es, 10 evaluations" in text
    assert "models[0].parameters.weight[1]: 0 to 1, from 0.5" in text
    assert "likely, 8 items to search on, 16 held out" in text
    assert "memory:" in text
    assert "no holes" in evomerge("check", folder / "run" / "best.yaml").stdout


def test_every_command_takes_a_recipe_with_stages(tmp_path: Path):
    recipe = write_staged_case(tmp_path, evaluations=4, hole=", scale: [0.5, 2]")
    text = evomerge("check", recipe).stdout
    assert "stage weights\n" in text
    assert "3 numbers by cma-es, 4 evaluations" in text
    assert "stage layers\n" in text
    assert "stacks of 2 to 4 layers, each with a scale from 0.5 to 2 by genetic, 4 evaluations" in text
    assert "a candidate refers to their layers\nOK: ready to run\n" in text
    assert "stage layers\npassthrough of weights, a\n" in evomerge("show", recipe).stdout
    evomerge("show", recipe, "--svg", tmp_path / "x.svg")
    assert (tmp_path / "x-weights.svg").read_text() != (tmp_path / "x-layers.svg").read_text()
    assert "run evomerge search" in evomerge("apply", recipe, tmp_path / "out").stderr
    run = tmp_path / "run"
    text = evomerge("search", recipe, "--run-dir", run, "--evaluations", 5, "--device", "cpu").stdout
    assert "4 of 4 evaluations" in text
    assert "5 of 5 evaluations" in text
    verdict = json.loads((run / "result.json").read_text())["verdict"]
    assert verdict in text.replace("\n", " ")
    assert evomerge("runs", tmp_path).stdout.splitlines()[0].startswith(f"{run}: finished, 9 evaluations, best ")
    assert verdict in evomerge("runs", tmp_path).stdout
    assert evomerge("apply", run, tmp_path / "out").returncode == 0


def test_faults_are_reported_in_plain_lines_with_status_1(found, tmp_path: Path):
    folder, _ = found
    bad = tmp_path / "bad.yaml"
    bad.write_text((folder / "recipe.yaml").read_text().replace("weight: {search: [0, 1]}", "wieght: 1"))
    for command in (("check", bad), ("search", bad), ("apply", bad, tmp_path / "out")):
        done = evomerge(*command)
        assert done.returncode == 1
        assert f'{bad}:7: models[1].parameters.wieght: task_arithmetic has no parameter "wieght"' in done.stderr
        assert "Traceback" not in done.stderr
    done = evomerge("apply", folder / "recipe.yaml", tmp_path / "out")
    assert "the recipe has a hole" in done.stderr
    assert not (tmp_path / "out").exists()
    done = evomerge("eval", tmp_path / "nowhere", folder / "tasks" / "likely.yaml")
    assert done.returncode == 1
    assert "nowhere" in done.stderr


def test_a_search_in_a_folder_of_another_is_refused_and_its_record_kept(found):
    folder, _ = found
    done = evomerge("search", folder / "recipe.yaml", "--run-dir", folder / "run", "--seed", 5)
    assert done.returncode == 1
    assert "started with other settings or files: search.seed was 0, is 5" in " ".join(done.stderr.split())
    with Record(folder / "run") as record:
        assert len(record.trials) == 7


def relative(folder: Path) -> str:
    """The recipe with its models and tasks as they are named beside it."""
    return (folder / "recipe.yaml").read_text().replace(f"{folder}/", "")


def test_models_and_tasks_are_looked_for_beside_the_recipe_first_and_then_in_the_current_folder(
    found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = found
    monkeypatch.chdir(tmp_path)
    beside = folder / "beside.yaml"
    beside.write_text(relative(folder))
    assert evomerge("check", beside).returncode == 0
    elsewhere = tmp_path / "recipes" / "elsewhere.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(relative(folder))
    assert evomerge("check", elsewhere).returncode == 1
    monkeypatch.chdir(folder)
    assert evomerge("check", elsewhere).returncode == 0
    # What lies beside it wins: here one model of another width.
    shutil.copytree(folder / "a", elsewhere.parent / "a")
    (elsewhere.parent / "a" / "config.json").write_text("{")
    refused = evomerge("check", elsewhere)
    assert f"{elsewhere}:4: models[0].model: a: " in refused.stderr
    assert str(elsewhere.parent / "a" / "config.json") in refused.stderr


def test_a_wrong_path_is_reported_with_its_line_the_folders_that_were_searched_and_a_suggestion(
    found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = found
    monkeypatch.chdir(tmp_path)
    (folder / "models").mkdir()
    (folder / "models" / "addition").mkdir()
    bad = folder / "bad.yaml"
    text = (
        relative(folder)
        .replace("model: a\n", "model: models/additon\n")
        .replace("model: b\n", "model: mdels/addition\n")
    )
    bad.write_text(text.replace("likely.yaml", "likly.yaml"))
    told = evomerge("check", bad).stderr
    tried = f"in {folder} or in {tmp_path}"
    for line in (
        f'{bad}:4: models[0].model: models/additon: no such folder {tried}; did you mean "models/addition"?',
        f'{bad}:6: models[1].model: mdels/addition: no such folder {tried}; did you mean "models/addition"?',
        f'{bad}:10: tasks[0].task: no file tasks/likly.yaml {tried}; did you mean "tasks/likely.yaml"?',
    ):
        assert line in told.splitlines()
    assert "Hub" not in told
    told = evomerge("eval", f"{folder}/models/additon", folder / "tasks" / "likely.yaml").stderr
    assert f'did you mean "{folder}/models/addition"?' in told


def test_the_best_recipe_of_a_run_is_applied_from_anywhere_by_its_folder(
    found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = found
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(relative(folder))
    monkeypatch.chdir(folder)
    assert evomerge("search", recipe, "--run-dir", tmp_path / "run", "--evaluations", 1).returncode == 0
    monkeypatch.chdir(tmp_path)
    assert Recipe.load(tmp_path / "run" / "best.yaml").base_model == str(folder / "base")
    assert evomerge("check", tmp_path / "run").returncode == 0
    assert evomerge("apply", tmp_path / "run", "merged").returncode == 0
    task = folder / "tasks" / "likely.yaml"
    found = json.loads(evomerge("eval", "run", "merged", task, "--format", "json").stdout)["evaluations"]
    assert found[0]["scores"] == found[1]["scores"]
    (tmp_path / "empty").mkdir()
    assert "without best.yaml" in evomerge("apply", tmp_path / "empty", "out").stderr


NAMES = {"base": ":smile: base", "a": "x[/y]", "b": "[v2] add", "likely": "[red]likely"}


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_shown_as_they_are_whatever_they_look_like(
    found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    folder, _ = found
    text = relative(folder)
    for name in ("base", "a", "b"):
        shutil.copytree(folder / name, tmp_path / NAMES[name])
        text = text.replace(f"model: {name}\n", f"model: '{NAMES[name]}'\n")
    shutil.copytree(folder / "tasks", tmp_path / "tasks")
    (tmp_path / "tasks" / "likely.yaml").rename(tmp_path / "tasks" / f"{NAMES['likely']}.yaml")
    text = text.replace("tasks/likely.yaml", f"'tasks/{NAMES['likely']}.yaml'")
    (tmp_path / "[bold]r.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_force_terminal", terminal)
    monkeypatch.setattr(console, "_width", 120)
    done = evomerge("search", "[bold]r.yaml", "--evaluations", 1)
    assert done.returncode == 0, done.stderr
    for name in (*NAMES.values(), "runs/[bold]r/best.yaml"):
        assert name in done.stdout, name
    assert all(f"│ {NAMES[name]}" in done.stdout for name in ("base", "b"))
    scored = evomerge("eval", NAMES["a"], tmp_path / "tasks" / f"{NAMES['likely']}.yaml")
    assert f"│ {NAMES['likely']}" in scored.stdout


def test_a_name_in_a_fault_does_not_steer_the_terminal(tmp_path: Path):
    (tmp_path / "r.yaml").write_text('merge_method: linear\nmodels: [{model: "\\e[2Jx\\0"}]\n')
    told = evomerge("check", tmp_path / "r.yaml").stderr
    assert "models[0].model: \\x1b[2Jx\\x00: no such folder" in told


def test_tables_fit_40_columns(found, monkeypatch: pytest.MonkeyPatch):
    folder, whole = found
    assert "│ mean of the parents │" in whole.stdout
    monkeypatch.setattr(console, "_width", 40)
    done = evomerge("search", folder / "recipe.yaml", "--run-dir", folder / "run", "--evaluations", 6)
    table = re.search(r"Higher is better.*?(?=\n(Beaten|Not beaten|Undecided))", done.stdout, re.DOTALL)
    scored = evomerge("eval", folder / "a", folder / "tasks" / "likely.yaml", "--split", "both").stdout
    for text in (table[0], scored):
        assert max(map(len, text.splitlines())) <= 40
        assert "…" not in text
    figures = re.findall(r"\d\.\d{3}", whole.stdout[whole.stdout.index("Higher") : whole.stdout.index("eaten:")])
    assert len(figures) > 20
    assert re.findall(r"\d\.\d{3}", table[0]) == figures


@pytest.mark.parametrize("width", [40, 100])
def test_the_progress_bar_has_a_line_of_its_own(found, width: int):
    folder, _ = found
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width)
    display = SearchDisplay(terminal, prepare(folder / "recipe.yaml"))
    with display.live:
        display.loading(1, 2)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue()).splitlines()
    assert any(re.fullmatch(r"[━╸╺]{40} *", line) for line in lines)
    assert "reading the models, 1 byte of 2 bytes" in [line.strip() for line in lines]


def test_a_recipe_from_a_pipe_is_read_once(found):
    folder, _ = found
    done = in_a_process("", "check", "/dev/stdin", text=(folder / "recipe.yaml").read_text())
    assert "OK: ready to run" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("search", "RECIPE", "--seed", 2**32), 2, "--seed"),
        (("search", "RECIPE", "--evaluations", 10**400), 2, "--evaluations"),
        (("check", "x" * 5000), 1, "too long"),
        (("search", "x" * 5000), 1, "too long"),
        (("apply", "x" * 5000, "out"), 1, "too long"),
        (("eval", "x" * 5000, "TASK"), 1, "no such folder"),
        (("eval", "~nobody/" + "x" * 5000, "TASK"), 1, "no such folder"),
        (("eval", "MODEL", "x" * 5000 + ".yaml"), 1, "too long"),
        (("eval", "MODEL", "TASK", "--split", "[/x]"), 2, "'[/x]' is not one of 'search', 'holdout', 'both'"),
        (("check", "RECIPE", "--device", "[/x]"), 1, "[/x]"),
        (("[/x]",), 2, "[/x]"),
    ],
)
def test_a_typing_error_is_reported_in_a_line(found, arguments, status, words):
    folder, _ = found
    known = {"RECIPE": folder / "recipe.yaml", "MODEL": folder / "a", "TASK": folder / "tasks" / "likely.yaml"}
    done = evomerge(*(known.get(argument, argument) for argument in arguments))
    assert done.returncode == status
    assert words in done.stderr
    assert "a bug in evomerge" not in done.stderr


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def bug() -> None:
    raise ZeroDivisionError("one")


_due: dict[str, Callable[[], None]] = {}


@pytest.fixture(autouse=True)
def nothing_due():
    yield
    _due.clear()


def _at_open(event: str, arguments: tuple[object, ...]) -> None:
    """Does once what is due when a file with that name's end is opened."""
    if event == "open":
        for end in [end for end in _due if str(arguments[0]).endswith(end)]:
            _due.pop(end)()


sys.addaudithook(_at_open)


@pytest.mark.parametrize(
    "module", ["typer", "rich.console", "torch", "numpy._core._multiarray_umath", "evomerge.study"]
)
def test_ctrl_c_while_modules_are_imported_says_one_line(found, module):
    folder, _ = found
    code = (
        f"due = [{module!r}]\n"
        "def hook(event, a):\n"
        "    if event == 'import' and a[0] in due: due.remove(a[0]); os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(hook)"
    )
    done = in_a_process(code, "check", folder / "recipe.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "Stopped.\n")


def test_ctrl_c_says_one_true_line_in_every_command(found, tmp_path: Path):
    folder, _ = found
    recipe, best = folder / "recipe.yaml", folder / "run" / "best.yaml"
    task = folder / "tasks" / "likely.yaml"
    run = tmp_path / "run"
    search = ("search", recipe, "--run-dir", run, "--evaluations", 2)
    for name, arguments, line in (
        ("rows.jsonl", ("eval", folder / "a", task), "Stopped: nothing has been scored."),
        ("config.json", search, "Stopped: nothing is scored yet; the same command resumes the search."),
        (
            f".result.json.{UNFINISHED}",
            search,
            f"Stopped: the best recipe so far is {run / 'best.yaml'}; the same command resumes the search.",
        ),
        ("model.safetensors", ("apply", best, tmp_path / "out"), f"Stopped: {tmp_path / 'out'} is unchanged."),
    ):
        _due[name] = ctrl_c
        done = evomerge(*arguments)
        assert not _due
        assert (done.returncode, done.stderr) == (INTERRUPTED, f"{line}\n"), arguments
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert evomerge(*search).returncode == 0


def test_output_to_a_full_disk_is_an_error_and_no_bug():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "evomerge", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    expected = "error the output: no space left on the device; make room, and run the command again\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_an_unexpected_error_is_one_line_that_names_the_file_with_its_traceback(
    found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = found
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _due["config.json"] = bug
    url = "postgresql://me:hunter2@host/runs?password=hunter2&sslmode=require"
    done = evomerge("search", folder / "recipe.yaml", "--storage", url)
    (report,) = tmp_path.iterdir()
    told = f"ZeroDivisionError: one: a bug in evomerge; please report it with the traceback in {report}"
    assert (done.returncode, done.stderr) == (1, f"error {told}\n")
    text = report.read_text()
    assert "Traceback" in text
    assert "recipe.yaml" in text
    assert "open_checkpoint" in text
    assert "'postgresql://me:***@host/runs?password=***&sslmode=require'" in text
