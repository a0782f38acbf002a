"""The record against damage, other programs and folders that cannot be used; and the list of runs."""

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import optuna
import pytest

from evomerge.checkpoint import UNFINISHED
from evomerge.errors import StudyError
from evomerge.study import Record, runs
from evomerge.study.storage import Storage
from tests.study.search_case import Watcher, search, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"), optimizer="random", evaluations=6)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_a_damaged_page_is_told_or_changes_nothing(whole: Path, tmp_path: Path, flip: int):
    with Record(whole) as record:
        kept, identity = record.trials, record.attribute("identity")
    sound = (whole / "study.db").read_bytes()
    told = 0
    for start in range(0, len(sound), 4096):
        page = bytes(byte ^ flip for byte in sound[start : start + 4096])
        (tmp_path / "study.db").write_bytes(sound[:start] + page + sound[start + 4096 :])
        try:
            record = Record(tmp_path)
        except StudyError as fault:
            told += str(fault).startswith(f"{tmp_path}/study.db: cannot be opened as the record of a search")
            continue
        with record:
            assert record.trials == kept
            assert record.attribute("identity") == identity
    assert told > len(sound) // 4096 // 2


def test_trials_of_another_program_are_left_out(case: Path, run: Path):
    study = optuna.load_study(study_name="evomerge", storage=f"sqlite:///{run / 'study.db'}")
    study.add_trial(optuna.trial.create_trial(value=99.0))
    study.enqueue_trial({"x": 1.0})
    watcher = Watcher()
    search(case, run, watcher, evaluations=8)
    assert [trial.number for trial in watcher.fresh] == [7, 8]
    with Record(run) as record:
        assert [trial.number for trial in record.trials] == list(range(9))
        assert max(trial.objective for trial in record.trials) < 99


def test_a_run_s_folder_that_cannot_be_one_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(StudyError, match=rf"{folder}: cannot be used as a run's folder .*another --run-dir"):
            Record(folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_read_only_folder_is_told(run: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for folder, expected in ((run, "cannot be written"), (tmp_path / "empty", "cannot be made")):
        if subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=False).returncode:
            pytest.skip("cannot mount here")
        try:
            with pytest.raises(StudyError, match=expected), Record(folder) as record:
                record.set_attribute("name", 1)
        finally:
            subprocess.run(["umount", folder], check=True)


def test_optuna_s_own_messages_are_not_shown(tmp_path: Path):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    seen: list[logging.LogRecord] = []
    watcher = logging.Handler()
    watcher.emit = seen.append  # type: ignore[method-assign]
    logging.getLogger("optuna").addHandler(watcher)
    try:
        Record(tmp_path / "run").close()
    finally:
        logging.getLogger("optuna").removeHandler(watcher)
    assert not seen


def test_only_files_of_ours_are_cleared_away(run: Path):
    kept = [".notes.partial", ".study.db.partial", "other.partial-1"]
    for name in kept:
        (run / name).write_text("mine")
    (run / f".best.yaml.{UNFINISHED}").write_text("half of")
    model = run / f".merged.{UNFINISHED}"  # of an `apply` that is running, or was killed
    model.mkdir()
    Record(run).close()
    assert {path.name for path in run.iterdir()} >= {*kept, model.name}
    assert not (run / f".best.yaml.{UNFINISHED}").exists()


def test_runs_are_listed_with_their_state_best_score_and_verdict(case: Path, whole: Path, tmp_path: Path):
    for name in ("damaged", "extended", "finished"):
        shutil.copytree(whole, tmp_path / name)
    (tmp_path / "damaged" / "study.db").write_bytes(b"no database" * 500)
    (tmp_path / "no run").mkdir()
    with pytest.raises(KeyboardInterrupt):
        search(case, tmp_path / "extended", Watcher(stop_at=8), evaluations=20)
    result = json.loads((whole / "result.json").read_text())
    with Record(whole):
        (running,) = runs(whole)
    damaged, extended, finished = runs(tmp_path)
    assert [found.folder.name for found in (damaged, extended, finished)] == ["damaged", "extended", "finished"]
    assert [found.state for found in (damaged, extended, finished, running)] == [
        *("damaged", "stopped", "finished", "running")
    ]
    assert [found.evaluations for found in (damaged, extended, finished, running)] == [0, 8, 6, 6]
    assert finished.best == running.best == result["winner"]["search"]
    assert finished.verdict == result["verdict"]
    assert extended.verdict == ""
    assert "study.db: cannot be opened" in damaged.verdict
    with pytest.raises(StudyError, match="cannot be listed"):
        runs(tmp_path / "nowhere")


def test_listing_runs_writes_nothing(run: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()}
    runs(run)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()} == before


@pytest.mark.parametrize(
    "text", ["[", "[]", "null", '{"evaluations": 6, "winner": 3}', '{"evaluations": "six", "winner": {"search": 1}}']
)
def test_a_run_with_a_damaged_result_is_listed_by_its_record(text: str, run: Path):
    best = runs(run)[0].best
    (run / "result.json").write_text(text)
    assert [(found.state, found.evaluations, found.best) for found in runs(run)] == [("stopped", 6, best)]


def test_a_run_that_was_killed_before_its_study_was_made_is_no_damaged_one(tmp_path: Path):
    Storage(tmp_path).open().engine.dispose()
    assert [(found.state, found.evaluations) for found in runs(tmp_path)] == [("stopped", 0)]
    with Record(tmp_path) as record:
        assert record.trials == ()
