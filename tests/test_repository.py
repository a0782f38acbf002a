"""What the repository contains works: recipes, tasks and their data, scripts, and the README's commands and map."""

import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from evomerge.cli import main
from evomerge.cli.app import app
from evomerge.merge import checked_method
from evomerge.recipe import StagedRecipe, load
from evomerge.study import prepare
from evomerge.tasks import Task

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_how_to_run_it(path: Path):
    document = load(path)
    for recipe in document.stages.values() if isinstance(document, StagedRecipe) else [document]:
        assert checked_method(recipe)
        assert recipe.holes()
        assert all((ROOT / task.task).is_file() for task in recipe.tasks)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"evomerge search recipes/{path.name}" in "\n".join(head)


@pytest.mark.parametrize("stem", [path.stem for path in sorted((ROOT / "eval_tasks" / "data").glob("*.jsonl"))])
def test_every_task_with_data_here_is_valid(stem: str):
    Task.load(ROOT / "eval_tasks" / f"{stem}.yaml").check()


def test_the_quickstart_can_begin_and_is_small():
    prepared = prepare(ROOT / "recipes" / "quickstart.yaml")
    assert len(prepared.parents) == 2
    files = [path for path in (ROOT / "recipes" / "quickstart").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000


def test_the_smollm2_data_is_what_its_script_writes(tmp_path: Path):
    from scripts.train_smollm2_specialists import write_data

    write_data(tmp_path)
    written = sorted(tmp_path.glob("*.jsonl"))
    assert len(written) == 4
    for path in written:
        assert path.read_bytes() == (ROOT / "eval_tasks" / "data" / path.name).read_bytes(), path.name


def test_the_map_in_the_readme_names_every_file_of_the_package_and_no_other_in_the_order_of_the_floors():
    section = (ROOT / "README.md").read_text().split("## The code\n")[1].split("\n## ")[0]
    named, room = [], ""
    for indent, name in re.findall(r"^( *)- `(\w+(?:\.py|/))`: \w", section, re.MULTILINE):
        room = room if indent else name
        named.append(room + name if indent else name)
    package = ROOT / "evomerge"
    rooms = [name for name in contents(package) if name.endswith("/")]
    assert sorted(named) == sorted(
        contents(package) + [room + name for room in rooms for name in contents(package / room)]
    )
    (contract, *_) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [re.findall(r"evomerge\.(\w+)", layer) for layer in reversed(contract["layers"])]
    order = [number for name in named for number, floor in enumerate(floors) if re.split(r"[./]", name)[0] in floor]
    assert order == sorted(order)


def contents(folder: Path) -> list[str]:
    """The names of a folder's files and folders, sorted; a folder's name ends in a slash."""
    found = [path for path in folder.iterdir() if not path.name.startswith(("_", ".")) and path.name != "py.typed"]
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in found)


SCRIPTS = [path for path in sorted((ROOT / "scripts").rglob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_a_help_text(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    # As `python scripts/X.py` has it.
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code
    assert f"usage: {path.name}" in capsys.readouterr().out


def documented() -> list[str]:
    """Every command that --help, the README, the docs, or the head of a recipe or task shows."""
    found: list[str] = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found += re.findall(r"^\$ (.*?)(?: +#.*)?$", path.read_text(), re.MULTILINE)
        found += [text for text in re.findall(r"`([^`\n]+)`", path.read_text()) if text.startswith("scripts/")]
    for path in [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "eval_tasks").glob("*.yaml"))]:
        found += re.findall(r"^# .*?((?:evomerge|python) .*?)(?:   .*)?$", path.read_text(), re.MULTILINE)
    texts = [str(app.info.help), *(str(command.callback.__doc__) for command in app.registered_commands)]
    for text in texts:
        blocks = [" ".join(block.split()) for block in text.split("\n\n")]
        found += [block.removeprefix("Example: ") for block in blocks if block.startswith(("Example: ", "evomerge "))]
    return list(dict.fromkeys(found))


def test_every_file_that_a_documented_command_names_is_here_and_every_option_exists():
    commands = documented()
    assert len(commands) > 20
    program = typer.main.get_command(app)
    for command in commands:
        words = shlex.split(command)
        for word in words:
            # What scripts, searches and merges make is not in the repository.
            if re.match(r"(scripts|recipes|eval_tasks|docs)/", word):
                assert (ROOT / word).exists(), command
        if "evomerge" in words[0]:
            name, *rest = words[1:]
            inner = program.get_command(typer.Context(program), name)
            assert inner, command
            inner.make_context(name, rest, resilient_parsing=False)


def test_every_documented_command_that_needs_nothing_else_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("mergekit"))
    shutil.copytree(ROOT / "eval_tasks", tmp_path / "eval_tasks")
    for path in (tmp_path / "eval_tasks").glob("quickstart*.yaml"):
        # The same tasks, with fewer items.
        path.write_text(
            re.sub(r"^splits: .*", "splits: {search: [0, 4], holdout: [4, 8]}", path.read_text(), flags=re.M)
        )
    monkeypatch.chdir(tmp_path)
    # Models that scripts make, from the Hub or in minutes, and the Hub's data.
    needs = re.compile(r"smollm2|evo[lv]lm|MODEL|^(?!evomerge )")
    commands = [shlex.split(command) for command in documented() if not needs.search(command)]
    order = ["check", "search", "show", "report", "runs", "apply", "eval", "publish"]
    commands.sort(key=lambda words: order.index(words[1]))
    assert {words[1] for words in commands} == set(order)
    for words in commands:
        shutil.rmtree("merged" if words[1] == "apply" else "none", ignore_errors=True)
        fewer = ["--evaluations", "2"] if words[1] == "search" else []
        if words[1] == "search":
            shutil.rmtree("runs", ignore_errors=True)
        monkeypatch.setattr(sys, "argv", [*words, *fewer])
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as end:
            main()
        signal.signal(signal.SIGINT, handler)
        assert not end.value.code, words
    assert os.listdir("merged")
    shutil.rmtree("merged")
    for page in ("README.md", "docs/python.md"):
        shutil.rmtree("merged", ignore_errors=True)
        (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        exec(block.replace('"runs/quickstart")', '"runs/quickstart", evaluations=2)', 1), {})
        assert os.listdir("merged")
