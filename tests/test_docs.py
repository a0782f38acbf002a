"""The README and the pages of docs/: every command and program that they show runs, every recipe and task is valid.

A comment of HTML above a code block, which a reader does not see, says what to do with it:

    <!-- file: NAME -->      later blocks of the page find it under this name
    <!-- needs: REASON -->   it is not run: what it needs, such as a GPU, a network, or hours
    <!-- part of: recipe --> or task: it is not complete, and checked with what it leaves out

The others run page by page, in order, in a folder that has the recipes, the quickstart's models and tasks, and
runs/quickstart, as the README's first commands leave it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

from evomerge.cli.app import app
from evomerge.merge import checked_method
from evomerge.recipe import StagedRecipe, load
from evomerge.tasks import Task
from tests.test_cli import evomerge

ROOT = Path(__file__).parent.parent
# The package that docs/extending.md shows is installed and tested by tests/test_plugins.py.
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "extending")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
COMMANDS = {str(command.name or command.callback.__name__): command for command in app.registered_commands}
FEW = "splits: {search: [0, 4], holdout: [4, 8]}"


@dataclass(frozen=True)
class Block:
    """A code block of a page: its language ("" for what a command prints), its text, and the comment above it."""

    language: str
    text: str
    mark: str
    reason: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^(?:<!-- ([\w ]+): (.+?) -->\n)?```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [Block(language, text, mark, reason) for mark, reason, language, text in found]


def commands(block: Block) -> list[str]:
    """The commands of a block, without their comments."""
    return re.findall(r"^\$ (.*?)(?: +#.*)?$", block.text, re.MULTILINE)


def fewer(task: str) -> str:
    """The same task, with fewer items."""
    return re.sub(r"^splits: .*", FEW, task, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart's search is finished."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("mergekit"))
    shutil.copytree(ROOT / "eval_tasks", folder / "eval_tasks")
    for path in (folder / "eval_tasks").glob("quickstart*.yaml"):
        path.write_text(fewer(path.read_text()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("evomerge search recipes/quickstart.yaml")
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    folder = tmp_path / "here"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


def run(command: str) -> str:
    """Runs a command of evomerge with few evaluations, and returns what it prints."""
    name, *words = shlex.split(command)
    assert name == "evomerge", f"{command}: mark the block as one that needs something"
    found = evomerge(*words, *(["--evaluations", "2"] if words[0] == "search" else []))
    assert found.returncode in (0, None), f"{command}: {found.stderr}"
    return found.stdout


@each_page
def test_every_block_says_what_it_is_and_why_it_is_not_run(page: Path):
    marks = {"": {"", "console", "python", "yaml"}, "needs": {"console", "python"}}
    marks |= {"file": {"yaml"}, "part of": {"yaml"}}
    found = blocks(page)
    assert len(found) * 2 == len(re.findall(r"^ *(?:```|~~~)", page.read_text(), re.MULTILINE))
    for block in found:
        assert block.language in marks[block.mark], block
        assert bool(commands(block)) == (block.language == "console"), block
        assert not block.text.startswith("evomerge ") or block.language, block
        if block.mark == "needs":
            assert re.search("GPU|network|minutes|hour|mergekit", block.reason), block


@each_page
def test_every_block_works(page: Path, here: Path):
    for block in blocks(page):
        if block.mark == "needs":
            continue
        if block.mark == "file":
            Path(block.reason).write_text(fewer(block.text))
        if block.language == "yaml":
            check_document(block)
        if block.language == "python":
            exec(block.text.replace('"runs/quickstart")', '"runs/quickstart", evaluations=2)', 1), {})
        for command in commands(block) if block.language == "console" else []:
            printed = run(command)
            if " check " in command:
                shown = block.text.split(f"$ {command}")[1].split("\n$ ")[0].partition("\n")[2]
                assert without_digits(shown) in without_digits(printed), command
    assert not any(path.name.startswith(".") for path in here.iterdir())


def without_digits(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def check_document(block: Block) -> None:
    data = yaml.safe_load(block.text)
    if block.mark == "part of":
        whole = {
            "recipe": {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]},
            "task": {"type": "generate", "data": "a.jsonl", "prompt": "{{ q }}", "target": "{{ a }}"}
            | {"metric": "exact_match", "splits": {"search": [0, 1], "holdout": [1, 2]}},
        }[block.reason]
        data = whole | data
    path = Path("block.yaml")
    path.write_text(yaml.safe_dump(data) if block.mark == "part of" else block.text)
    if "type" in data:
        assert Task.load(path).type == data["type"]
        return
    document = load(path)
    for recipe in document.stages.values() if isinstance(document, StagedRecipe) else [document]:
        assert checked_method(recipe)
        files = [Path(str(task.task)) for task in recipe.tasks if not str(task.task).startswith("lm_eval:")]
        assert all(file.is_file() for file in files)


def documented() -> list[str]:
    """Every command that --help, a page, or the head of a recipe or task shows."""
    found: list[str] = []
    for page in [*PAGES, ROOT / "docs" / "extending.md"]:
        found += [command for block in blocks(page) for command in commands(block)]
        found += [text for text in re.findall(r"`([^`\n]+)`", page.read_text()) if text.startswith("scripts/")]
    for path in [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "eval_tasks").glob("*.yaml"))]:
        found += re.findall(r"^# .*?((?:evomerge|python) .*?)(?:   .*)?$", path.read_text(), re.MULTILINE)
    overview = [" ".join(block.split()) for block in str(app.info.help).split("\n\n")]
    found += [block for block in overview if block.startswith("evomerge ")]
    return list(dict.fromkeys([*found, *(example for name in COMMANDS for example in examples(name))]))


def examples(name: str) -> list[str]:
    """The examples of a command's --help."""
    text = str(COMMANDS[name].callback.__doc__)
    return [" ".join(example.split()) for example in re.findall(r"Example: (.*?)(?:\n\n|\s*\Z)", text, re.DOTALL)]


def test_every_file_that_a_documented_command_names_is_here_and_every_option_exists(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    found = documented()
    assert len(found) > 20
    program = typer.main.get_command(app)
    for command in found:
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


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_examples_that_work(name: str):
    assert examples(name)
    if name in ("eval", "publish"):
        evomerge("apply", "runs/quickstart", "merged")
    for example in examples(name):
        run(example)


@each_page
def test_every_link_leads_somewhere(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = Path(os.path.normpath(page.parent / name)) if name else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
