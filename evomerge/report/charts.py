"""The charts of a report: scores with intervals, progress, relations of numbers to scores, use of layers, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.report.canvas import Canvas, colour
from evomerge.report.findings import LayerUse, Progress, Relation, Standing
from evomerge.report.names import shortened

WIDE = 860.0
"""The width of a chart that fills a page."""
SMALL = 360.0
"""The width of a chart on a phone."""
HALF = 440.0
"""The width of one of two charts beside each other."""
TINY = 176.0
"""The width of a scatter plot."""

_Floats = NDArray[np.float64]
_PARTS = {"evaluate": "scoring", "build": "building", "other": "other", "holdout": "holdout"}


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to pixels.

    Attributes:
        low: the number at `start`.
        high: the number at `end`.
        start: a pixel.
        end: a pixel.
        log: whether distances are of logarithms.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, number: float) -> float:
        """Returns the pixel of a number; one outside is moved to the nearer end."""
        low, high, inside = self.low, self.high, min(max(number, self.low), self.high)
        if self.log:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        return self.start + (self.end - self.start) * ((inside - low) / (high - low) if high > low else 0.5)

    def ticks(self, most: int) -> list[float]:
        """Returns up to `most` round numbers within the scale."""
        if self.log or self.high <= self.low:
            return [self.low, self.high]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def number(value: float | None, digits: int = 3) -> str:
    """Returns a score as text."""
    return "failed" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Returns seconds as people read them: ``0.4 s``, ``42 s``, ``3 min 10 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def scores_chart(standings: Sequence[Standing], width: float) -> Canvas:
    """Returns each model's score, on the holdout with its interval, as a dot on one scale."""
    on_holdout = any(one.holdout is not None for one in standings)
    page = Canvas(width, "scores on the holdout" if on_holdout else "search scores")
    values = [one.holdout if on_holdout else one.search for one in standings]
    ends = [end for one in standings for end in (one.interval or ())] + [value for value in values if value is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = (high - low) * 0.04 or 0.01
    label, said = (0.0, 0.0) if page.narrow else (250.0, 150.0)
    axis = Axis(low - room, high + room, label + 6, width - said - 6)
    top, rise = page.y, 40.0 if page.narrow else 28.0
    bottom = top + rise * len(standings)
    for tick in axis.ticks(4 if page.narrow else 7):
        page.line("grid", (axis.at(tick), top), (axis.at(tick), bottom + 4))
        page.text(axis.at(tick), bottom + 18, f"{tick:g}", "soft", anchor=_anchor(axis.at(tick), 0, width))
    for i, (one, value) in enumerate(zip(standings, values, strict=True)):
        y = top + rise * i + rise / 2
        first = f"{'winner' if on_holdout else 'best'}: " if one.kind == "winner" else ""
        name = f"{first}{one.name}{' (base model)' if one.kind == 'base' else ''}"
        kind = "strong" if one.kind == "winner" else ""
        bounds = f" ({one.interval[0]:.3f} to {one.interval[1]:.3f})" if one.interval else ""
        text = f"{number(value)}{bounds}"
        if page.narrow:
            page.text(0, y - 6, shortened(name, 28), kind)
            page.text(width, y - 6, text, "soft", anchor="end")
            y += 8
        else:
            page.text(0, y + 4, shortened(name, 34), kind)
            page.text(width, y + 4, text, "soft", anchor="end")
        if one.interval:
            page.line("whisker", (axis.at(one.interval[0]), y), (axis.at(one.interval[1]), y))
            for end in one.interval:
                page.line("whisker", (axis.at(end), y - 4), (axis.at(end), y + 4))
        if value is not None:
            mark = {"winner": "chosen", "finalist": "dot"}.get(one.kind, "point")
            page.dot(axis.at(value), y, 5.5 if one.kind == "winner" else 4.5, mark, hint=f"{one.name}: {text}")
    page.y = bottom + 24
    return page


def score_range(scores: _Floats, levels: Sequence[float] = ()) -> tuple[float, float, int]:
    """Returns the range of a chart's scores, and how many lie below it: the worst must not flatten the rest."""
    known = scores[np.isfinite(scores)]
    if not len(known):
        return 0.0, 1.0, 0
    high = float(max([known.max(), *levels]))
    low = float(min([known.min(), *levels]))
    floor = high - 2.5 * (high - float(np.median(known)))
    shown = [level for level in levels if level >= floor]
    if low < floor and high > floor:
        low = min([float(known[known >= floor].min()), *shown])
    room = (high - low) * 0.05 or 0.01
    return low - room, high + room, int((known < low).sum())


def progress_chart(progress: Progress, level: tuple[str, float] | None, by_time: bool, width: float = HALF) -> Canvas:
    """Returns all candidates' scores and the best so far.

    Args:
        progress: the candidates.
        level: the name and the score of a model to beat.
        by_time: whether they are shown over time, instead of over their count.
        width: in pixels.
    """
    page = Canvas(width, f"scores over {'time' if by_time else 'evaluations'}")
    count = len(progress.scores)
    x_values: _Floats = progress.seconds if by_time else np.arange(1, count + 1, dtype=np.float64)
    last = float(x_values[-1]) if count else 1.0
    unit, divisor = next(
        (u, d) for u, d in (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0)) if last >= 2 * d or d == 1
    )
    divisor = divisor if by_time else 1.0
    low, high, below = score_range(progress.scores, [level[1]] if level else [])
    top, bottom, left = 8.0, 190.0, 44.0
    across = Axis(0.0 if by_time else 1.0, max(last / divisor, 1e-9 if by_time else 2.0), left + 6, width - 8)
    up = Axis(low, high, bottom, top)
    frame(page, across, up, (left, width, bottom))
    page.text((left + width) / 2, bottom + 34, unit if by_time else "evaluations", "soft", anchor="middle")
    if level and low <= level[1] <= high:
        page.line("level", (left, up.at(level[1])), (width, up.at(level[1])))
    xs = [across.at(x / divisor) for x in x_values]
    known = [(x, s, name) for x, s, name in zip(xs, progress.scores, progress.names, strict=True) if np.isfinite(s)]
    page.dots([(x, up.at(s)) for x, s, _ in known], 2.6, [f"{name}: {s:.4f}" for _, s, name in known])
    _line(page, "middle", xs, progress.middle, up)
    steps: list[tuple[float, float]] = []
    for x, score in zip(xs, progress.best, strict=True):
        if np.isfinite(score):
            if steps:
                steps.append((x, steps[-1][1]))
            steps.append((x, up.at(score)))
    if steps:
        page.line("best", *steps)
    if level and low <= level[1] <= high:
        y = up.at(level[1])
        page.text(width - 2, y + (13 if y < bottom - 20 else -4), shortened(level[0], 30), "soft halo", anchor="end")
    page.y = bottom + 42
    if below:
        page.y += 12
        page.text(left, page.y, f"{below} below {low:.3g}, drawn at the bottom", "soft")
        page.y += 6
    return page


def _line(page: Canvas, kind: str, xs: Sequence[float], values: _Floats, up: Axis) -> None:
    points = [(x, up.at(value)) for x, value in zip(xs, values, strict=True) if np.isfinite(value)]
    if len(points) > 1:
        page.line(kind, *points)


def frame(page: Canvas, across: Axis, up: Axis, box: tuple[float, float, float], few: bool = False) -> None:
    """Draws the grid of a chart, and the numbers at its axes.

    Args:
        page: where.
        across: the horizontal axis.
        up: the vertical axis.
        box: the left, right and lower end of the grid, in pixels.
        few: whether there is room for few numbers.
    """
    left, right, bottom = box
    for tick in up.ticks(3 if few else 5):
        page.line("grid", (left, up.at(tick)), (right, up.at(tick)))
        page.text(left - 6, up.at(tick) + 4, f"{tick:g}", "soft", anchor="end")
    for tick in across.ticks(2 if few else 5):
        x = across.at(tick)
        page.text(
            x, bottom + 16, f"{tick:.4g}" if tick < 1000 else f"{tick:,.0f}", "soft", anchor=_anchor(x, left, right)
        )


def _anchor(x: float, left: float, right: float) -> str:
    """Returns how a number below `x` is aligned, so that it stays within the picture."""
    return "end" if x > right - 14 else "start" if x < left + 14 else "middle"


def relation_chart(relation: Relation, scores: _Floats, best: float | None, width: float = TINY) -> Canvas:
    """Returns the candidates' scores over one searched number.

    Args:
        relation: the number.
        scores: shape (scored candidates,).
        best: the winner's number, marked.
        width: in pixels.
    """
    page = Canvas(width, f"scores over {relation.label}, rank correlation {relation.correlation:+.2f}")
    top, bottom, left = 6.0, 108.0, 38.0
    low, high, _ = score_range(scores)
    across = Axis(relation.low, relation.high, left + 4, width - 6, relation.log)
    up = Axis(low, high, bottom, top)
    frame(page, across, up, (left, width, bottom), few=True)
    if best is not None:
        page.line("level", (across.at(best), top), (across.at(best), bottom))
    pairs = list(zip(relation.values, scores, strict=True))
    page.dots([(across.at(value), up.at(score)) for value, score in pairs], 2.4, [f"{v:g}: {s:.4f}" for v, s in pairs])
    page.y = bottom + 22
    return page


def layer_use_chart(use: LayerUse, width: float) -> Canvas:
    """Returns how often stacks use each layer: the best quarter of candidates, and all."""
    page = Canvas(width, "use of layers")
    label = 44.0 if page.narrow else 220.0
    count = use.of_best.shape[1]
    step = min((width - label) / count, 28.0)
    for model, name in enumerate(use.models):
        if page.narrow:
            page.text(0, page.y + 13, shortened(name, 40), "")
            page.y += 20
        for shares, said in ((use.of_best, "best ¼"), (use.of_all, "all")):
            if not page.narrow and shares is use.of_best:
                page.text(0, page.y + 15, shortened(name, 22))
            page.text(label - 6, page.y + 14, said, "soft", anchor="end")
            for layer in range(count):
                share = float(shares[model, layer])
                if np.isfinite(share):
                    page.rect(
                        label + layer * step,
                        page.y,
                        (max(step - 1, 1), 18),
                        colour(model),
                        f' fill-opacity="{0.06 + 0.94 * share:.3f}"',
                        hint=f"{name}, layer {layer}: {share:.0%} of {'the best quarter' if said != 'all' else 'all'}",
                    )
            page.y += 20
        page.y += 6
    every = next(every for every in (1, 2, 4, 5, 10, 20, 50, 100) if every * step >= 22 or every == 100)
    for layer in range(0, count, every):
        page.text(label + (layer + 0.5) * step, page.y + 8, str(layer), "soft", anchor="middle")
    page.text(0, page.y + 8, "layer", "soft")
    page.y += 14
    return page


def time_chart(seconds: dict[str, float], width: float) -> Canvas:
    """Returns where the time went, as one bar."""
    page = Canvas(width, "where the time went")
    total = sum(seconds.values()) or 1.0
    x = 0.0
    for i, part in enumerate(_PARTS):
        size = seconds.get(part, 0.0) / total * width
        if size >= 0.5:
            page.rect(x, 0, (max(size - 1, 0.5), 22), colour(i), hint=f"{_PARTS[part]}: {duration(seconds[part])}")
        x += size
    page.y = 36
    beside = max(1, int(width // 205))
    for i, (part, said) in enumerate(_PARTS.items()):
        left, y = 205 * (i % beside), page.y + 20 * (i // beside)
        page.rect(left, y, (11, 11), colour(i))
        page.text(
            left + 17, y + 10, f"{said} {duration(seconds.get(part, 0.0))} ({seconds.get(part, 0.0) / total:.0%})"
        )
    page.y += 20 * -(-len(_PARTS) // beside)
    return page


def both_widths(draw: Callable[[float], Canvas]) -> str:
    """Returns a chart at both widths; the page shows the one that fits."""
    return draw(WIDE).inline("wide") + draw(SMALL).inline("narrow")
