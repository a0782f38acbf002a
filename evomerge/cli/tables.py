"""Tables of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evomerge.report.names import short_names
from evomerge.study import ModelResult, ReportData
from evomerge.study.trial import MEAN

if TYPE_CHECKING:
    from evomerge.api import Evaluation, TaskComparison

MEAN_LABEL = "mean of the parents"


def fitted(table: Table, console: Console) -> RenderableType:
    """Returns a table, or if the console is too narrow for it, a few lines for each of its rows."""
    if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
        return table
    lines: list[RenderableType] = [Text(str(table.title))] if table.title else []
    first, *columns = table.columns
    cells = [first.cells, *(column.cells for column in columns)]
    for row, (label, *values) in zip(table.rows, zip(*cells, strict=True), strict=True):
        text = ", ".join(f"{column.header} {value}" for column, value in zip(columns, values, strict=True) if value)
        lines += [Text(str(label), row.style or ""), Padding(Text(text), (0, 0, 0, 2))]
    return Group(*lines)


def conclusion_table(report: ReportData) -> Table:
    """Returns the table at the end of a search: every model's search score, holdout score and interval."""
    title = "Higher is better. Intervals: 95%."
    if report.standardized:
        title += " Search and holdout: in standard deviations from the mean of the models."
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    tasks = list(report.winner.tasks) if len(report.winner.tasks) > 1 else []
    for name in ("search", "holdout", "interval", *tasks):
        table.add_column(name, justify="right", overflow="fold", no_wrap=name == "interval")

    def row(label: str, result: ModelResult, style: str = "") -> None:
        cells = [label, _number(result.search), _number(result.holdout), _interval(result.interval)]
        table.add_row(*cells, *(_number(result.tasks.get(task)) for task in tasks), style=style)

    models = [*([report.base] if report.base else []), *report.parents, *report.others]
    # The last part of a path is enough if only one model has it: the other columns need the width.
    for model, label in zip(models, short_names([model.name for model in models]), strict=True):
        row(*((f"{label} (base)", model, "dim") if model is report.base else (label, model)))
    if report.mean:
        row(MEAN_LABEL, report.mean)
    table.add_section()
    winner = MEAN_LABEL if report.winner.name == MEAN else report.winner.name
    row(f"winner: {winner}", report.winner, "bold green" if report.beaten else "bold")
    for finalist in report.finalists[1:]:
        if finalist.name != MEAN:
            row(finalist.name, finalist, "dim")
    comparison = report.comparison
    if comparison:
        # What each task contributes to it: they sum to the difference.
        parts = [f"{comparison.tasks[task]:+.3f}" for task in tasks]
        cells = ["", f"{comparison.difference:+.3f}", _interval(report.difference_interval, "+"), *parts]
        table.add_section()
        table.add_row(
            f"winner minus {MEAN_LABEL if comparison.model == MEAN else short_names([comparison.model])[0]}", *cells
        )
    return table


def scores_table(evaluations: Sequence[Evaluation]) -> Table:
    """Returns the table of ``evomerge eval``: a line for each model, task and split."""
    table = Table()
    models = short_names([one.model for one in evaluations])
    for column in (*(["model"] if len(models) > 1 else []), "task", "split"):
        table.add_column(column, overflow="fold")
    for column in ("items", "score", "95% interval"):
        table.add_column(column, justify="right")
    for model, evaluation in zip(models, evaluations, strict=True):
        for score in evaluation.scores:
            cells = [score.task, score.split, f"{len(score.items):,}", _number(score.score), _interval(score.interval)]
            table.add_row(*([model] if len(models) > 1 else []), *cells)
    return table


def comparison_table(first: str, second: str, found: Sequence[TaskComparison]) -> Table:
    """Returns the table of ``evomerge eval --compare`` for two models: a line for each task and split."""
    one, other = short_names([first, second])
    table = Table(title=f"{one} minus {other}, paired by item; p: exact sign test", title_justify="left")
    for column in ("task", "split"):
        table.add_column(column, overflow="fold")
    for column in ("difference", "95% interval", "gained", "lost", "p"):
        table.add_column(column, justify="right")
    for task, split, comparison in ((one.task, one.split, one.comparison) for one in found):
        counts = f"{comparison.gained:,}", f"{comparison.lost:,}", f"{comparison.p:.2g}"
        table.add_row(task, split, f"{comparison.difference:+.3f}", _interval(comparison.interval, "+"), *counts)
    return table


def markdown(table: Table) -> str:
    """Returns a table in Markdown, below its title."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    head, *rows = [[cell.replace("|", "\\|") for cell in cells] for cells in zip(*columns, strict=True)]
    rule = ["---:" if column.justify == "right" else "---" for column in table.columns]
    title = f"{table.title}\n\n" if table.title else ""
    return title + "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    return "" if bounds is None else f"{bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f}"
