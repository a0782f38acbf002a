"""`Space`: from genomes to recipes; `Cube`, whose genomes are numbers; `NumberSpace`, the numbers of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution

from evomerge.document import Location, spelled
from evomerge.recipe import Hole, Number, Recipe

G = TypeVar("G")

Genome = tuple[float, ...]
"""A candidate of a `Cube`: a number in [0, 1] for each dimension."""

DEFAULT_SIGMA = 1 / 6
"""The first step, as a fraction of each range: three steps from the middle reach both ends."""

SIGNIFICANT_DIGITS = 6
"""Numbers are rounded to this before they are used: recipes stay readable, and hold what was scored."""


class Space(Protocol[G]):
    """What is searched: genomes, and the recipe that each stands for."""

    def sample(self, rng: np.random.Generator) -> G:
        """Returns a random genome."""
        ...

    def decode(self, genome: G) -> Recipe:
        """Returns the recipe that `genome` stands for; every genome has one."""
        ...

    def to_json(self, genome: G) -> Any:
        """Returns `genome` as JSON data; `from_json` restores it exactly."""
        ...

    def from_json(self, data: Any) -> G:
        """Returns the genome that `to_json` turned into `data`."""
        ...


@dataclass(frozen=True)
class Dimension:
    """One searched number.

    Attributes:
        name: its location in the recipe as text, for example ``models[0].parameters.weight[2]``.
        location: the hole's location in the recipe.
        low: the lowest value.
        high: the highest value.
        log: whether the logarithm of the number is searched.
        start: where the search begins, in the number's own units.
    """

    name: str
    location: Location
    low: float
    high: float
    log: bool
    start: float

    def number(self, gene: float) -> float:
        """Returns the number that `gene` in [0, 1] stands for; a gene outside is moved to the nearer end."""
        gene = min(max(gene, 0.0), 1.0) if math.isfinite(gene) else 0.5
        span = self.high / self.low if self.log else self.high - self.low
        value = self.low * span**gene if self.log else self.low + gene * span
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)

    def gene(self, number: float) -> float:
        """Returns the gene in [0, 1] that stands for `number`, which must lie in the range."""
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)


class Cube:
    """A space of points in the unit cube, for optimizers of numbers.

    Attributes:
        dimensions: the searched numbers, one for each coordinate of a genome.
    """

    dimensions: list[Dimension]

    def __len__(self) -> int:
        return len(self.dimensions)

    @property
    def start(self) -> NDArray[np.float64]:
        """Where the search begins: float64, shape (dimensions,), in [0, 1]."""
        return np.array([dimension.gene(dimension.start) for dimension in self.dimensions])

    def numbers(self, genome: Sequence[float]) -> dict[str, float]:
        """Returns the searched numbers by name, in their own units."""
        return {dimension.name: dimension.number(gene) for dimension, gene in zip(self.dimensions, genome, strict=True)}

    def sample(self, rng: np.random.Generator) -> Genome:
        """Returns a uniform genome."""
        return tuple(rng.random(len(self)).tolist())

    def to_json(self, genome: Genome) -> list[float]:
        """Returns the genome as a list."""
        return list(genome)

    def from_json(self, data: Iterable[float]) -> Genome:
        """Returns the genome that a list holds."""
        return tuple(data)


class NumberSpace(Cube):
    """The numbers that a recipe leaves open, one dimension each.

    Args:
        recipe: a recipe with holes.
        depths: for each hole with `layers`, the number of layers that its value spreads over.
        starts: for holes without `init`, where the search begins; the middle of the range by default. A start outside
            the range is moved to the nearer end.

    Attributes:
        recipe: the recipe with holes.
        dimensions: the searched numbers in the document's order.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        depths: Mapping[Location, int],
        starts: Mapping[Location, float] | None = None,
    ) -> None:
        self.recipe = recipe
        self.dimensions: list[Dimension] = []
        self._depths = depths
        self._holes = recipe.number_holes()
        for location, hole in self._holes.items():
            start = _start(hole, (starts or {}).get(location))
            for i in range(hole.layers or 1):
                name = spelled(location) + (f"[{i}]" if hole.layers else "")
                self.dimensions.append(Dimension(name, location, *hole.search, log=hole.log, start=start))

    def parameters(self, genome: Genome) -> dict[str, tuple[float, BaseDistribution]]:
        """Returns the numbers, each with its range as Optuna describes it, by the names that Optuna's tools show.

        They are ``math: weight[2]`` in place of ``models[0].parameters.weight[2]``, for the model ``org/math``.
        """
        numbers = self.numbers(genome)
        return {self._shown(d): (numbers[d.name], FloatDistribution(d.low, d.high, log=d.log)) for d in self.dimensions}

    def _shown(self, dimension: Dimension) -> str:
        models = [entry.model.rstrip("/").rpartition("/")[2] for entry in self.recipe.models or ()]
        if dimension.location[0] != "models":
            return dimension.name
        model = models[int(dimension.location[1])]
        # Models whose names end alike are told apart by their locations.
        own = f"{spelled(dimension.location[:3])}."
        return f"{model}: {dimension.name.removeprefix(own)}" if models.count(model) == 1 else dimension.name

    def decode(self, genome: Sequence[float]) -> Recipe:
        """Returns the recipe that `genome` stands for; every genome of the right length has one.

        A hole with `layers` becomes a gradient that mergekit reads too: k points where it interpolates, otherwise one
        number for each layer, layer i of n taking number floor(i k / n).
        """
        found: dict[Location, list[float]] = {}
        for dimension, gene in zip(self.dimensions, genome, strict=True):
            found.setdefault(dimension.location, []).append(dimension.number(gene))
        values: dict[Location, Number | tuple[Number, ...]] = {}
        for location, numbers in found.items():
            hole = self._holes[location]
            if hole.layers is None:
                values[location] = numbers[0]
            elif hole.interpolate:
                values[location] = tuple(numbers)
            else:
                depth = self._depths[location]
                values[location] = tuple(numbers[i * len(numbers) // depth] for i in range(depth))
        return self.recipe.fill(values)


def _start(hole: Hole, start: float | None) -> float:
    low, high = hole.search
    if hole.init is not None:
        return hole.init
    if start is not None:
        return min(max(start, low), high)
    return math.sqrt(low * high) if hole.log else (low + high) / 2
