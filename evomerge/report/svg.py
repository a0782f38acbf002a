"""A drawing as an SVG file that needs nothing else: its own style, for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from evomerge.report.drawing import Choice, Drawing
from evomerge.report.heat import HeatMap, Range
from evomerge.report.names import letter, shortened
from evomerge.report.path import StackPath

WIDTH = 860
MARGIN = 24
LABEL = 190
"""Where a panel's cells begin."""
ROW = 26

# Okabe and Ito's colours, which people with any colour vision tell apart; some darker on white, lighter on black.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5538c", "#8a6d00", "#3a93c7", "#5c5c5c", "#7a4fbf")
_DARK = ("#56b4e9", "#ff8c42", "#2fc99a", "#e08fc0", "#f0e442", "#8fd0f5", "#b0b0b0", "#b79cf0")

_STYLE = """
svg { --ink: #1b1f24; --soft: #59636e; --line: #d0d7de; --page: #ffffff; --heat: #0b5cad; %(light)s }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --page: #0d1117; --heat: #58a6ff; %(dark)s }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink) }
.title { font-size: 17px; font-weight: 600 }
.heading { font-weight: 600 }
.soft { fill: var(--soft); font-size: 11px }
.number { font-size: 11px; text-anchor: middle }
.over { fill: var(--page) }
.page { fill: var(--page) }
.bar { fill: var(--soft) }
.heat { fill: var(--heat) }
.hole { fill: url(#searched); stroke: var(--heat) }
.grid { stroke: var(--line); fill: none }
.way { fill: none; stroke: var(--soft); stroke-width: 1.5 }
.again { fill: none; stroke: var(--ink) }
.hatch { stroke: var(--heat); stroke-width: 2 }
%(models)s
"""


class _Page:
    """Collects the elements of a page from its top to its bottom."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.y = MARGIN

    def text(self, x: float, y: float, content: str, kind: str = "", *, anchor: str = "") -> None:
        anchored = f' text-anchor="{anchor}"' if anchor else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}"{anchored}>{escape(content)}</text>')

    def rect(self, x: float, y: float, size: tuple[float, float], kind: str, more: str = "") -> None:
        width, height = size
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" class="{kind}"{more}/>'
        )

    def line(self, kind: str, *points: tuple[float, float]) -> None:
        self.parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.2f},{y:.2f}" for x, y in points)}"/>')


def to_svg(drawing: Drawing) -> str:
    """Returns the drawing as the text of an SVG file."""
    page = _Page()
    page.text(MARGIN, page.y + 12, drawing.title, "title")
    page.y += 32
    for fact in drawing.facts:
        page.text(MARGIN, page.y + 8, fact)
        page.y += 20
    for heading, panel in drawing.panels:
        page.y += 18
        page.text(MARGIN, page.y + 10, heading, "heading")
        page.y += 24
        if isinstance(panel, HeatMap):
            _heat(page, panel)
        elif isinstance(panel, StackPath):
            _path(page, panel, drawing.models)
        else:
            _choice(page, panel, drawing.models)
    height = page.y + MARGIN
    colours = [" ".join(f"--m{i}: {colour};" for i, colour in enumerate(shades)) for shades in (_LIGHT, _DARK)]
    models = "\n".join(f".m{i} {{ fill: var(--m{i}) }}" for i in range(len(_LIGHT)))
    style = _STYLE % {"light": colours[0], "dark": colours[1], "models": models}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}"'
            f' height="{height:g}" role="img" aria-label="{escape(drawing.title)}">',
            f"<style>{style}</style>",
            '<defs><pattern id="searched" width="6" height="6" patternUnits="userSpaceOnUse"'
            ' patternTransform="rotate(45)"><path class="hatch" d="M0 0V6" stroke-opacity="0.45"/></pattern></defs>',
            f'<rect class="page" width="{WIDTH}" height="{height:g}"/>',
            *page.parts,
            "</svg>\n",
        ]
    )


def _colour(model: int) -> str:
    return f"m{model % len(_LIGHT)}"


def _heat(page: _Page, heat: HeatMap) -> None:
    said = 8 + 6.5 * max(len(row.text) for row in heat.rows)
    count = len(heat.rows[0].cells)
    step = min((WIDTH - 2 * MARGIN - LABEL - said) / count, 72.0)
    left = MARGIN + LABEL
    for row in heat.rows:
        page.text(MARGIN, page.y + 17, shortened(f"{row.model} {row.group}".rstrip(), 28))
        for i, cell in enumerate(row.cells):
            if cell is not None:
                _cell(page, left + i * step, step, cell, heat)
        page.text(left + count * step + 8, page.y + 17, row.text, "soft")
        page.y += ROW
    _marks(page, left, step, count)
    page.text(MARGIN, page.y, heat.columns, "soft")
    page.y += 10
    for i, shade in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        page.rect(left + 14 * i, page.y, (14, 10), "heat", f' fill-opacity="{_opacity(shade):.3f}"')
    page.text(left - 6, page.y + 9, f"{heat.low:g}", "soft", anchor="end")
    page.text(left + 76, page.y + 9, f"{heat.high:g}", "soft")
    if any(cell and cell.low != cell.high for row in heat.rows for cell in row.cells):
        page.rect(left + 130, page.y, (14, 10), "hole")
        page.text(left + 150, page.y + 9, "searched", "soft")
    page.y += 12


def _cell(page: _Page, x: float, step: float, cell: Range, heat: HeatMap) -> None:
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


def _marks(page: _Page, left: float, step: float, count: int) -> None:
    """Draws the numbers of the columns, those that there is room for."""
    every = next(every for every in (1, 2, 4, 5, 8, 10, 20, 50, 100, 1000, 10_000) if every * step >= 22)
    page.y += 10
    for i in range(0, count, every):
        page.text(left + (i + 0.5) * step, page.y, str(i), "soft", anchor="middle")


def _path(page: _Page, path: StackPath, models: Sequence[str]) -> None:
    left, width = MARGIN + LABEL / 2, WIDTH - 2 * MARGIN - LABEL / 2
    count = len(path.steps)
    step = min(width / count, 26.0)
    for i, model in enumerate(path.models):
        page.rect(left + 210 * (i % 3), page.y + 22 * (i // 3), (12, 12), _colour(model))
        page.text(
            left + 210 * (i % 3) + 18, page.y + 22 * (i // 3) + 11, f"{letter(model)} {shortened(models[model], 26)}"
        )
    page.y += 22 * ((len(path.models) + 2) // 3) + 8
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
    page.text(MARGIN, top + height / 2, "layer of", "soft")
    page.text(MARGIN, top + height / 2 + 13, "its model", "soft")
    page.line("way", *(middle(depth, one.sources[0][1]) for depth, one in enumerate(path.steps)))
    mark = (max(step - 2, 2.0), max(min(rise - 1, step), 5.0))
    ring = f' rx="2" stroke-width="{min(2.0, step / 5):.2f}"'
    for depth, one in enumerate(path.steps):
        for model, layer in one.sources:
            x, y = middle(depth, layer)
            again = one.use > 1
            page.rect(x - mark[0] / 2, y - mark[1] / 2, mark, _colour(model), ' rx="2"')
            if again:
                page.rect(x - mark[0] / 2, y - mark[1] / 2, mark, "again", ring)
    page.y = int(top + height + 10)
    for run in path.runs:
        share = 18 / len(run.sources)
        for i, (model, _, _) in enumerate(run.sources):
            size = ((run.end - run.first) * step - 1, share - 1 if len(run.sources) > 1 else share)
            page.rect(left + run.first * step, page.y + i * share, size, _colour(model))
        start, end = run.sources[0][1:]
        said = (
            f"{letter(run.sources[0][0])} {start}–{end - 1}"
            if end > start + 1
            else f"{letter(run.sources[0][0])} {start}"
        )
        wide = (run.end - run.first) * step
        if len(run.sources) == 1 and wide >= 7.5 * len(said):
            page.text(left + run.first * step + wide / 2, page.y + 13, said, "number over")
    page.text(MARGIN, page.y + 13, "model", "soft")
    page.y += 22
    _marks(page, left, step, count)
    page.text(MARGIN, page.y, "depth", "soft")
    if any(one.use > 1 for one in path.steps):
        page.y += 18
        page.rect(left, page.y - 10, (12, 12), "again", ' rx="2" stroke-width="2"')
        page.text(left + 18, page.y, "a layer that ran before", "soft")
    if any(one.factor != 1 for one in path.steps):
        _scales(page, path, left, step)
    page.y += 8


def _scales(page: _Page, path: StackPath, left: float, step: float) -> None:
    """Draws what each layer's output is multiplied by, as bars up or down from 1."""
    page.y += 12
    factors = [one.factor for one in path.steps]
    reach = max(abs(factor - 1) for factor in factors)
    middle = page.y + 30.0
    for i, factor in enumerate(factors):
        size = abs(factor - 1) / reach * 28
        page.rect(left + i * step, middle - (size if factor > 1 else 0), (max(step - 1, 1), size), "bar")
    page.line("grid", (left, middle), (left + len(factors) * step, middle))
    page.text(MARGIN, middle + 4, "scale", "soft")
    page.text(left - 8, middle + 4, "1", "soft", anchor="end")
    if max(factors) > 1:
        page.text(left - 8, middle - 22, f"{max(factors):.3g}", "soft", anchor="end")
    if min(factors) < 1:
        page.text(left - 8, middle + 30, f"{min(factors):.3g}", "soft", anchor="end")
    page.y += 66
    if path.scaled is not None and path.scaled != "all":
        page.text(left, page.y + 4, f"of {path.scaled}", "soft")
        page.y += 12


def _choice(page: _Page, choice: Choice, models: Sequence[str]) -> None:
    left = MARGIN + LABEL
    deepest = max((depth for _, depth in choice.models if depth), default=1)
    step = min((WIDTH - 2 * MARGIN - LABEL) / deepest, 26.0)
    for model, depth in choice.models:
        page.rect(MARGIN, page.y + 5, (12, 12), _colour(model))
        page.text(MARGIN + 18, page.y + 16, f"{letter(model)} {shortened(models[model], 22)}")
        for i in range(depth or 0):
            page.rect(left + i * step, page.y, (max(step - 1, 1), ROW - 4), _colour(model), ' fill-opacity="0.75"')
            if step >= 18:
                page.text(left + (i + 0.5) * step, page.y + 15, str(i), "number over")
        if not depth:
            page.text(left, page.y + 16, "its depth is in its config.json, which is not on this machine", "soft")
        page.y += ROW
    page.y += 4
    for fact in choice.facts:
        page.text(MARGIN, page.y + 12, fact)
        page.y += 20
