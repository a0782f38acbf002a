"""A drawing as SVG, for a file or for a page."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.report.canvas import Canvas, colour
from evomerge.report.drawing import Choice, Drawing
from evomerge.report.heat import HeatMap, Range
from evomerge.report.names import letter, shortened
from evomerge.report.path import StackPath

WIDTH = 860
MARGIN = 24
LABEL = 190
"""The room for the names beside a panel's cells; on a narrow picture they are above them."""
ROW = 26
NARROW_LABEL = 44
"""The room beside a path on a narrow picture."""


def to_svg(drawing: Drawing) -> str:
    """Returns the drawing as the text of an SVG file, with its title and facts."""
    page = Canvas(WIDTH, drawing.title, MARGIN)
    page.text(MARGIN, page.y + 12, drawing.title, "title")
    page.y += 32
    for fact in drawing.facts:
        page.text(MARGIN, page.y + 8, fact)
        page.y += 20
    _panels(page, drawing)
    return page.file()


def picture(drawing: Drawing, width: float) -> Canvas:
    """Returns the drawing's panels as a picture without a margin."""
    page = Canvas(width, drawing.title)
    _panels(page, drawing)
    return page


def _panels(page: Canvas, drawing: Drawing) -> None:
    for heading, panel in drawing.panels:
        page.y += 18
        page.text(page.margin, page.y + 10, heading, "heading")
        page.y += 24
        if isinstance(panel, HeatMap):
            _heat(page, panel)
        elif isinstance(panel, StackPath):
            _path(page, panel, drawing.models)
        else:
            _choice(page, panel, drawing.models)


def _heat(page: Canvas, heat: HeatMap) -> None:
    said = 0 if page.narrow else 8 + 6.5 * max(len(row.text) for row in heat.rows)
    count = len(heat.rows[0].cells)
    label = NARROW_LABEL if page.narrow else LABEL
    step = min((page.width - 2 * page.margin - label - said) / count, 72.0)
    left = page.margin + label
    for row in heat.rows:
        name = f"{row.model} {row.group}".rstrip()
        if page.narrow:
            page.text(page.margin, page.y + 12, shortened(name, 30))
            page.text(page.width - page.margin, page.y + 12, row.text, "soft", anchor="end")
            page.y += 18
        else:
            page.text(page.margin, page.y + 17, shortened(name, 28))
        for i, cell in enumerate(row.cells):
            if cell is not None:
                _cell(page, left + i * step, step, cell, heat)
        if not page.narrow:
            page.text(left + count * step + 8, page.y + 17, row.text, "soft")
        page.y += ROW
    _marks(page, left, step, count)
    page.text(page.margin, page.y, heat.columns, "soft")
    page.y += 10
    for i, shade in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        page.rect(left + 14 * i, page.y, (14, 10), "heat", f' fill-opacity="{_opacity(shade):.3f}"')
    page.text(left - 6, page.y + 9, f"{heat.low:.4g}", "soft", anchor="end")
    page.text(left + 76, page.y + 9, f"{heat.high:.4g}", "soft")
    if any(cell and cell.low != cell.high for row in heat.rows for cell in row.cells):
        page.rect(left + 130, page.y, (14, 10), "hole")
        page.text(left + 150, page.y + 9, "searched", "soft")
    page.y += 12


def _cell(page: Canvas, x: float, step: float, cell: Range, heat: HeatMap) -> None:
    gap = 1.0 if step > 6 else 0.0
    if cell.low != cell.high:
        page.rect(x, page.y, (step - gap, ROW - 4), "hole")
        return
    shade = heat.shade(cell.low)
    page.rect(x, page.y, (step - gap, ROW - 4), "heat", f' fill-opacity="{_opacity(shade):.3f}"')
    if step >= 28:
        page.text(x + step / 2, page.y + 15, f"{cell.low:.2g}", "number over" if shade > 0.5 else "number")


def _opacity(shade: float) -> float:
    """Returns how opaque a cell is: the lightest is still seen on the page."""
    return 0.08 + 0.92 * shade


def _marks(page: Canvas, left: float, step: float, count: int) -> None:
    """Draws the numbers of the columns, those that there is room for."""
    every = next(every for every in (1, 2, 4, 5, 8, 10, 20, 50, 100, 1000, 10_000) if every * step >= 22)
    page.y += 10
    for i in range(0, count, every):
        page.text(left + (i + 0.5) * step, page.y, str(i), "soft", anchor="middle")


def _path(page: Canvas, path: StackPath, models: Sequence[str]) -> None:
    label = NARROW_LABEL if page.narrow else LABEL / 2
    left, width = page.margin + label, page.width - 2 * page.margin - label
    count = len(path.steps)
    step = min(width / count, 26.0)
    beside = max(1, int(width / 210))
    for i, model in enumerate(path.models):
        x, y = left + 210 * (i % beside), page.y + 22 * (i // beside)
        page.rect(x, y, (12, 12), colour(model))
        page.text(x + 18, y + 11, f"{letter(model)} {shortened(models[model], 26)}")
    page.y += 22 * -(-len(path.models) // beside) + 8
    deepest = max(layer for run in path.steps for _, layer in run.sources) + 1
    height = min(max(deepest * step, 90.0), 300.0)
    rise = height / deepest
    top = page.y

    def middle(depth: int, layer: int) -> tuple[float, float]:
        return left + (depth + 0.5) * step, top + height - (layer + 0.5) * rise

    for layer in range(0, deepest, max(1, round(deepest / 6))):
        x, y = middle(0, layer)
        page.line("grid", (left, y), (left + count * step, y))
        page.text(left - 8, y + 4, str(layer), "soft", anchor="end")
    if page.narrow:
        page.text(page.margin, top - 4, "layer", "soft")
    else:
        page.text(page.margin, top + height / 2, "layer of", "soft")
        page.text(page.margin, top + height / 2 + 13, "its model", "soft")
    page.line("way", *(middle(depth, one.sources[0][1]) for depth, one in enumerate(path.steps)))
    mark = (max(step - 2, 2.0), max(min(rise - 1, step), 5.0))
    ring = f' rx="2" stroke-width="{min(2.0, step / 5):.2f}"'
    for depth, one in enumerate(path.steps):
        for model, layer in one.sources:
            x, y = middle(depth, layer)
            again = one.use > 1
            page.rect(x - mark[0] / 2, y - mark[1] / 2, mark, colour(model), ' rx="2"')
            if again:
                page.rect(x - mark[0] / 2, y - mark[1] / 2, mark, "again", ring)
    page.y = int(top + height + 10)
    for run in path.runs:
        share = 18 / len(run.sources)
        for i, (model, _, _) in enumerate(run.sources):
            size = ((run.end - run.first) * step - 1, share - 1 if len(run.sources) > 1 else share)
            page.rect(left + run.first * step, page.y + i * share, size, colour(model))
        start, end = run.sources[0][1:]
        said = (
            f"{letter(run.sources[0][0])} {start}–{end - 1}"
            if end > start + 1
            else f"{letter(run.sources[0][0])} {start}"
        )
        wide = (run.end - run.first) * step
        if len(run.sources) == 1 and wide >= 7.5 * len(said):
            page.text(left + run.first * step + wide / 2, page.y + 13, said, "number over")
    page.text(page.margin, page.y + 13, "model", "soft")
    page.y += 22
    _marks(page, left, step, count)
    page.text(page.margin, page.y, "depth", "soft")
    if any(one.use > 1 for one in path.steps):
        page.y += 18
        page.rect(left, page.y - 10, (12, 12), "again", ' rx="2" stroke-width="2"')
        page.text(left + 18, page.y, "a layer that ran before", "soft")
    if any(one.factor != 1 for one in path.steps):
        _scales(page, path, left, step)
    page.y += 8


def _scales(page: Canvas, path: StackPath, left: float, step: float) -> None:
    """Draws what each layer's output is multiplied by, as bars up or down from 1."""
    page.y += 12
    factors = [one.factor for one in path.steps]
    reach = max(abs(factor - 1) for factor in factors)
    middle = page.y + 30.0
    for i, factor in enumerate(factors):
        size = abs(factor - 1) / reach * 28
        page.rect(left + i * step, middle - (size if factor > 1 else 0), (max(step - 1, 1), size), "bar")
    page.line("grid", (left, middle), (left + len(factors) * step, middle))
    page.text(page.margin, middle + 4, "scale", "soft")
    page.text(left - 8, middle + 4, "1", "soft", anchor="end")
    if max(factors) > 1:
        page.text(left - 8, middle - 22, f"{max(factors):.3g}", "soft", anchor="end")
    if min(factors) < 1:
        page.text(left - 8, middle + 30, f"{min(factors):.3g}", "soft", anchor="end")
    page.y += 66
    if path.scaled is not None and path.scaled != "all":
        page.text(left, page.y + 4, f"of {path.scaled}", "soft")
        page.y += 12


def _choice(page: Canvas, choice: Choice, models: Sequence[str]) -> None:
    left = page.margin + LABEL
    deepest = max((depth for _, depth in choice.models if depth), default=1)
    step = min((page.width - 2 * page.margin - LABEL) / deepest, 26.0)
    for model, depth in choice.models:
        page.rect(page.margin, page.y + 5, (12, 12), colour(model))
        page.text(page.margin + 18, page.y + 16, f"{letter(model)} {shortened(models[model], 22)}")
        for i in range(depth or 0):
            page.rect(left + i * step, page.y, (max(step - 1, 1), ROW - 4), colour(model), ' fill-opacity="0.75"')
            if step >= 18:
                page.text(left + (i + 0.5) * step, page.y + 15, str(i), "number over")
        if not depth:
            page.text(left, page.y + 16, "its depth is in its config.json, which is not on this machine", "soft")
        page.y += ROW
    page.y += 4
    for fact in choice.facts:
        page.text(page.margin, page.y + 12, fact)
        page.y += 20
