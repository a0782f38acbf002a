"""A run's record as data: of a finished search, one that is running, one in stages, and one in another database."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import StudyError
from evomerge.search import Outcome, State
from evomerge.study import Record, load_run
from tests.study.search_case import Watcher, search, write_case, write_staged_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"), evaluations=5)


def test_a_run_holds_every_trial_number_and_score(whole: Path):
    run = load_run(str(whole))
    assert (run.state, run.tasks) == ("finished", ("likely", "written"))
    assert [Path(name).name for name in run.parents] == ["a", "b"]
    assert {Path(name).name for name in run.baselines} == {"a", "b", "base"}
    assert run.scores.shape == (16, 6)
    assert run.items[8] == ("written", 0)
    for column, trial in enumerate(run.trials):
        assert run.scores[:, column].tolist() == [*trial.outcome.items["likely"], *trial.outcome.items["written"]]
        assert run.value(trial.outcome) == trial.objective
    assert run.best.objective == max(trial.objective for trial in run.trials) == run.result["winner"]["search"]
    assert run.best_recipe.holes() == {}
    name = "b: weight"
    assert run.ranges[name] == (0.0, 1.0, False)
    assert run.numbers[0] == {}
    assert run.numbers[1][name] == run.trials[1].recipe["models"][1]["parameters"]["weight"]
    for parent in run.result["parents"]:
        assert run.value(run.baselines[parent["model"]]) == parent["search"]
        assert run.value(run.holdout[parent["model"]]) == parent["holdout"]


def test_the_result_compares_the_winner_with_every_competitor_item_by_item(whole: Path):
    run = load_run(whole)
    result = run.result
    winner = run.holdout[result["winner"]["trial"]]
    others = {one["model"]: one for one in (*result["parents"], result["base"], result["mean"])}
    others.pop(result["winner"]["trial"], None)
    assert [one["model"] for one in result["comparisons"]] == list(others)
    for one in result["comparisons"]:
        other = run.holdout[one["model"]]
        assert one["difference"] == pytest.approx(result["winner"]["holdout"] - others[one["model"]]["holdout"])
        assert sum(one["tasks"].values()) == pytest.approx(one["difference"])
        pairs = [pair for task in run.tasks for pair in zip(winner.items[task], other.items[task], strict=True)]
        assert (one["gained"], one["lost"]) == (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
        assert one["gained"] + one["lost"] + one["same"] == len(pairs) == 32
    drop = result["winner"]["search"] - result["winner"]["holdout"]
    drops = [one["search"] - one["holdout"] for one in others.values()]
    assert result["optimism"]["drop"] == pytest.approx(drop)
    assert result["optimism"]["estimate"] == pytest.approx(drop - np.mean(drops))
    scales = {task["task"]: task["scale"] for task in result["search"]["tasks"]}
    assert scales == {name: scale._asdict() for name, scale in run.objective.scales.items()}


def test_the_table_of_a_run_is_a_data_frame(whole: Path):
    run = load_run(whole)
    frame = run.to_pandas()
    assert frame["score"].tolist() == [trial.objective for trial in run.trials]
    assert frame["kind"].tolist() == ["mean"] + ["candidate"] * 5
    assert frame["b: weight"].isna().tolist() == [True] + [False] * 5
    assert frame["finished"].is_monotonic_increasing


def test_a_failed_candidate_has_no_scores_but_its_error(whole: Path):
    run = load_run(whole)
    failed = replace(run.trials[3], outcome=Outcome(State.FAILED, error="no memory"))
    run = replace(run, trials=(*run.trials[:3], failed, *run.trials[4:]))
    assert np.isnan(run.scores[:, 3]).all()
    assert not np.isnan(np.delete(run.scores, 3, axis=1)).any()
    row = run.table()[3]
    assert (row["state"], row["score"], row["error"]) == ("failed", None, "no memory")


def test_of_equal_trials_the_best_is_the_one_that_was_drawn_first_as_in_best_yaml(whole: Path):
    run = load_run(whole)
    one, two = (replace(run.trials[i], proposal=replace(run.trials[i].proposal, id=3 - i)) for i in (1, 2))
    two = replace(two, outcome=one.outcome)
    assert replace(run, trials=(one, two)).best is two


def test_objectives_of_a_normalized_search_are_those_of_its_result(tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=1, settings=", normalize: true")
    search(recipe, tmp_path / "run")
    run = load_run(tmp_path / "run")
    for model in (*run.result["parents"], run.result["base"]):
        assert run.value(run.baselines[model["model"]]) == model["search"]
        assert math.isclose(run.value(run.holdout[model["model"]]), model["holdout"])


def test_a_run_is_read_while_it_is_searching(case: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        search(case, tmp_path / "run", Watcher(stop_at=2))
    assert load_run(tmp_path / "run").state == "stopped"
    with Record(tmp_path / "run"):
        run = load_run(tmp_path / "run")
    assert (run.state, len(run.candidates), run.result) == ("running", 2, None)


def test_a_run_in_another_database_is_found_by_its_folder(case: Path, tmp_path: Path):
    url = f"sqlite:///{tmp_path}/records.db"
    search(case, tmp_path / "run", storage=url, evaluations=2)
    for storage in (None, url):
        run = load_run(tmp_path / "run", storage)
        assert (run.state, len(run.candidates), run.database) == ("finished", 2, url)


def test_of_a_run_with_stages_the_last_one_is_read_and_any_by_its_folder(tmp_path: Path):
    search(write_staged_case(tmp_path, evaluations=4), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.folder == tmp_path / "run" / "layers"
    assert run.recipe.stack_hole
    assert run.table()[0]["layers"].endswith("[0:2]")
    assert load_run(tmp_path / "run" / "weights").ranges


def test_what_is_not_a_run_is_an_error_and_stays_as_it_is(tmp_path: Path):
    with pytest.raises(StudyError, match=r"is not the folder of a run; expected study\.db in it, or --storage"):
        load_run(tmp_path)
    with pytest.raises(StudyError, match=r"records\.db: not found; expected the record of a search"):
        load_run(tmp_path, f"sqlite:///{tmp_path}/records.db")
    assert list(tmp_path.iterdir()) == []
    Record(tmp_path).close()
    with pytest.raises(StudyError, match="nothing is on record yet; run the search first"):
        load_run(tmp_path)
    (tmp_path / "study.db").write_bytes(b"no database")
    with pytest.raises(StudyError, match=r"study\.db: cannot be opened as the record of a search"):
        load_run(tmp_path)
