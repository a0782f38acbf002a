"""`Canvas`: a picture as SVG, alone in a file or as a part of a page, in colours for light and dark backgrounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

MOST_HINTS = 400
"""How many dots have hints: a page with very many elements is slow."""

# Okabe and Ito's colours, which people with any colour vision tell apart; some darker on white, lighter on black.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5538c", "#8a6d00", "#3a93c7", "#5c5c5c", "#7a4fbf")
_DARK = ("#56b4e9", "#ff8c42", "#2fc99a", "#e08fc0", "#f0e442", "#8fd0f5", "#b0b0b0", "#b79cf0")

FONTS = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, "Liberation Sans", "Noto Sans", sans-serif'
"""The fonts of pictures, the first that is there; outside of browsers, sans-serif often stands for one that is not."""

_STYLE = """
%(root)s { --ink: #1b1f24; --soft: #59636e; --line: #d0d7de; --page: #ffffff; --heat: #0b5cad; %(light)s }
@media %(dark_media)s {
  %(root)s { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --page: #0d1117; --heat: #58a6ff; %(dark)s }
}
svg text { font: 13px %(fonts)s; fill: var(--ink) }
svg .title { font-size: 17px; font-weight: 600 }
svg .heading { font-weight: 600 }
svg .soft { fill: var(--soft); font-size: 11px }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 3px }
svg .number { font-size: 11px; text-anchor: middle }
svg .over { fill: var(--page) }
.page { fill: var(--page) }
.bar { fill: var(--soft) }
.heat { fill: var(--heat) }
.hole { fill: url(#searched); stroke: var(--heat) }
.grid { stroke: var(--line); fill: none }
.way { fill: none; stroke: var(--soft); stroke-width: 1.5 }
.again { fill: none; stroke: var(--ink) }
.hatch { stroke: var(--heat); stroke-width: 2 }
.dot { fill: var(--heat); fill-opacity: 0.45 }
.dots { fill: none; stroke: var(--heat); stroke-opacity: 0.45; stroke-linecap: round }
.best { fill: none; stroke: var(--m1); stroke-width: 2 }
.chosen { fill: var(--m1) }
.middle { fill: none; stroke: var(--heat); stroke-width: 1.5 }
.level { fill: none; stroke: var(--soft); stroke-dasharray: 4 3 }
.whisker { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.point { fill: var(--ink) }
%(models)s
"""


def style(root: str = "svg", dark: str = "(prefers-color-scheme: dark)") -> str:
    """Returns the style sheet of pictures.

    Args:
        root: the selector of what the colours are set for.
        dark: the media query for dark backgrounds.
    """
    light_colours, dark_colours = (
        " ".join(f"--m{i}: {colour};" for i, colour in enumerate(shades)) for shades in (_LIGHT, _DARK)
    )
    models = "\n".join(f".m{i} {{ fill: var(--m{i}) }}" for i in range(len(_LIGHT)))
    parts = {"dark_media": dark, "light": light_colours, "dark": dark_colours, "models": models, "fonts": FONTS}
    return _STYLE % {"root": root, **parts}


def plain_style() -> str:
    """Returns the style sheet for a light background, without variables, which few programs but browsers know."""
    light, _, rest = style().partition("@media")
    values = dict(re.findall(r"(--\w+): ([^;]+);", light))
    rules = rest.partition("\n}\n")[2]
    return re.sub(r"var\((--\w+)\)", lambda found: values[found[1]], rules)


def colour(model: int) -> str:
    """Returns the class of a model's colour, by the model's index."""
    return f"m{model % len(_LIGHT)}"


HATCH = (
    '<defs><pattern id="searched" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path class="hatch" d="M0 0V6" stroke-opacity="0.45"/></pattern></defs>'
)
"""What fills cells that are searched."""


class Canvas:
    """Collects the elements of a picture from its top to its bottom.

    Args:
        width: in pixels.
        title: what it shows, for those who cannot see it.
        margin: the empty space around it, in pixels.

    Attributes:
        y: where the next element goes.
    """

    def __init__(self, width: float, title: str, margin: float = 0) -> None:
        self.width = width
        self.title = title
        self.margin = margin
        self.y = margin
        self._parts: list[str] = []

    @property
    def narrow(self) -> bool:
        """Whether there is no room for labels beside what they name."""
        return self.width < 600

    def text(self, x: float, y: float, content: str, kind: str = "", *, anchor: str = "") -> None:
        """Writes text; `anchor` is ``end`` or ``middle``."""
        anchored = f' text-anchor="{anchor}"' if anchor else ""
        self._parts.append(f'<text x="{x:.2f}" y="{y:.2f}" class="{kind}"{anchored}>{escape(content)}</text>')

    def rect(self, x: float, y: float, size: tuple[float, float], kind: str, more: str = "", *, hint: str = "") -> None:
        """Draws a rectangle from its upper left corner; `hint` is shown to who points at it."""
        width, height = size
        self._add(
            "rect", f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" class="{kind}"{more}', hint
        )

    def dot(self, x: float, y: float, radius: float, kind: str, *, hint: str = "") -> None:
        """Draws a dot."""
        self._add("circle", f'cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" class="{kind}"', hint)

    def dots(self, points: Sequence[tuple[float, float]], radius: float, hints: Sequence[str]) -> None:
        """Draws a dot for each candidate; where there are many, without hints, as a part of few elements."""
        if len(points) <= MOST_HINTS:
            for (x, y), hint in zip(points, hints, strict=True):
                self.dot(x, y, radius, "dot", hint=hint)
            return
        # Several, as the dots of one element do not get darker where they overlap.
        for first in range(0, len(points), 100):
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points[first : first + 100])
            self._parts.append(f'<path class="dots" stroke-width="{2 * radius:g}" d="{path}"/>')

    def line(self, kind: str, *points: tuple[float, float]) -> None:
        """Draws a line through points."""
        self._parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.2f},{y:.2f}" for x, y in points)}"/>')

    def _add(self, tag: str, attributes: str, hint: str) -> None:
        inside = f"><title>{escape(hint)}</title></{tag}>" if hint else "/>"
        self._parts.append(f"<{tag} {attributes}{inside}")

    def inline(self, kind: str = "") -> str:
        """Returns the picture as a part of a page that has its style, as an element of class `kind`."""
        return "\n".join([self._head(0, f' class="{kind}"'), *self._parts, "</svg>"])

    def file(self, space: int = 0, sheet: str | None = None) -> str:
        """Returns the picture as the text of an SVG file that needs nothing else.

        Args:
            space: around it, in pixels.
            sheet: its style sheet; by default that of `style`.
        """
        width, height = self._size(space)
        head = self._head(space, ' xmlns="http://www.w3.org/2000/svg"')
        page = f'<rect class="page" x="{-space}" y="{-space}" width="{width:g}" height="{height:g}"/>'
        return "\n".join(
            [head, f"<style>{style() if sheet is None else sheet}</style>", HATCH, page, *self._parts, "</svg>\n"]
        )

    def _size(self, space: int) -> tuple[float, float]:
        return self.width + 2 * space, self.y + self.margin + 2 * space

    def _head(self, space: int, more: str) -> str:
        width, height = self._size(space)
        return (
            f'<svg{more} viewBox="{-space} {-space} {width:g} {height:g}" width="{width:g}" height="{height:g}"'
            f' role="img" aria-label="{escape(self.title)}">'
        )
