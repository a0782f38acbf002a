"""A drawing as lines for a terminal: readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from evomerge.report.drawing import Choice, Drawing
from evomerge.report.heat import HeatMap, Range
from evomerge.report.names import letter, shortened
from evomerge.report.path import Run, StackPath, Step

SHADES = " ░▒▓█"
BARS = "▁▂▃▄▅▆▇█"
SEARCHED = "?"
COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red", "bright_cyan", "bright_yellow")
LABEL = 22
"""The columns that the name of a row takes at most."""

NUMBER = 5
"""Where a cell is so wide, its number fits in."""


def to_text(drawing: Drawing, width: int = 80) -> Text:
    """Returns the drawing as text of at most `width` columns, save for lines of names that are longer."""
    text = Text()
    text.append(f"{drawing.title}\n", "bold")
    text.append("".join(f"{fact}\n" for fact in drawing.facts))
    for heading, panel in drawing.panels:
        text.append(f"\n{heading}\n", "bold")
        if isinstance(panel, HeatMap):
            lines = _heat(panel, width)
        elif isinstance(panel, StackPath):
            lines = _path(panel, drawing.models, width)
        else:
            lines = _choice(panel, drawing.models)
        for line in lines:
            text.append_text(line)
            text.append("\n")
    return text


def _heat(heat: HeatMap, width: int) -> Iterator[Text]:
    groups = max(len(row.group) for row in heat.rows)
    names = min(max(len(row.model) for row in heat.rows), max(LABEL - groups, 8))
    size = max(names + groups + (groups > 0), len(heat.columns))
    said = max(len(row.text) for row in heat.rows)
    count = len(heat.rows[0].cells)
    room = max(width - size - said - 3, 8)
    cell = max(1, min(room // count, 8))
    # Of more layers than there are columns, some are shown.
    shown = [i * count // room for i in range(room)] if count > room else list(range(count))
    for row in heat.rows:
        line = Text(f"{f'{shortened(row.model, names):<{names}} {row.group}'.rstrip():<{size}} ")
        for i in shown:
            line.append(_cell(row.cells[i], heat, cell))
        line.append(f" {row.text}".rstrip(), "dim")
        yield line
    marks = _axis(len(shown) * cell, [shown.index(i) * cell if i in shown else None for i in range(count)])
    yield Text(f"{heat.columns:>{size}} {marks}", "dim")
    holes = any(cell and cell.low != cell.high for row in heat.rows for cell in row.cells)
    searched = f"   {SEARCHED} searched" if holes and cell == 1 else ""
    yield Text(f"{'':<{size}} {SHADES[1]} {heat.low:g}   {SHADES[-1]} {heat.high:g}{searched}", "dim")


def _cell(found: Range | None, heat: HeatMap, size: int) -> str:
    if found is None:
        return " " * size
    if found.low != found.high:
        named = f"{found.low:g}…{found.high:g}"
        return f"{named if len(named) < size else SEARCHED * (size - 1):<{size}}" if size > 1 else SEARCHED
    shade = SHADES[1 + round(heat.shade(found.low) * (len(SHADES) - 2))]
    if size < NUMBER:
        return shade * size
    number = f"{found.low:.2g}"
    return f"{shade}{number:<{size - 2}} "


def _axis(size: int, places: Sequence[int | None]) -> str:
    """Returns numbers of layers at their places, where they do not touch each other."""
    line = ""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10_000) if len(places) <= 8 * step)
    for i, place in enumerate(places):
        if place is not None and i % step == 0 and (place >= len(line) + 1 or not line):
            line = f"{line:<{place}}{i}"
    return line[:size] if len(line) > size + 3 else line


def _path(path: StackPath, models: Sequence[str], width: int) -> Iterator[Text]:
    size = max(min(max(len(models[model]) for model in path.models), LABEL - 2) + 2, len("layer, tens"))
    room = max(width - size - 1, 10) // 10 * 10
    factors = [step.factor for step in path.steps]
    for first in range(0, len(path.steps), room):
        steps = path.steps[first : first + room]
        yield Text(f"{'depth':>{size}} " + _axis_from(first, len(steps)), "dim")
        for model in path.models:
            colour = COLOURS[model % len(COLOURS)]
            line = Text(f"{letter(model)} {shortened(models[model], size - 2):<{size - 2}} ", colour)
            for step in steps:
                inside = any(model == own for own, _ in step.sources)
                line.append(letter(model)[-1] if inside else "·", f"bold {colour}" if inside else "dim")
            yield line
        numbers = [_only(step) for step in steps]
        if any(number is not None and number > 9 for number in numbers):
            tens = "".join(" " if number is None else str(number // 10 % 10) for number in numbers)
            yield Text(f"{'layer, tens':>{size}} {tens}")
        ones = "".join("*" if number is None else str(number % 10) for number in numbers)
        yield Text(f"{'layer':>{size}} {ones}")
        if any(step.use > 1 for step in steps):
            uses = "".join(str(min(step.use, 9)) if step.use > 1 else " " for step in steps)
            yield Text(f"{'use':>{size}} " + uses)
        if len(set(factors)) > 1 or factors[0] != 1:
            yield Text(f"{'scale':>{size}} " + "".join(_bar(step.factor, factors) for step in steps))
        yield Text("")
    entries = [_run(run, together=path.scaled is not None) for run in path.runs]
    widest = max(entry.cell_len for entry in entries) + 3
    for first in range(0, len(entries), columns := max(1, (width + 3) // widest)):
        line = Text()
        for entry in entries[first : first + columns]:
            entry.pad_right(widest - entry.cell_len)
            line.append_text(entry)
        line.rstrip()
        yield line
    if path.scaled is not None:
        yield Text(f"× multiplies {'each tensor' if path.scaled == 'all' else path.scaled}", "dim")


def _run(run: Run, *, together: bool) -> Text:
    """Returns a slice in words: its layers in the result, its models' layers, its scales."""
    text = Text(f"{_layers(run.first, run.end)}: ")
    for i, (model, start, end) in enumerate(run.sources):
        text.append(f"{' + ' if i else ''}{letter(model)} {_layers(start, end)}", COLOURS[model % len(COLOURS)])
    for factor, tensors in run.scales:
        text.append(f" {factor}" if together else f" {factor} ({tensors})")
    return text


def _layers(first: int, end: int) -> str:
    return f"{first}" if end == first + 1 else f"{first}-{end - 1}"


def _axis_from(first: int, count: int) -> str:
    line = ""
    for i in range(0, count, 10):
        line = f"{line:<{i}}{first + i}"
    return line


def _only(step: Step) -> int | None:
    """Returns which layer a step is of its models; None where they differ."""
    layers = {layer for _, layer in step.sources}
    return layers.pop() if len(layers) == 1 else None


def _bar(factor: float, factors: Sequence[float]) -> str:
    low, high = min(factors), max(factors)
    return BARS[round((factor - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[3]


def _choice(choice: Choice, models: Sequence[str]) -> Iterator[Text]:
    for model, depth in choice.models:
        colour = COLOURS[model % len(COLOURS)]
        bar = (SEARCHED * depth if depth <= 40 else f"{SEARCHED * 40}…") if depth else ""
        said = f"layers 0-{depth - 1}" if depth else "its layers"
        yield Text.assemble((f"  {letter(model)} {models[model]:<{LABEL}} ", colour), f"{said}  {bar}".rstrip())
    for fact in choice.facts:
        yield Text(f"  {fact}")
