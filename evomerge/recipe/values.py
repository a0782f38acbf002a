"""Values of parameters: a number, a hole, a gradient along the depth, or a choice by the tensor's name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeGuard

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag, model_validator

from evomerge.document import Strict, shown

Number = bool | int | float

MOST_LAYERS = 10_000
"""More numbers along the depth are refused before memory is allocated for them: no model is so deep."""


class Hole(Strict):
    """A number that a search finds: ``{search: [low, high]}``.

    Attributes:
        search: the lowest and the highest value, both inclusive.
        init: where the search starts; by default where the merge is the mean of the parents.
        log: search the logarithm of the number; `low` must then be above 0.
        layers: search that many numbers along the depth instead of one.
        interpolate: with `layers`: points of a gradient that is interpolated linearly along the depth.
            Without it, one number for each of `layers` equal groups of layers.
    """

    search: tuple[float, float]
    init: float | None = None
    log: bool = False
    layers: int | None = Field(default=None, ge=1, le=MOST_LAYERS)
    interpolate: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Hole:
        low, high = self.search
        if not (low < high and math.isfinite(high - low)):
            raise ValueError(f"search is [{low:g}, {high:g}], but it must go from a lower to a higher number")
        if self.init is not None and not low <= self.init <= high:
            raise ValueError(f"init is {self.init:g}, outside search [{low:g}, {high:g}]; put it inside")
        if self.log and low <= 0:
            raise ValueError(f"log needs search to start above 0, found {low:g}")
        if self.log and not math.isfinite(high / low):
            raise ValueError(f"search is [{low:g}, {high:g}], too wide for its logarithm; start it higher")
        if self.interpolate and (self.layers is None or self.layers < 2):
            raise ValueError("interpolate needs layers: the number of points to interpolate between, 2 or more")
        return self


def _kind(raw: Any) -> str:
    """Returns the form of the value `raw`, so that faults of the other forms are not reported."""
    if isinstance(raw, Filtered) or (isinstance(raw, dict) and "value" in raw):
        return "choice"
    if isinstance(raw, Hole | dict):
        return "hole"
    if isinstance(raw, list | tuple):
        rules = (
            item for item in raw if isinstance(item, Filtered) or (isinstance(item, dict) and "search" not in item)
        )
        return "gradient" if next(rules, None) is None else "choice"
    return "number"


def _number(raw: Any) -> Number:
    """Returns `raw` if it is a finite number, true or false, or text with a number, as in ``"0.5"``."""
    if isinstance(raw, str):
        with contextlib.suppress(ValueError):
            return _number(float(raw))
    # An integer may be too large for a float, in which everything is computed.
    with contextlib.suppress(OverflowError):
        if isinstance(raw, bool | int | float) and math.isfinite(raw):
            return raw
    raise ValueError(f"expected a number, true, false, a list of them or {{search: [low, high]}}, found {shown(raw)}")


_NumberText = Annotated[str, Field(pattern=r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$")]

Scalar = Annotated[Number, PlainValidator(_number, json_schema_input_type=float | bool | _NumberText)]


Point = Annotated[
    Annotated[Scalar, Tag("number")] | Annotated[Hole, Tag("hole")],
    Discriminator(lambda raw: "hole" if isinstance(raw, Hole | dict) else "number"),
]
Plain = Annotated[
    Annotated[Scalar, Tag("number")] | Annotated[Hole, Tag("hole")] | Annotated[tuple[Point, ...], Tag("gradient")],
    Discriminator(_kind),
]


class Filtered(Strict):
    """A value for some tensors, chosen by their names.

    Attributes:
        filter: a part of the names of the tensors that take the value; ``*`` or none: all tensors.
        value: their value.
    """

    filter: str | None = None
    value: Plain

    def matches(self, name: str) -> bool:
        """Returns whether the tensor `name` takes this value: a plain substring decides."""
        return self.filter in (None, "*") or str(self.filter) in name


def _rules(raw: Any) -> Any:
    """Returns a list of rules; mergekit also reads a single one without the list."""
    return [raw] if isinstance(raw, Filtered | dict) else raw


Value = Annotated[
    Annotated[Scalar, Tag("number")]
    | Annotated[Hole, Tag("hole")]
    | Annotated[tuple[Point, ...], Tag("gradient")]
    | Annotated[
        Annotated[
            tuple[Filtered, ...],
            BeforeValidator(_rules, json_schema_input_type=tuple[Filtered, ...] | Filtered),
        ],
        Tag("choice"),
    ],
    Discriminator(_kind),
]


def is_choice(value: Any) -> TypeGuard[tuple[Filtered, ...]]:
    """Returns whether `value` chooses by the tensor's name."""
    return isinstance(value, tuple) and len(value) > 0 and isinstance(value[0], Filtered)


def gradient(points: Sequence[Number], t: float) -> Number:
    """Returns the value at depth `t` of a gradient, by linear interpolation between its points.

    Between true and false it is the point at or before `t`.

    Args:
        points: at least one value; the first lies at t = 0, the last at t = 1.
        t: relative depth in [0, 1].
    """
    position = t * (len(points) - 1)
    nearest = round(position)
    # t comes from a division: rounding must not miss a point that is meant exactly.
    if abs(position - nearest) < 1e-9:
        return points[nearest]
    below = math.floor(position)
    if any(isinstance(point, bool) for point in points):
        return points[below]
    part = position - below
    return points[below] * (1 - part) + points[below + 1] * part


def resolve(value: Value, name: str, t: float) -> Number | None:
    """Returns the value for one tensor; None if no filter matches or it is empty.

    Args:
        value: a value without holes.
        name: the tensor's name, for filters.
        t: the tensor's relative depth in [0, 1]; 0 outside the layers.

    Raises:
        TypeError: the value has a hole: fill the recipe first.
    """
    if is_choice(value):
        return next((resolve(rule.value, name, t) for rule in value if rule.matches(name)), None)
    points = value if isinstance(value, tuple) else (value,)
    numbers = [point for point in points if isinstance(point, Number)]
    if len(numbers) < len(points):
        raise TypeError("a hole has no value; fill the recipe first")
    return gradient(numbers, t) if numbers else None
