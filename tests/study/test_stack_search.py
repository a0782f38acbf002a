"""Searches for stacks of layers, and searches in stages, from end to end on tiny models."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

from evomerge.api import evaluate
from evomerge.errors import EvomergeError, RecipeError, StudyError
from evomerge.merge import into_directory, open_recipe
from evomerge.recipe import Recipe
from evomerge.runtime import StackRuntime
from evomerge.search import optimizers_for
from evomerge.study import Record, Study, prepare, runs
from scripts.check_kills import killed_search, run_state
from tests.study.forked import Forked
from tests.study.search_case import (
    Watcher,
    put_nan,
    search,
    write_case,
    write_stack_case,
    write_staged_case,
)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_staged_case(tmp_path_factory.mktemp("staged"))


@pytest.fixture(scope="module")
def whole_stages(staged: Path) -> Path:
    """The folder of a finished search in stages."""
    search(staged, staged.parent / "whole")
    return staged.parent / "whole"


def test_the_first_stacks_are_the_models_and_score_exactly_what_they_do(whole: Path):
    result = json.loads((whole / "result.json").read_text())
    parents = {parent["model"]: parent["search"] for parent in result["parents"]}
    with Record(whole) as record:
        scores = {
            Recipe.model_validate(trial.recipe).slices[0].sources[0].model: trial.objective
            for trial in record.trials
            if trial.proposal.id < 2
        }
        assert record.trials[0].kind == "candidate"
    assert scores == parents
    assert result["winner"]["search"] >= max(parents.values())
    assert result["mean"] is None
    assert "fold" not in result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_written_winner_scores_item_for_item_what_was_recorded(dtype: str, tmp_path: Path):
    recipe = write_stack_case(tmp_path, dtype=dtype)
    search(recipe, tmp_path / "run")
    with Record(tmp_path / "run") as record:
        best = max(record.trials, key=lambda trial: (trial.objective, -trial.proposal.id))
    into_directory(open_recipe(tmp_path / "run" / "best.yaml"), tmp_path / "out")
    tasks = [tmp_path / "tasks" / "likely.yaml", tmp_path / "tasks" / "written.yaml"]
    scored = evaluate(str(tmp_path / "out"), tasks, splits=["search"], device="cpu").scores
    assert {score.task: score.items for score in scored} == best.outcome.items


@pytest.mark.parametrize(
    ("hole", "settings"),
    [
        ("", ", population: 6"),
        (", scale: [0.5, 2]", ", population: 6"),
        ("", ", optimizer: random"),
        (", encoding: indicator", ", optimizer: cma-es, population: 6"),
        (", encoding: indicator, scale: [0.5, 2]", ", optimizer: cma-es, population: 6"),
        (", encoding: indicator", ", optimizer: tpe"),
    ],
    ids=["genetic", "genetic with scales", "random", "cma-es", "cma-es with scales", "tpe"],
)
def test_a_search_for_stacks_that_was_stopped_is_resumed_as_if_nothing_had_happened(
    hole: str, settings: str, tmp_path: Path
):
    recipe = write_stack_case(tmp_path, hole=hole, settings=settings)
    search(recipe, tmp_path / "one")
    for stop_at in (0, 3, 9):
        with pytest.raises(KeyboardInterrupt):
            search(recipe, tmp_path / "two", Watcher(stop_at))
    last = Watcher()
    search(recipe, tmp_path / "two", last)
    assert [trial.number for trial in last.fresh] == [10, 11, 12, 13]
    assert run_state(tmp_path / "one") == run_state(tmp_path / "two")


def test_an_extended_search_for_stacks_finds_the_winner_of_a_longer_one(case: Path, whole: Path, tmp_path: Path):
    search(case, tmp_path / "run", evaluations=8)
    search(case, tmp_path / "run")
    found, expected = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", whole))
    assert found["winner"]["recipe"] == expected["winner"]["recipe"]
    with Record(tmp_path / "run") as one, Record(whole) as other:
        assert sorted(trial.proposal.id for trial in one.trials) == sorted(trial.proposal.id for trial in other.trials)
        assert {trial.key: trial.objective for trial in one.trials} == {
            trial.key: trial.objective for trial in other.trials
        }


def test_candidates_of_a_generation_share_their_first_layers(tmp_path: Path):
    recipe = write_stack_case(tmp_path, evaluations=40, settings=", population: 20")
    with Study(prepare(recipe), tmp_path / "run", "cpu", Watcher()) as study:
        study.run()
        runtime, _ = study.scoring.open()
        assert isinstance(runtime, StackRuntime)
        assert runtime.layer_runs.shared > 0
        generations = [trial.proposal.generation for trial in study.candidates]
        assert generations == sorted(generations)
        ids = [trial.proposal.id for trial in study.candidates]
        assert ids != sorted(ids)


def test_scales_of_the_winner_are_the_same_in_its_weights(tmp_path: Path):
    recipe = write_stack_case(tmp_path, hole=", scale: [0.5, 2]", dtype="float32")
    report = search(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "result.json").read_text())["fold"]["difference"]
    assert report.fold == found
    assert 0 <= found < 1e-4


def test_a_search_ends_early_when_every_stack_is_evaluated(tmp_path: Path):
    recipe = write_stack_case(tmp_path, evaluations=60)
    recipe.write_text(recipe.read_text().replace("repeats: 2", "repeats: 1").replace("max_layers: 4", "max_layers: 2"))
    watcher = Watcher()
    report = search(recipe, tmp_path / "run", watcher)
    assert report.evaluations == 4 * 3
    assert any("all 12 stacks that the recipe allows are evaluated" in note for note in watcher.notes)
    assert [run.state for run in runs(tmp_path / "run")] == ["finished"]


def test_nan_weights_stop_a_search_for_stacks_before_it_begins(tmp_path: Path):
    recipe = write_stack_case(tmp_path)
    put_nan(tmp_path / "b")
    with pytest.raises(EvomergeError, match=r"/b: model\.norm\.weight: .* not finite"):
        search(recipe, tmp_path / "run")


def test_an_optimizer_of_numbers_is_refused_for_stacks_in_any_order(tmp_path: Path):
    recipe = write_stack_case(tmp_path, settings=", optimizer: cma-es")
    with pytest.raises(RecipeError, match=r'there is no optimizer of stacks "cma-es"; expected one of genetic'):
        prepare(recipe)
    assert "tpe" not in optimizers_for(Recipe.load(recipe))


def test_the_quickstarts_search_for_stacks_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).parent.parent.parent
    shutil.copytree(root / "eval_tasks", tmp_path / "eval_tasks")
    shutil.copytree(root / "recipes" / "quickstart", tmp_path / "recipes" / "quickstart")
    recipe = shutil.copy(root / "recipes" / "quickstart-stack.yaml", tmp_path / "recipes")
    for task in ("addition", "spanish"):
        path = tmp_path / "eval_tasks" / f"quickstart_{task}.yaml"
        fewer = re.sub(r"^splits: .*", "splits: {search: [0, 16], holdout: [16, 24]}", path.read_text(), flags=re.M)
        path.write_text(fewer)
    monkeypatch.chdir(tmp_path)
    report = search(Path(recipe), tmp_path / "run", evaluations=12)
    assert report.failures == 0
    assert report.winner.search >= max(parent.search for parent in report.parents)
    with Record(tmp_path / "run") as record:
        assert len({trial.key for trial in record.trials}) == 12


@pytest.mark.parametrize("kind", ["stack", "stages"])
def test_kills_lose_nothing(kind: str, tmp_path: Path):
    if kind == "stack":
        recipe = write_stack_case(tmp_path, evaluations=40)
        search(recipe, tmp_path / "whole")
    else:
        recipe = write_staged_case(tmp_path, evaluations=20)
        search(recipe, tmp_path / "whole")
    command = ("search", recipe, "--run-dir", tmp_path / "killed", "--device", "cpu")
    seen = killed_search(lambda: Forked(*command), tmp_path / "killed", 2, 0.3, random.Random(0))
    assert len(seen) == 2
    assert run_state(tmp_path / "whole") == run_state(tmp_path / "killed")


KILLED = """
import os, signal, sys
from pathlib import Path

def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("weights/model"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
from tests.study.search_case import search
search(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_winner_that_was_half_written_is_finished_by_the_same_command(staged: Path, whole_stages: Path):
    folder = staged.parent / "half"
    ended = subprocess.run([sys.executable, "-c", KILLED, staged, folder], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (folder / "weights" / "model").exists()
    assert list((folder / "weights").glob(".model.*"))
    assert [run.state for run in runs(folder)] == ["stopped", "finished"]
    search(staged, folder)
    assert run_state(folder) == run_state(whole_stages)


def test_a_search_in_stages_that_was_stopped_is_resumed_in_either_stage(staged: Path, whole_stages: Path):
    folder = staged.parent / "stopped"

    class Second(Watcher):
        def trial(self, trial, fresh):
            super().trial(trial, fresh)
            if len(self.fresh) == 8 + 4:
                raise KeyboardInterrupt

    for watcher in (Watcher(3), Second()):
        with pytest.raises(KeyboardInterrupt):
            search(staged, folder, watcher)
    search(staged, folder)
    assert run_state(folder) == run_state(whole_stages)


def test_a_search_in_stages_is_one_run_with_one_verdict(staged: Path, whole_stages: Path):
    result = json.loads((whole_stages / "result.json").read_text())
    assert [parent["model"] for parent in result["parents"]] == ["weights", f"{staged.parent}/a"]
    assert [other["model"] for other in result["others"]] == [f"{staged.parent}/b", f"{staged.parent}/base"]
    compared = [*result["parents"], *result["others"]]
    best = max(compared, key=lambda entry: entry["holdout"])
    assert result["difference"]["to"] == best["model"]
    first = json.loads((whole_stages / "weights" / "result.json").read_text())
    assert result["parents"][0]["search"] == first["winner"]["search"]
    assert result["parents"][0]["holdout"] == first["winner"]["holdout"]
    assert json.loads((whole_stages / "layers" / "result.json").read_text()) == result
    outer, *inner = runs(whole_stages)
    assert (outer.state, outer.evaluations, outer.verdict) == ("finished", 16, result["verdict"])
    assert [run.folder.name for run in inner] == ["layers", "weights"]
    assert sum(run.folder == whole_stages for run in runs(whole_stages.parent)) == 1
    # The winner can be written: its recipe names the model of the first stage by its folder.
    text = (whole_stages / "best.yaml").read_text()
    assert text == (whole_stages / "layers" / "best.yaml").read_text()
    assert f"{whole_stages.resolve()}/weights/model" in text or f"{staged.parent}/a" in text
    into_directory(open_recipe(whole_stages / "best.yaml"), staged.parent / "out")
    tasks = [staged.parent / "tasks" / "likely.yaml"]
    (scored,) = evaluate(str(staged.parent / "out"), tasks, splits=["holdout"], device="cpu").scores
    assert scored.score == result["winner"]["holdout_tasks"]["likely"]


def test_an_extended_last_stage_keeps_the_first(staged: Path, whole_stages: Path):
    before = (whole_stages / "weights" / "model" / "model.safetensors").stat()
    watcher = Watcher()
    report = search(staged, whole_stages, watcher, evaluations=10)
    assert len(watcher.fresh) == 2
    assert report.evaluations == 10
    after = (whole_stages / "weights" / "model" / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_searches_in_the_folder_of_stages_are_refused(staged: Path, whole_stages: Path, tmp_path: Path):
    recipe = write_staged_case(tmp_path)
    recipe.write_text(recipe.read_text().replace("weights", "numbers"))
    with pytest.raises(StudyError, match=r"holds a search with the stages weights, layers, not numbers, layers"):
        search(recipe, whole_stages)
    plain = write_case(tmp_path / "plain") if (tmp_path / "plain").mkdir() is None else None
    search(plain, tmp_path / "run", evaluations=1)
    with pytest.raises(StudyError, match="holds a search without stages"):
        search(staged, tmp_path / "run")


def test_stages_are_studies_of_their_own_in_a_shared_database(staged: Path, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    for name in ("one", "two", "one"):
        command = ("search", staged, "--run-dir", tmp_path / name, "--device", "cpu", "--storage", url)
        assert Forked(*command).wait() == 0
    names = optuna.get_all_study_names(url)
    assert sorted(names) == ["one-layers", "one-weights", "two-layers", "two-weights"]
    assert run_state(tmp_path / "one", url) == run_state(tmp_path / "two", url)
    assert [(run.state, run.evaluations, run.storage) for run in runs(tmp_path)] == [("finished", 16, url)] * 2


def test_faults_of_all_stages_are_told_before_the_first_starts(tmp_path: Path):
    recipe = write_staged_case(tmp_path, hole=", scale: [0.5, 2]")
    recipe.write_text(recipe.read_text().replace("population: 4", "optimizer: genetics").replace("likely", "absent"))
    with pytest.raises(RecipeError) as caught:
        search(recipe, tmp_path / "run")
    text = str(caught.value)
    assert 'stages.layers.search.optimizer: there is no optimizer of stacks "genetics"; did you mean "genetic"?' in text
    assert text.count("absent.yaml") == 1
    assert not (tmp_path / "run").exists()


def test_the_search_for_stacks_does_not_depend_on_global_generators(case: Path, whole: Path, tmp_path: Path):
    torch.manual_seed(99)
    random.seed(99)
    search(case, tmp_path / "run")
    assert run_state(tmp_path / "run") == run_state(whole)
