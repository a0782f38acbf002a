"""The report of a search: what it says, and that the page and its pictures need nothing else."""

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.report.changes import changes
from evomerge.report.charts import Axis, score_range
from evomerge.report.findings import layer_use, number_label, progress, rank_correlation, relations, standings
from evomerge.report.page import report_page
from evomerge.report.written import report_pictures, write_report
from evomerge.search import Outcome, State
from evomerge.study import LoadedRun, load_run
from tests.report.chromium import CHROMIUM, TOO_WIDE, Chromium
from tests.study.search_case import Watcher, search, write_case, write_stack_case

KINDS = ("finished", "stopped", "stacks")
HOSTILE = "</pre><script>alert(1)</script><img src=http://x.test/a.png onerror=alert(2)>\x1b[2J\x00"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs by `KINDS`."""
    folder = tmp_path_factory.mktemp("report")
    recipe = write_case(folder, evaluations=12)
    with pytest.raises(KeyboardInterrupt):
        search(recipe, folder / "stopped", Watcher(stop_at=7))
    shutil.copytree(folder / "stopped", folder / "finished")
    search(recipe, folder / "finished")
    search(write_stack_case(folder, evaluations=10), folder / "stacks")
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LoadedRun:
    return load_run(folders[request.param])


@pytest.fixture
def finished(folders: dict[str, Path]) -> LoadedRun:
    return load_run(folders["finished"])


class Page(HTMLParser):
    """What is in a page; raises where its tags are not balanced."""

    EMPTY = frozenset({"meta", "link", "br", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_page_needs_nothing_else_and_its_links_lead_to_files(run: LoadedRun, tmp_path: Path):
    text = write_report(run, "html", tmp_path / "page.html").read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org/)", text)
    assert "default-src 'none'" in text
    assert page.links
    for link in page.links:
        assert (tmp_path / unquote(link)).resolve().is_file(), link
    assert "candidates.csv" in page.text
    assert f"optuna-dashboard sqlite:///{run.folder}/study.db" in page.text


def test_a_page_says_what_was_found(finished: LoadedRun, tmp_path: Path):
    page = Page(report_page(finished, tmp_path)).text
    result = json.loads((finished.folder / "result.json").read_text())
    for text in (result["verdict"], *result["notes"]):
        assert text.replace(f"{finished.folder.parent}/", "") in page
    for model in [*result["parents"], result["mean"], result["base"], *result["finalists"]]:
        low, high = model["holdout_ci"]
        assert f"{model['holdout']:.3f} ({low:.3f} to {high:.3f})" in page
    assert "12 candidates by cma-es, seed 0" in page
    assert "a: weight, 2 of 2" in page
    assert "None: every model and candidate was scored." in page
    assert "weight" in dict(Recipe.load(finished.folder / "best.yaml").models[0].parameters)


def test_the_page_of_a_stopped_search_says_how_far_it_got(folders: dict[str, Path], tmp_path: Path):
    run = load_run(folders["stopped"])
    page = Page(report_page(run, tmp_path)).text
    assert run.state == "stopped"
    assert f"Stopped after 7 of 12 evaluations. Best so far: {run.best.name}, search score" in page
    assert "result.json" not in page


def test_a_search_with_nothing_scored_has_a_page(finished: LoadedRun, tmp_path: Path):
    failed = Outcome(State.FAILED, seconds={"build": 0.0, "evaluate": 0.0, "other": 1.0}, error="<b>no</b> memory")
    trials = tuple(replace(trial, outcome=failed) for trial in finished.trials)
    empty = replace(finished, trials=trials, holdout={}, result=None, state="running")
    page = Page(report_page(empty, tmp_path))
    assert "All 12 evaluations are done" in page.text
    assert "Nothing has been scored yet" in page.text
    assert (
        "13: <b>no</b> memory (mean of the parents, trial 1, trial 2, trial 3, trial 4, trial 5 and 7 more)"
        in page.text
    )
    assert "b" not in page.tags[page.tags.index("ul") :]
    none = replace(empty, trials=(), numbers=(), finished=(), ranges={})
    assert "Still running after 0 of 12" in Page(report_page(none, tmp_path)).text
    assert report_pictures(none)


def test_what_models_wrote_cannot_do_anything_in_the_page(finished: LoadedRun, tmp_path: Path):
    count = len(finished.items)
    names = [*finished.parents, finished.result["winner"]["trial"]]
    written = {name: {task: [HOSTILE] * count for task in finished.tasks} for name in names}
    environment = {HOSTILE: HOSTILE}
    page = Page(report_page(replace(finished, completions=written, environment=environment), tmp_path))
    assert "script" not in page.tags
    assert "alert(1)" in page.text
    assert not {"\x1b", "\x00"} & set(page.text)


def test_items_gained_and_lost_are_those_of_the_record(finished: LoadedRun):
    found = changes(finished)
    winner = finished.result["winner"]["trial"]
    parents = {parent["model"]: parent["holdout"] for parent in finished.result["parents"]}
    best = max(parents, key=lambda name: parents[name])
    assert (found.winner, found.parent, found.split) == (winner, Path(best).name, "holdout")
    after, before = finished.holdout[winner].items, finished.holdout[best].items
    pairs = {(task, i): (before[task][i], after[task][i]) for task in after for i in range(len(after[task]))}
    assert {(one.task, one.index) for one in found.gained} == {key for key, (old, new) in pairs.items() if new > old}
    assert {(one.task, one.index) for one in found.lost} == {key for key, (old, new) in pairs.items() if new < old}
    assert found.same == sum(old == new for old, new in pairs.values())
    gains = [one.after - one.before for one in found.gained]
    assert gains == sorted(gains, reverse=True)
    assert found.gained[0].item.prompt.startswith("what is ")


def test_what_the_finalists_wrote_on_the_holdout_is_shown_beside_what_the_parent_wrote(finished: LoadedRun):
    winner = finished.result["winner"]["trial"]
    assert set(finished.completions) == set(finished.holdout)
    assert {task: len(texts) for task, texts in finished.completions[winner].items()} == {"written": 16}
    right = replace(finished.holdout[winner], items={**finished.holdout[winner].items, "written": (1.0,) * 16})
    found = changes(replace(finished, holdout={**finished.holdout, winner: right}))
    written = [one for one in found.gained if one.task == "written"]
    (parent,) = (name for name in finished.parents if Path(name).name == found.parent)
    assert len(written) == 16
    for one in written:
        assert one.written == tuple(finished.completions[name]["written"][one.index] for name in (parent, winner))


def test_progress_is_the_highest_score_so_far(run: LoadedRun):
    found = progress(run)
    scores = [trial.objective for trial in run.candidates]
    assert found.scores.tolist() == scores
    mean = [trial.objective for trial in run.trials if not trial.proposal]
    assert found.best.tolist() == [max(mean + scores[: i + 1]) for i in range(len(scores))]
    assert (np.diff(found.seconds) >= 0).all()
    spent = sum(sum(one.seconds.values()) for one in [*run.baselines.values(), *(t.outcome for t in run.trials)])
    assert found.seconds[-1] == pytest.approx(spent)


def test_the_strongest_relation_comes_first(finished: LoadedRun):
    found, scores = relations(finished)
    strengths = [abs(relation.correlation) for relation in found]
    assert strengths == sorted(strengths, reverse=True)
    assert {relation.name for relation in found} == set(finished.ranges)
    one = found[0]
    assert one.values.tolist() == [numbers[one.name] for numbers in finished.numbers[1:]]
    assert len(scores) == 12


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [1, 4, 9, 16], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / np.sqrt(22.5)),
        ([1, 1, 1], [1, 2, 3], 0.0),
        ([1], [1], 0.0),
        ([], [], 0.0),
    ],
)
def test_rank_correlation_by_hand(first, second, expected):
    arrays = (np.array(values, dtype=np.float64) for values in (first, second))
    assert rank_correlation(*arrays) == pytest.approx(expected)


def test_searched_numbers_have_names_in_words():
    recipe = Recipe.parse(
        "merge_method: linear\nmodels: [{model: org/math, parameters: {weight: 1}}, {model: org/spanish}]\n"
    )
    short = {"org/math": "math", "org/spanish": "spanish"}
    names = ["models[0].parameters.weight[0]", "models[0].parameters.weight[1]", "models[1].parameters.weight"]
    shown = ["math: weight[0]", "math: weight[1]"]
    assert number_label(shown[1], recipe, {}, shown) == "math: weight, 2 of 2"
    found = [number_label(name, recipe, short, names) for name in [*names, "parameters.t"]]
    assert found == ["math: weight, 1 of 2", "math: weight, 2 of 2", "spanish: weight", "t"]


def test_the_use_of_layers_is_counted_among_all_and_the_best(folders: dict[str, Path]):
    run = load_run(folders["stacks"])
    use = layer_use(run)
    assert use.models == ("a", "b")
    assert use.of_all.shape == (2, 2)
    first = sum("a[0" in row["layers"] or "/a[0" in row["layers"] for row in run.table()) / len(run.candidates)
    assert use.of_all[0, 0] == pytest.approx(first)
    best = max(run.candidates, key=lambda trial: trial.objective)
    assert use.of_best.max() > 0
    assert best.recipe["slices"]
    assert layer_use(load_run(folders["finished"])) is None


def test_standings_put_the_winner_first(run: LoadedRun):
    first, *others = standings(run)
    assert first.kind == "winner"
    assert {one.kind for one in others} >= {"parent"}
    assert first.search == max(one.search for one in [first, *others] if one.kind in ("winner", "finalist", "mean"))


def test_every_picture_is_a_file_that_needs_nothing_else(run: LoadedRun, tmp_path: Path):
    folder = write_report(run, "svg", tmp_path / "pictures")
    names = {path.stem for path in folder.iterdir()}
    assert {"scores", "progress", "progress-over-time", "recipe", "number-1", "time"} <= names
    assert ("layers" in names) == (run.recipe.stack_hole is not None)
    for path in folder.iterdir():
        text = path.read_text()
        ET.fromstring(text)
        assert not re.search(r"href|@import|url\((?!#)|<script|<image|<foreignObject", text)
        assert "prefers-color-scheme: dark" in text


def test_the_candidates_are_a_table(finished: LoadedRun):
    write_report(finished, "html")
    rows = list(csv.DictReader(io.StringIO((finished.folder / "candidates.csv").read_text())))
    assert [int(row["trial"]) for row in rows] == list(range(13))
    for row, trial, numbers in zip(rows, finished.trials, finished.numbers, strict=True):
        assert float(row["score"]) == trial.objective
        assert float(row["score of likely"]) == trial.outcome.means["likely"]
        assert {name: float(row[name]) for name in numbers} == numbers
    assert (finished.folder / "report.html").is_file()


def test_a_report_that_cannot_be_written_is_an_error(finished: LoadedRun, tmp_path: Path):
    with pytest.raises(StudyError, match=r"none/page\.html: cannot be written \(No such file or directory\)"):
        write_report(finished, "html", tmp_path / "none" / "page.html")
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"file: cannot be made \(File exists\)"):
        write_report(finished, "svg", tmp_path / "file")


def test_a_few_bad_scores_do_not_flatten_a_chart():
    scores = np.array([0.5, 0.6, 0.7, -100.0, np.nan])
    low, high, below = score_range(scores)
    assert 0.2 < low < 0.5
    assert 0.7 < high < 0.8
    assert below == 1
    assert score_range(np.array([np.nan])) == (0.0, 1.0, 0)
    low, high, _ = score_range(np.array([0.25, 0.25]))
    assert low < 0.25 < high


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.57, -0.29), (0.0, 1234.0), (0.3333, 0.3334), (5.0, 5.0)])
def test_ticks_are_few_and_within_the_scale(low: float, high: float):
    ticks = Axis(low, high, 0, 100).ticks(5)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_a_browser_shows_the_page_without_errors_requests_or_elements_that_are_too_wide(
    run: LoadedRun, browser: Chromium, tmp_path: Path
):
    path = write_report(run, "html", tmp_path / "page.html")
    backgrounds = set()
    for width in (400, 760, 1280, 1600):
        for dark in (False, True):
            browser.requests.clear()
            browser.open(path, width, dark=dark)
            browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert browser.value(TOO_WIDE) == [], width
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), width
            assert browser.requests == [path.as_uri()]
            backgrounds.add(browser.value("getComputedStyle(document.documentElement).backgroundColor"))
            shown = browser.value("[...document.querySelectorAll('svg.wide')].map(one => one.checkVisibility())")
            assert set(shown) == {width > 760}
    assert browser.complaints == []
    assert len(backgrounds) == 2


def test_paper_is_light_and_shows_all_pictures_at_their_full_width(run: LoadedRun, browser: Chromium, tmp_path: Path):
    path = write_report(run, "html", tmp_path / "page.html")
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
    browser.open(path, 760)
    light = browser.value(colours)
    browser.open(path, 760, dark=True)
    assert browser.value(colours) != light
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser("Emulation.setEmulatedMedia", media="print", features=dark)
    assert browser.value(colours) == light
    shown = browser.value("[...document.querySelectorAll('svg.wide')].map(one => one.checkVisibility())")
    browser("Emulation.setEmulatedMedia", media="")
    assert set(shown) == {True}


def test_names_in_tables_are_not_broken_into_letters_on_a_phone(finished: LoadedRun, browser: Chromium, tmp_path: Path):
    browser.open(write_report(finished, "html", tmp_path / "page.html"), 400)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert max(browser.value("[...document.querySelectorAll('td')].map(one => one.offsetHeight)")) < 40


def test_the_page_of_thousands_of_candidates_has_few_elements(finished: LoadedRun, tmp_path: Path):
    mean, *trials = zip(finished.trials, finished.numbers, finished.finished, strict=True)
    many, numbers, ended = zip(*[mean, *trials * 250], strict=True)
    run = replace(finished, trials=many, numbers=numbers, finished=ended)
    text = report_page(run, tmp_path)
    assert len(Page(text).tags) < 2000
    assert len(text) < 600_000
    dots = re.findall(r'<path class="dots"[^>]* d="([^"]+)"', text)
    assert sum(path.count("M") for path in dots) == 3000 * (2 + len(finished.ranges))


def test_the_longest_names_fit_a_phone(finished: LoadedRun, browser: Chromium, tmp_path: Path):
    long = "mergers/" + "Llama-3.1-Instruct-Preference-" * 4
    names = {name: f"{long}{i}" for i, name in enumerate(finished.recipe.references())}
    recipe = finished.recipe.with_models(lambda name: names[name])
    baselines, holdout = (
        {names.get(name, name): outcome for name, outcome in some.items()}
        for some in (finished.baselines, finished.holdout)
    )
    ends = {Path(name).name: new.rpartition("/")[2] for name, new in names.items()}
    new = {name: re.sub(r"^\w+", lambda own: ends[own[0]], name) for name in finished.ranges}
    ranges = {new[name]: numbers for name, numbers in finished.ranges.items()}
    numbers = tuple({new[name]: number for name, number in trial.items()} for trial in finished.numbers)
    folder = tmp_path / "long"
    folder.mkdir()
    run = replace(finished, folder=folder, recipe=recipe, baselines=baselines, holdout=holdout, result=None)
    run = replace(run, ranges=ranges, numbers=numbers)
    browser.open(write_report(run, "html"), 400)
    assert browser.value("document.body.innerText.includes('Preference-1: weight')")
    assert browser.value(TOO_WIDE) == []
