"""What the repository contains works: recipes, tasks and their data, scripts, and the README's map of the code."""

import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

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
