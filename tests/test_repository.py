"""What the repository ships is whole: recipes, tasks and their data, and the quickstart's models."""

from pathlib import Path

import pytest

from evomerge.build import checked_method
from evomerge.recipe import Recipe
from evomerge.study import prepare
from evomerge.tasks import Task

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    # As `python scripts/X.py` does it: scripts import their neighbours by bare name.
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_sound_and_says_how_it_is_run(path: Path):
    recipe = Recipe.load(path)
    assert checked_method(recipe)
    assert recipe.holes()
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"evomerge search recipes/{path.name}" in "\n".join(head)


@pytest.mark.parametrize("stem", [path.stem for path in sorted((ROOT / "eval_tasks" / "data").glob("*.jsonl"))])
def test_every_task_with_data_here_is_sound(stem: str):
    Task.load(ROOT / "eval_tasks" / f"{stem}.yaml").check()


def test_the_quickstart_can_begin_and_is_small():
    prepared = prepare(ROOT / "recipes" / "quickstart.yaml")
    assert len(prepared.parents) == 2
    files = [path for path in (ROOT / "recipes" / "quickstart").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000


def test_the_smollm2_data_is_what_its_script_writes(tmp_path: Path):
    from train_smollm2_specialists import write_data

    write_data(tmp_path)
    written = sorted(tmp_path.glob("*.jsonl"))
    assert len(written) == 3
    for path in written:
        assert path.read_bytes() == (ROOT / "eval_tasks" / "data" / path.name).read_bytes(), path.name
