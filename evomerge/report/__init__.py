"""Pictures of recipes, for a terminal and as SVG; `evomerge.report.page` has the reports of searches."""

from evomerge.report.drawing import Drawing, drawing_of
from evomerge.report.svg import to_svg
from evomerge.report.terminal import to_text

__all__ = ["Drawing", "drawing_of", "to_svg", "to_text"]
