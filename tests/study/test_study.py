"""Searches from end to end on tiny models: the record, going on, failures, and what is refused."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import psutil
import pytest
import torch

from evomerge import api
from evomerge.api import evaluate
from evomerge.errors import ArchitectureError, CheckpointError, EvomergeError, RecipeError, StudyError, TaskError
from evomerge.merge import into_directory, open_recipe, parents
from evomerge.recipe import Recipe
from evomerge.study import Record, SearchSpec, Study, conclude, load_run, prepare
from scripts.check_kills import killed_search, run_state
from tests.study.forked import Forked
from tests.study.search_case import Watcher, put_nan, search, write_case


def assert_written_winner_scores_what_was_recorded(spec: SearchSpec, folder: Path) -> None:
    """Searches in `folder`, beside its tasks, and writes the best recipe's model to "out"."""
    with Study(spec, folder / "run", "cpu", Watcher()) as study:
        study.run()
        report = conclude(study)
        best = max(study.record.trials, key=lambda trial: (trial.objective, -trial.number))
    assert report.failures == 0
    assert best.outcome is not None
    into_directory(open_recipe(folder / "run" / "best.yaml"), folder / "out")
    tasks = [folder / "tasks" / "likely.yaml", folder / "tasks" / "written.yaml"]
    scored = evaluate(str(folder / "out"), tasks, splits=["search"], device="cpu").scores
    assert {score.task: score.items for score in scored} == best.outcome.items


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"))


def test_the_record_holds_every_evaluation(case: Path, whole: Path):
    loaded = optuna.load_study(study_name="evomerge", storage=f"sqlite:///{whole / 'study.db'}")
    kinds = [trial.user_attrs["kind"] for trial in loaded.trials]
    assert kinds == ["mean"] + ["candidate"] * 12
    for trial in loaded.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert {name: len(items) for name, items in trial.user_attrs["items"].items()} == {"likely": 8, "written": 8}
        assert set(trial.user_attrs["seconds"]) == {"build", "evaluate", "other"}
        recipe = Recipe.model_validate(trial.user_attrs["recipe"])
        assert not recipe.holes()
        items = trial.user_attrs["items"]
        # Bits per byte and shares have no common unit, so that both are standardized.
        (likely, one), (written, other) = (loaded.user_attrs["scales"][name] for name in ("likely", "written"))
        shares = (sum(items["likely"]) / 8 - likely) / one, (sum(items["written"]) / 8 - written) / other
        expected = (shares[0] + 0.5 * shares[1]) / 1.5
        assert trial.value == pytest.approx(expected)
        assert trial.user_attrs["score of likely"] == pytest.approx(sum(items["likely"]) / 8)
    assert set(loaded.trials[1].params) == {"a: weight[0]", "a: weight[1]", "b: weight"}
    weights = [trial.params["b: weight"] for trial in loaded.trials[1:]]
    recipes = [Recipe.model_validate(trial.user_attrs["recipe"]) for trial in loaded.trials[1:]]
    assert weights == [recipe.models[1].parameters["weight"] for recipe in recipes]
    for name in ("a", "b", "base"):
        assert f"baseline:{case.parent / name}" in loaded.user_attrs


def test_the_result_says_all_and_the_best_recipe_is_the_winner(case: Path, whole: Path):
    result = json.loads((whole / "result.json").read_text())
    assert [parent["model"] for parent in result["parents"]] == list(parents(Recipe.load(case)))
    for entry in [*result["parents"], result["base"], result["mean"], result["winner"], *result["finalists"]]:
        low, high = entry["holdout_ci"]
        assert low <= entry["holdout"] <= high
        assert isinstance(entry["search"], float)
    # The base is better than both parents and all merges of this case: the parents alone would be beaten.
    best = max([*result["parents"], result["base"], result["mean"]], key=lambda entry: entry["holdout"])
    assert result["difference"]["to"] == best["model"] == str(case.parent / "base")
    gap = result["winner"]["holdout"] - best["holdout"]
    assert result["difference"]["holdout"] == pytest.approx(gap, abs=1e-12)
    assert gap < 0
    assert all(result["winner"]["holdout"] > parent["holdout"] for parent in result["parents"])
    assert not result["beaten"]
    assert len(result["finalists"]) == 5
    scores = [finalist["search"] for finalist in result["finalists"]]
    assert scores == sorted(scores, reverse=True)
    assert result["finalists"][0]["trial"] == result["winner"]["trial"]
    assert Recipe.load(whole / "best.yaml").as_data() == result["winner"]["recipe"]
    assert result["evaluations"] == 12
    assert set(result["seconds"]) == {"build", "evaluate", "other"}
    with Record(whole) as record:
        assert max(trial.objective for trial in record.trials) == result["winner"]["search"]
    assert sorted(path.name for path in whole.iterdir()) == [
        "best.yaml",
        "completions.json",
        "recipe.yaml",
        "result.json",
        "study.db",
    ]


@pytest.mark.parametrize("optimizer", ["cma-es", "random", "tpe"])
def test_a_search_that_was_stopped_goes_on_as_if_nothing_had_happened(optimizer: str, tmp_path: Path):
    recipe = write_case(tmp_path, optimizer=optimizer)
    search(recipe, tmp_path / "one")
    for stop_at in (0, 3, 9):
        with pytest.raises(KeyboardInterrupt):
            search(recipe, tmp_path / "two", Watcher(stop_at))
    last = Watcher()
    search(recipe, tmp_path / "two", last)
    assert [trial.number for trial in last.fresh] == [10, 11, 12]
    assert run_state(tmp_path / "one") == run_state(tmp_path / "two")


def test_three_kills_lose_nothing(tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=40)
    search(recipe, tmp_path / "whole")
    # A tenth of a second after a score: the whole search takes little more than one.
    command = ("search", recipe, "--run-dir", tmp_path / "killed", "--device", "cpu")
    seen = killed_search(lambda: Forked(*command), tmp_path / "killed", 3, 0.1, random.Random(0))
    assert seen == sorted(seen)
    assert len(seen) >= 2
    assert run_state(tmp_path / "whole") == run_state(tmp_path / "killed")


def test_a_finished_search_is_extended(case: Path, whole: Path, tmp_path: Path):
    search(case, tmp_path / "run", evaluations=5)
    watcher = Watcher()
    search(case, tmp_path / "run", watcher, evaluations=12)
    assert [trial.number for trial in watcher.fresh] == list(range(6, 13))
    assert run_state(tmp_path / "run")["trials"] == run_state(whole)["trials"]


def test_another_search_in_the_same_folder_is_refused(case: Path, whole: Path):
    with pytest.raises(StudyError, match=r"started with other settings or files: search\.seed was 0, is 7;"):
        search(case, whole, seed=7)
    changed = case.parent / "changed.yaml"
    changed.write_text(case.read_text().replace("search: [0, 1]}", "search: [0, 0.9]}"))
    with pytest.raises(StudyError) as caught:
        search(changed, whole)
    assert "recipe.models[1].parameters.weight.search[1] was 1.0, is 0.9;" in str(caught.value)
    rows = case.parent / "tasks" / "rows.jsonl"
    kept = rows.read_text()
    rows.write_text(kept.replace("what", "who", 1))
    with pytest.raises(StudyError, match=r"task likely: its files changed, task written: its files changed;"):
        search(case, whole)
    rows.write_text(kept)


def test_two_searches_in_one_folder_at_once_are_refused(whole: Path):
    with Record(whole), pytest.raises(StudyError, match="another evomerge is searching here"):
        Record(whole)


def test_a_damaged_record_is_told(case: Path, tmp_path: Path):
    (tmp_path / "study.db").write_bytes(b"no database" * 500)
    with pytest.raises(StudyError, match="cannot be opened as the record"):
        search(case, tmp_path)


@pytest.mark.parametrize("stop_at", [None, 0, 1])
def test_a_normalized_search_measures_in_standard_deviations_of_the_models_scores(tmp_path: Path, stop_at: int | None):
    # The tasks' units differ: bits per byte, and a share of items.
    recipe = write_case(tmp_path, evaluations=3)
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            search(recipe, tmp_path / "run", Watcher(stop_at=stop_at))
    report = search(recipe, tmp_path / "run")
    run = load_run(tmp_path / "run")
    models = [*run.baselines.values(), run.trials[0].outcome]
    likely = np.array([model.items["likely"] for model in models])
    written = [score for model in models for score in model.items["written"]]
    assert set(written) == {0.0}
    assert run.objective.scales["likely"] == pytest.approx((likely.mean(), likely.std()))
    assert run.objective.scales["written"] == pytest.approx((0, math.sqrt(2 / (len(written) + 4))))
    assert report.winner.search == max(trial.objective for trial in run.trials)
    own = run.trials[run.best.number].outcome.means["likely"]
    shares = (own - likely.mean()) / likely.std() / 1.5
    assert report.winner.search == pytest.approx(shares)


def test_tasks_in_the_same_unit_are_not_normalized_by_default(tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=1)
    task = tmp_path / "tasks/likely.yaml"
    task.write_text(
        task.read_text().replace("type: perplexity\nmetric: bits_per_byte", "type: generate\nmax_new_tokens: 4")
    )
    assert not api.prepared(recipe).settings.normalize


def test_a_candidate_that_fails_is_a_state_with_its_reason(tmp_path: Path):
    recipe = write_case(tmp_path, optimizer="random", evaluations=10)
    # Weights of up to 1e38 overflow bfloat16 in many candidates, not in all.
    recipe.write_text(recipe.read_text().replace("search: [0, 1]}", "search: [1.0e-6, 1.0e+41], log: true}"))
    report = search(recipe, tmp_path / "run")
    assert 0 < report.failures < 10
    with Record(tmp_path / "run") as record:
        for trial in record.trials:
            assert (trial.objective is None) == (trial.outcome.error is not None)
            if trial.outcome.error:
                assert "not finite" in trial.outcome.error


@pytest.mark.parametrize(
    "fault",
    [
        ArchitectureError("no layers"),
        CheckpointError("a file went away"),
        torch.OutOfMemoryError("no room on the device"),
        MemoryError(),
        IndexError("inside of torch"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_whatever_a_candidate_raises_is_its_own_failure(case: Path, tmp_path: Path, fault: Exception):
    class Faulty(Watcher):
        def evaluating(self, what, stage):
            if (what, stage) == ("trial 2", "build"):
                raise fault

    watcher = Faulty()
    report = search(case, tmp_path / "run", watcher, evaluations=4)
    assert report.failures == 1
    failed = watcher.fresh[2].outcome.error
    assert failed
    assert str(fault) in failed
    assert [trial.objective is None for trial in watcher.fresh] == [False, False, True, False, False]


def test_a_source_that_is_lost_ends_the_search_with_nothing_wrong_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = write_case(tmp_path, evaluations=6)
    weights = tmp_path / "a" / "model.safetensors"
    kept = weights.read_bytes()
    # No memory to spare: sources are read from the disk for every candidate.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))

    class Losing(Watcher):
        def trial(self, trial, fresh):
            super().trial(trial, fresh)
            if trial.number == 2:
                os.truncate(weights, 1000)

    with pytest.raises(
        StudyError, match=r"(?s)changed since it was opened.*trial 2, which was scored before, now fails too.*resume"
    ):
        search(recipe, tmp_path / "run", Losing())
    weights.write_bytes(kept)
    search(recipe, tmp_path / "run")
    search(recipe, tmp_path / "whole")
    assert run_state(tmp_path / "run") == run_state(tmp_path / "whole")


def test_a_search_in_which_everything_fails_stops(tmp_path: Path):
    recipe = write_case(tmp_path, optimizer="random", evaluations=100)
    recipe.write_text(recipe.read_text().replace("search: [0, 1]}", "search: [1.0e+39, 1.0e+41]}"))
    with pytest.raises(StudyError, match=r"all of the first 12 candidates failed, the last with: .*not finite"):
        search(recipe, tmp_path / "run")


def test_nan_weights_stop_the_search_before_it_begins(tmp_path: Path):
    recipe = write_case(tmp_path)
    put_nan(tmp_path / "a")
    with pytest.raises(EvomergeError, match=r"model\.norm\.weight has 1 values that are NaN"):
        search(recipe, tmp_path / "run")


def test_a_missing_chat_template_stops_the_search_before_it_begins(tmp_path: Path):
    recipe = write_case(tmp_path, chat=True)
    with pytest.raises(TaskError, match="has no chat template"):
        search(recipe, tmp_path / "run")


def test_all_faults_of_a_search_are_told_at_once(tmp_path: Path):
    recipe = write_case(tmp_path)
    text = recipe.read_text().replace("/a\n", "/missing\n").replace("search: [0, 1]}", "search: [0, 1], layers: 2}")
    recipe.write_text(text.replace("cma-es", "cmaes").replace("likely", "absent"))
    with pytest.raises(RecipeError) as caught:
        prepare(recipe)
    faults = str(caught.value)
    assert 'there is no optimizer "cmaes"; did you mean "cma-es"?' in faults
    assert "absent.yaml" in faults
    assert "missing" in faults


def test_more_layer_groups_than_layers_are_refused(tmp_path: Path):
    recipe = write_case(tmp_path)
    recipe.write_text(recipe.read_text().replace("layers: 2", "layers: 3"))
    with pytest.raises(RecipeError, match="layers is 3, but there are 2 layers"):
        prepare(recipe)


def test_a_recipe_without_holes_or_tasks_is_refused(tmp_path: Path):
    recipe = write_case(tmp_path)
    lines = [line for line in recipe.read_text().splitlines() if "task" not in line or "merge_method" in line]
    recipe.write_text("\n".join(lines).replace("{search: [0, 1], layers: 2}", "1").replace("{search: [0, 1]}", "1"))
    with pytest.raises(RecipeError) as caught:
        prepare(recipe)
    assert "nothing to search" in str(caught.value)
    assert "nothing to score candidates on" in str(caught.value)


def test_an_unknown_device_is_told():
    from evomerge.merge import compute_device

    with pytest.raises(EvomergeError, match="--device tpu9"):
        compute_device("tpu9")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_stops_with_a_clear_error_and_goes_on_when_there_is_room(tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=60)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with pytest.raises(StudyError, match=r"cannot be written.*make room .*and run the same command again"):
            search(recipe, small / "run")
        with Record(small / "run") as record:
            done = len(record.trials)
        assert 0 < done < 60
        subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
        watcher = Watcher()
        search(recipe, small / "run", watcher)
        assert watcher.fresh[0].number == done
        search(recipe, tmp_path / "whole")
        assert run_state(small / "run") == run_state(tmp_path / "whole")
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_search_does_not_depend_on_global_generators(case: Path, whole: Path, tmp_path: Path):
    torch.manual_seed(99)
    random.seed(99)
    search(case, tmp_path / "run")
    assert run_state(tmp_path / "run") == run_state(whole)
    assert sys.modules.get("mergekit") is None
