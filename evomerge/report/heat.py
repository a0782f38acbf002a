"""Heat maps: a parameter's numbers by model and layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evomerge.methods import METHODS
from evomerge.recipe import Filtered, Hole, Recipe, Value, gradient, is_choice
from evomerge.recipe.sources import Module
from evomerge.report.names import printable

OTHERS = "other"


class Range(NamedTuple):
    """A number, where both are equal; or the range in which a search finds one."""

    low: float
    high: float


@dataclass(frozen=True)
class HeatRow:
    """The numbers of one model, or of one group of its tensors.

    Attributes:
        model: the model's short name; ``all`` where the numbers are not by model.
        group: the part of the tensors' names by which they are chosen; "" where the numbers are for all of them.
        cells: one for each column; None where the recipe says nothing.
        text: the value as a whole, in few words.
    """

    model: str
    group: str
    cells: tuple[Range | None, ...]
    text: str


@dataclass(frozen=True)
class HeatMap:
    """One parameter by model and depth.

    Attributes:
        parameter: its name.
        rows: at least one.
        columns: what a column is: ``layer``; or ``point``, of a gradient over an unknown depth.
        low: the number with the lightest shade.
        high: the number with the darkest shade.
    """

    parameter: str
    rows: tuple[HeatRow, ...]
    columns: str
    low: float
    high: float

    def shade(self, number: float) -> float:
        """Returns how dark a number is, from 0 to 1."""
        return (number - self.low) / (self.high - self.low) if self.high > self.low else 0.0


Levels = Sequence[Mapping[str, Value]]
"""Parameter sections in the order of precedence: the first that gives a value decides."""


class _Part(NamedTuple):
    """Layers of the result that are merged alike: how many, and each model's sections; of None, those of all models."""

    depth: int
    models: Mapping[str | None, Levels]


def heat_maps(
    recipe: Recipe, module: Module, models: Mapping[str, str], depths: Mapping[str, int]
) -> Iterator[HeatMap]:
    """Yields a heat map for each parameter of a module that differs by model or depth or is searched.

    Args:
        recipe: the recipe.
        module: one of its modules.
        models: short names of the models.
        depths: the models' depths, where they are known.
    """
    chosen = METHODS.get(recipe.merge_method)
    per_model = {p.name for p in chosen.parameters if p.per_model} if chosen else None
    shared = (module.parameters, recipe.parameters)
    names: dict[str, None] = {}
    whole = next((depths[entry.model] for entry in module.models or () if entry.model in depths), None)
    parts: list[_Part] = []
    if module.models is not None:
        sections_of: dict[str | None, Levels] = {entry.model: (entry.parameters, *shared) for entry in module.models}
        sections_of[None] = shared
        values = [value for levels in sections_of.values() for level in levels for value in level.values()]
        parts.append(_Part(whole or _points(values), sections_of))
    for piece in module.slices or ():
        sections_of = {source.model: (source.parameters, piece.parameters, *shared) for source in piece.sources}
        sections_of[None] = (piece.parameters, *shared)
        parts.append(_Part(piece.num_layers, sections_of))
    for part in parts:
        names |= dict.fromkeys(name for levels in part.models.values() for level in levels for name in level)
    columns = "layer" if module.models is None or whole else "point"
    for name in names:
        by_model = name in per_model if per_model is not None else True
        rows = list(_rows(name, parts, models if by_model else {None: "all"}))
        numbers = [number for row in rows for cell in row.cells if cell for number in cell]
        if not numbers or (not by_model and name in recipe.parameters and len(rows) == 1 and _constant(rows[0])):
            continue  # a number for all is said, not drawn
        low, high = min(numbers), max(numbers)
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        yield HeatMap(name, tuple(rows), columns, min(low, 0.0), high)


def _rows(name: str, parts: Sequence[_Part], owners: Mapping[str, str] | Mapping[None, str]) -> Iterator[HeatRow]:
    for owner, label in owners.items():
        values = [_value(name, part.models.get(owner, ())) for part in parts]
        groups = list(dict.fromkeys(group for value in values for group in _groups(value)))
        if len(groups) > 1 and OTHERS in groups:
            groups = [group for group in groups if group != OTHERS] + [OTHERS]
        for group in groups:
            grouped = [_of_group(value, group) for value in values]
            cells = [
                _at(value, i, part.depth) for value, part in zip(grouped, parts, strict=True) for i in range(part.depth)
            ]
            if any(cells):
                named = "" if groups == [OTHERS] else group
                yield HeatRow(label, printable(named), tuple(cells), _text(grouped, cells))


def _constant(row: HeatRow) -> bool:
    return len(set(row.cells)) == 1 and row.cells[0] is not None and row.cells[0].low == row.cells[0].high


def _value(name: str, levels: Levels) -> Value | None:
    return next((level[name] for level in levels if name in level), None)


def _groups(value: Value | None) -> list[str]:
    if value is None:
        return []
    return (
        [rule.filter if rule.filter not in (None, "*") else OTHERS for rule in value] if is_choice(value) else [OTHERS]
    )


def _of_group(value: Value | None, group: str) -> Value | None:
    """Returns the value for a group of tensors: its own rule's, else the one for all."""
    if value is None or not is_choice(value):
        return value
    rules = {rule.filter if rule.filter not in (None, "*") else OTHERS: rule.value for rule in reversed(value)}
    return rules.get(group, rules.get(OTHERS))


def _at(value: Value | None, layer: int, depth: int) -> Range | None:
    """Returns a value at a layer; a hole's range."""
    if value is None or is_choice(value) or value == ():
        return None
    if isinstance(value, Hole):
        return Range(*value.search)
    if isinstance(value, tuple):
        t = layer / (depth - 1) if depth > 1 else 1.0
        points = [point for point in value if not isinstance(point, Filtered)]
        ends = [point.search if isinstance(point, Hole) else (point, point) for point in points]
        return Range(float(gradient([end[0] for end in ends], t)), float(gradient([end[1] for end in ends], t)))
    return Range(float(value), float(value))


def _points(values: Iterable[Value]) -> int:
    """Returns the most points of a gradient among values; 1 where there are none."""
    counts = [1]
    for value in values:
        if is_choice(value):
            counts.append(_points(rule.value for rule in value))
        elif isinstance(value, Hole):
            counts.append(value.layers or 1)
        elif isinstance(value, tuple):
            counts.append(len(value))
    return max(counts)


def _text(values: Sequence[Value | None], cells: Sequence[Range | None]) -> str:
    """Returns a row's value in few words."""
    if len({repr(value) for value in values}) == 1:
        value = values[0]
        if isinstance(value, tuple) and len(value) <= 5 and all(isinstance(point, int | float) for point in value):
            return " ".join(f"{point:g}" for point in value if isinstance(point, int | float))
        if isinstance(value, Hole):
            count = f", {value.layers} numbers" if value.layers else ""
            return f"{value.search[0]:g} to {value.search[1]:g}{count}"
    found = [cell for cell in cells if cell]
    low, high = min(cell.low for cell in found), max(cell.high for cell in found)
    return f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"
