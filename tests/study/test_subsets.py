"""Searches that score each generation on a subset of the items: fair, the same after a kill, and right in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.report.written import write_report
from evomerge.search import State
from evomerge.study import Record, load_run, runs
from evomerge.study.record import read_result
from evomerge.study.trial import Trial, items_scored
from tests.study.search_case import Watcher, search, write_case, write_stack_case, write_staged_case

ITEMS = ", items: {start: 4, growth: 1.2}"
OPTIMIZERS = {
    "cma-es": lambda folder: write_case(folder, evaluations=20, settings=ITEMS),
    "tpe": lambda folder: write_case(folder, optimizer="tpe", evaluations=20, settings=ITEMS),
    "random": lambda folder: write_case(folder, optimizer="random", evaluations=20, settings=ITEMS),
    "genetic": lambda folder: write_stack_case(folder, evaluations=26, settings=", population: 6" + ITEMS),
}


def recorded(folder: Path) -> list[Trial]:
    with Record(folder) as record:
        return list(record.trials)


def scored(trial: Trial) -> frozenset[tuple[str, int]]:
    items = trial.outcome.items
    return frozenset((task, i) for task in items for i, score in enumerate(items[task]) if score is not None)


@pytest.fixture(scope="module", params=OPTIMIZERS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the folder of its finished search, by each optimizer."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = OPTIMIZERS[request.param](folder)
    search(recipe, folder / "run")
    return recipe, folder / "run"


def test_each_generation_has_its_own_items_the_same_for_all_its_candidates(run: tuple[Path, Path]):
    generations: dict[int, set[frozenset[tuple[str, int]]]] = {}
    for trial in recorded(run[1]):
        if trial.kind == "candidate":
            generations.setdefault(trial.proposal.generation, set()).add(scored(trial))
    assert len(generations) > 1
    assert all(len(found) == 1 for found in generations.values())
    subsets = [generations[i].pop() for i in sorted(generations)]
    assert len(set(subsets)) == len(subsets)
    sizes = [len(subset) for subset in subsets]
    assert sizes == sorted(sizes)
    assert sizes[0] == 4
    assert all({task for task, _ in subset} == {"likely", "written"} for subset in subsets)


def test_the_winner_is_the_best_of_five_that_were_scored_on_all_items(run: tuple[Path, Path]):
    trials = recorded(run[1])
    final = [trial for trial in trials if trial.kind == "final"]
    assert len(final) == 5
    assert trials[-5:] == final
    assert all(trial.outcome.state is State.COMPLETE for trial in final)
    winner = read_result(run[1])["winner"]
    complete = [trial for trial in trials if trial.outcome.state is State.COMPLETE]
    assert winner["search"] == max(trial.objective for trial in complete)
    assert f"{winner['trial']}, search score {winner['search']:.4f}" in (run[1] / "best.yaml").read_text()


def test_an_item_is_not_scored_twice_for_the_same_merge(run: tuple[Path, Path]):
    trials = recorded(run[1])
    known: dict[tuple[str, str, int], float] = {}
    for trial in trials:
        fresh = 0
        for task, index in scored(trial):
            score = trial.outcome.items[task][index]
            fresh += (trial.key, task, index) not in known
            assert known.setdefault((trial.key, task, index), score) == score
        if trial.proposal and not fresh:
            assert sum(trial.outcome.seconds.values()) == 0
    assert items_scored(trials) == len({key for key in known if key[0] in {t.key for t in trials if t.proposal}})


def test_a_search_that_was_stopped_has_the_same_record_and_winner(run: tuple[Path, Path], tmp_path: Path):
    recipe, whole = run
    count = len(recorded(whole))
    for stop in (7, count - 3):  # in a generation, and among the finalists
        with pytest.raises(KeyboardInterrupt):
            search(recipe, tmp_path / "run", Watcher(stop_at=stop))
    search(recipe, tmp_path / "run")
    plain = [
        [(t.number, t.proposal, t.recipe, t.objective, t.outcome.items) for t in recorded(folder)]
        for folder in (whole, tmp_path / "run")
    ]
    assert plain[0] == plain[1]
    assert read_result(whole)["winner"] == read_result(tmp_path / "run")["winner"]


def test_whatever_reads_a_run_reads_one_with_subsets(run: tuple[Path, Path], tmp_path: Path):
    found = load_run(run[1])
    assert found.scores.shape == (16, len(found.trials))
    for column, trial in enumerate(found.trials):
        assert np.isfinite(found.scores[:, column]).sum() == len(scored(trial))
    assert found.best.number == int(read_result(run[1])["winner"]["trial"].split()[1])
    assert f"trial {found.best.number}" in write_report(found, "html", tmp_path / "report.html").read_text()
    (listed,) = runs(run[1])
    assert listed.state == "finished"
    assert listed.best == found.best.objective
    rows = found.table()
    assert [row["state"] for row in rows].count("partial") == sum(t.kind == "candidate" for t in found.trials)


def test_stages_search_on_subsets_too(tmp_path: Path):
    recipe = write_staged_case(tmp_path)
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 0\n      items: 4"))
    search(recipe, tmp_path / "run")
    for stage in ("weights", "layers"):
        assert {trial.kind for trial in recorded(tmp_path / "run" / stage)} >= {"candidate", "final"}


def test_a_subset_as_large_as_all_is_a_search_on_all(tmp_path: Path):
    search(write_case(tmp_path, settings=", items: 16"), tmp_path / "some")
    search(write_case(tmp_path), tmp_path / "all")
    some, every = (
        [(t.recipe, t.objective) for t in recorded(tmp_path / name) if t.kind == "candidate"]
        for name in ("some", "all")
    )
    assert some == every
