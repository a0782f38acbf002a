"""Writes a report: the page, or its pictures as SVG or PNG files; and the table of candidates beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from evomerge.errors import StudyError
from evomerge.report import charts
from evomerge.report.canvas import plain_style
from evomerge.report.drawing import drawing_of
from evomerge.report.findings import layer_use, progress, relations, spent, standings
from evomerge.report.page import CANDIDATES, MOST_RELATIONS, best_level, number_of_best, report_page
from evomerge.report.png import check_png, to_png
from evomerge.report.svg import picture
from evomerge.study import LoadedRun
from evomerge.study.record import write_atomically

SPACE = 16
"""Around a picture in a file of its own, in pixels."""


def write_report(run: LoadedRun, kind: Literal["html", "svg", "png"], to: Path | None = None) -> Path:
    """Writes a report, and the run's candidates.csv; returns where the report is.

    Args:
        run: the run.
        kind: ``html``: a page; ``svg`` or ``png``: its pictures, in a folder.
        to: the page, or the folder; by default report.html, or report, in the run's folder.

    Raises:
        StudyError: a file cannot be written, or PNG files cannot be made here.
    """
    if kind == "png":
        check_png()
    write_atomically(run.folder / CANDIDATES, run.to_csv())
    if kind == "html":
        path = to or run.folder / "report.html"
        write_atomically(path, report_page(run, path.parent))
        return path
    folder = to or run.folder / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise StudyError(f"{folder}: cannot be made ({fault.strerror or fault})") from None
    for name, text in report_pictures(run, plain_style() if kind == "png" else None).items():
        write_atomically(folder / f"{name}.{kind}", to_png(text) if kind == "png" else text)
    return folder


def report_pictures(run: LoadedRun, sheet: str | None = None) -> dict[str, str]:
    """Returns the pictures of the report as texts of SVG files, by name without the ending; see `Canvas.file`."""
    found = {"scores": charts.scores_chart(standings(run), charts.WIDE)}
    level = best_level(run)
    if run.candidates:
        steps = progress(run)
        for by_time, name in ((False, "progress"), (True, "progress-over-time")):
            found[name] = charts.progress_chart(steps, level, by_time, charts.WIDE)
    if run.best_recipe:
        found["recipe"] = picture(drawing_of(run.best_recipe), charts.WIDE)
    use = layer_use(run)
    if use:
        found["layers"] = charts.layer_use_chart(use, charts.WIDE)
    known, scores = relations(run)
    for i, relation in enumerate(known[:MOST_RELATIONS]):
        found[f"number-{i + 1}"] = charts.relation_chart(
            relation, scores, number_of_best(run, relation.name), charts.SMALL
        )
    found["time"] = charts.time_chart(dict(spent(run).seconds), charts.WIDE)
    return {name: canvas.file(SPACE, sheet) for name, canvas in found.items()}
