"""The Python API: search, apply, evaluate and load_run give and take the same as the command line."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import evomerge
from evomerge.api import Observer, prepared
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from tests.study.search_case import write_case, write_staged_case


class Counting(Observer):
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def trial(self, trial, fresh):
        self.numbers += [trial.number] if fresh else []


def test_a_search_its_model_and_its_score(tmp_path: Path):
    recipe, run, out = write_case(tmp_path, evaluations=9), tmp_path / "run", tmp_path / "out"
    observer = Counting()
    report = evomerge.search(
        str(recipe), run, device="cpu", evaluations=3, watching=lambda _spec, _stage: contextlib.nullcontext(observer)
    )
    assert observer.numbers == [0, 1, 2, 3]
    assert report.evaluations == 3
    # Again, it is resumed; from a recipe in memory too.
    again = evomerge.search(Recipe.load(recipe), run, device="cpu", evaluations=3)
    assert again.as_data() == report.as_data()
    written = evomerge.apply(run, out)
    assert (written.folder, written.warnings) == (out, ())
    assert written.tensors == len(load_file(out / "model.safetensors"))
    tasks = [tmp_path / "tasks" / "likely.yaml", tmp_path / "tasks" / "written.yaml"]
    scored = [evomerge.evaluate(str(model), tasks, splits=("search", "holdout"), device="cpu") for model in (out, run)]
    assert scored[0].scores == scored[1].scores
    loaded = evomerge.load_run(run)
    search_items = {score.task: score.items for score in scored[0].scores if score.split == "search"}
    assert search_items == loaded.best.outcome.items
    holdout = {score.task: score.score for score in scored[0].scores if score.split == "holdout"}
    assert holdout == dict(report.winner.tasks)
    texts = {score.task: score.completions for score in scored[0].scores if score.split == "holdout"}
    assert texts["likely"] is None
    assert list(texts["written"]) == loaded.completions[report.winner.name]["written"]


def test_a_search_in_stages_watches_each_and_returns_the_last(tmp_path: Path):
    recipe, seen = write_staged_case(tmp_path, evaluations=4), []

    def watching(spec, stage):
        seen.append((stage, spec.recipe.merge_method))
        return contextlib.nullcontext(Observer())

    report = evomerge.search(prepared(recipe), tmp_path / "run", device="cpu", watching=watching)
    assert seen == [("weights", "task_arithmetic"), ("layers", "passthrough")]
    assert report.recipe.slices


def test_a_recipe_that_cannot_be_searched_or_applied_is_an_error(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"no\.yaml"):
        evomerge.search(tmp_path / "no.yaml", tmp_path / "run")
    with pytest.raises(RecipeError, match=r"is a folder without best\.yaml"):
        evomerge.apply(tmp_path, tmp_path / "out")
    with pytest.raises(AttributeError, match="has no attribute 'merges'"):
        _ = evomerge.merges


def test_importing_the_package_needs_no_torch_and_its_functions_keep_their_names():
    code = """
import sys, evomerge
assert 'torch' not in sys.modules
from evomerge.search import OPTIMIZERS
import evomerge.search
from evomerge import search
assert search is evomerge.search is sys.modules['evomerge.api'].search
assert sys.modules['evomerge.search'].OPTIMIZERS is OPTIMIZERS
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_publish_checks_a_run_s_winner_and_sends_nothing_in_a_dry_run(tmp_path: Path):
    recipe, run = write_case(tmp_path, evaluations=2), tmp_path / "run"
    evomerge.search(str(recipe), run, device="cpu")
    found = evomerge.publish(run, "me/merge", licence="apache-2.0", dry_run=True)
    assert found.url is None
    assert found.files["model.safetensors"] == (run / "model" / "model.safetensors").stat().st_size
    assert "README.md" in found.files
