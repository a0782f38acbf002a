"""Pictures as PNG, drawn by resvg, which the extra ``png`` installs."""

from __future__ import annotations

from html import escape

from evomerge.errors import StudyError
from evomerge.report.canvas import FONTS

SCALE = 2
"""Pixels of a PNG file for each pixel of the picture, so that it is sharp on any screen and in print."""


def check_png() -> None:
    """Checks that pictures can be drawn here, with their texts.

    Raises:
        StudyError: the package that draws is missing, or there are no fonts.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise StudyError(
            "PNG pictures need resvg_py, which is not installed: run pip install 'evomerge[png]', or use --format svg"
        ) from None
    picture = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{}</svg>'
    text = f'<text y="15" font-family="{escape(FONTS)}">x</text>'
    if to_png(picture.format(text)) == to_png(picture.format("")):
        raise StudyError(
            "PNG pictures would have no text, because none of their fonts is installed; install one, such as DejaVu"
            " Sans (on Debian and Ubuntu: fonts-dejavu-core), or use --format svg"
        )


def to_png(svg: str) -> bytes:
    """Returns a PNG file of an SVG file whose style sheet is that of `plain_style`."""
    from resvg_py import svg_to_bytes

    return bytes(svg_to_bytes(svg_string=svg, zoom=SCALE))
