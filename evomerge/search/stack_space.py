"""Spaces of stacks: which layers of which models run, in which order; as a list of layers, or as switches.

Akiba et al. 2024, "Evolutionary Optimization of Model Merging Recipes", §3.2, https://arxiv.org/abs/2403.13187.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from evomerge.errors import RecipeError
from evomerge.recipe import LayerSource, Recipe, Slice
from evomerge.search.space import DEFAULT_SIGMA, SIGNIFICANT_DIGITS, Cube, Dimension

LARGEST_FACTOR = 1e30
"""What a layer adds is multiplied by no more than this, and by no less than its inverse."""


class Layer(NamedTuple):
    """One layer of a stack.

    Attributes:
        model: which model it comes from: an index into the models of the hole.
        layer: which of that model's layers it is, from 0.
        scale: what the hidden state is multiplied by before it.
    """

    model: int
    layer: int
    scale: float = 1.0


Stack = tuple[Layer, ...]
"""The layers of a model from the first to the last."""


class Folding(Protocol):
    """How a layer's tensors change where all that it adds to the hidden state is multiplied by a factor c."""

    @property
    def filters(self) -> tuple[str, ...]:
        """Parts of the names of the tensors that are multiplied."""

    @property
    def offset(self) -> bool:
        """Whether they are stored as w for a weight of 1 + w: then c (1 + w) - 1 takes the place of w."""


class StackSpace:
    """Stacks of layers in any order.

    A layer's scale s multiplies the hidden state before it. In a residual block behind a norm this equals dividing what
    this layer and all after it add by s; so the recipe has plain slices, and the factors as `scale` parameters.

    Args:
        recipe: a recipe whose slices are a hole.
        depths: the number of layers of each model of the hole.
        fold: how scales are folded into a layer's tensors; None where the hole has no scale.

    Attributes:
        recipe: the recipe with the hole.
        models: the models whose layers are stacked.
        depths: the number of layers of each.
        repeats: how often a stack may use each layer.
        scale: the range of scales; None where they are not searched.
        min_layers: the fewest layers of a stack.
        max_layers: the most layers of a stack.
        layers: every layer, model by model.

    Raises:
        RecipeError: no stack of these models is within the hole's bounds.
        ValueError: the recipe has no such hole, or scales without a fold.
    """

    def __init__(self, recipe: Recipe, depths: Sequence[int], fold: Folding | None = None) -> None:
        hole = recipe.stack_hole
        if hole is None:
            raise ValueError("the recipe has no hole in place of its slices")
        if hole.search.scale is not None and fold is None:
            raise ValueError("scales are searched, so a fold is needed")
        self.recipe = recipe
        self.models = hole.search.models
        self.depths = tuple(depths)
        self.repeats = hole.search.repeats
        self.scale = hole.search.scale
        try:
            self.min_layers, self.max_layers = hole.bounds(depths)
        except ValueError as fault:
            raise RecipeError([recipe.fault(("slices", "search", "min_layers"), str(fault))]) from None
        self.layers: Stack = tuple(Layer(model, i) for model, depth in enumerate(depths) for i in range(depth))
        self._fold = fold

    @property
    def parents(self) -> list[Stack]:
        """The models themselves, as stacks; one of a depth outside the bounds is repaired."""
        return [
            self.repaired(layer for layer in self.layers if layer.model == model) for model in range(len(self.depths))
        ]

    def sample(self, rng: np.random.Generator) -> Stack:
        """Returns a random stack: its depth is uniform, and so is each layer among those that may still be used."""
        uses: list[Layer] = [layer for layer in self.layers for _ in range(self.repeats)]
        size = int(rng.integers(self.min_layers, self.max_layers + 1))
        chosen = rng.permutation(len(uses))[:size]
        return tuple(uses[i]._replace(scale=self.random_scale(rng)) for i in chosen)

    def random_scale(self, rng: np.random.Generator) -> float:
        """Returns a scale whose logarithm is uniform in the range; 1 where scales are not searched."""
        if self.scale is None:
            return 1.0
        low, high = self.scale
        return self.nearest_scale(math.exp(rng.uniform(math.log(low), math.log(high))))

    def nearest_scale(self, scale: float) -> float:
        """Returns the scale nearest to `scale` in the range, rounded; 1 where scales are not searched."""
        if self.scale is None or not math.isfinite(scale):
            return 1.0
        low, high = self.scale
        return min(max(float(f"{scale:.{SIGNIFICANT_DIGITS}g}"), low), high)

    def repaired(self, layers: Iterable[Layer]) -> Stack:
        """Returns `layers` if they are a stack within the bounds, otherwise one like them.

        A model or a layer that does not exist becomes the nearest one that does; uses of a layer beyond `repeats` are
        left out, and so are layers beyond `max_layers`. To a stack that is too short, layers that may still be used are
        appended, those of its last model first.
        """
        used: Counter[tuple[int, int]] = Counter()
        kept: list[Layer] = []
        model = 0

        def add(layer: Layer) -> None:
            if len(kept) < self.max_layers and used[layer[:2]] < self.repeats:
                used[layer[:2]] += 1
                kept.append(layer)

        for given in layers:
            model = min(max(given.model, 0), len(self.depths) - 1)
            index = min(max(given.layer, 0), self.depths[model] - 1)
            add(Layer(model, index, self.nearest_scale(given.scale)))
        more = sorted(self.layers, key=lambda layer: layer.model != model) * self.repeats
        for layer in more:
            if len(kept) >= self.min_layers:
                break
            add(layer)
        return tuple(kept)

    def all_stacks(self) -> Iterator[Stack]:
        """Yields every stack without scales, the shallow ones first."""
        for size in range(self.min_layers, self.max_layers + 1):
            yield from self._stacks(size, [], Counter())

    def _stacks(self, size: int, head: list[Layer], used: Counter[Layer]) -> Iterator[Stack]:
        if len(head) == size:
            yield tuple(head)
            return
        for layer in self.layers:
            if used[layer] < self.repeats:
                head.append(layer)
                used[layer] += 1
                yield from self._stacks(size, head, used)
                used[layer] -= 1
                head.pop()

    def decode(self, genome: Stack) -> Recipe:
        """Returns the recipe that `genome` stands for; every list of layers has one, see `repaired`.

        Layers that follow each other in one model with the same factor are one slice.
        """
        slices: list[tuple[Layer, int, float]] = []  # the first layer, the end of the range, the factor
        logarithm = 0.0
        bound = math.log(LARGEST_FACTOR)
        for layer in self.repaired(genome):
            logarithm -= math.log(layer.scale)
            factor = float(f"{math.exp(min(max(logarithm, -bound), bound)):.{SIGNIFICANT_DIGITS}g}")
            if slices:
                first, end, same = slices[-1]
                if (first.model, end, same) == (layer.model, layer.layer, factor):
                    slices[-1] = (first, end + 1, same)
                    continue
            slices.append((layer, layer.layer + 1, factor))
        made = tuple(self._slice(*one) for one in slices)
        return self.recipe.fill({("slices",): made})

    def _slice(self, first: Layer, end: int, factor: float) -> Slice:
        source: dict[str, Any] = {"model": self.models[first.model], "layer_range": (first.layer, end)}
        if factor != 1 and self._fold is not None:
            source["parameters"] = {"scale": _filtered(self._fold.filters, factor, 1.0)}
            if self._fold.offset:
                shift = float(f"{factor - 1:.{SIGNIFICANT_DIGITS}g}")
                source["parameters"]["shift"] = _filtered(self._fold.filters, shift, 0.0)
        return Slice(sources=(LayerSource(**source),))

    def to_json(self, genome: Stack) -> list[list[float]]:
        """Returns the stack as a list of [model, layer, scale]."""
        return [list(layer) for layer in genome]

    def from_json(self, data: Iterable[Sequence[float]]) -> Stack:
        """Returns the stack that a list of [model, layer, scale] holds; one not within the bounds is `repaired`."""
        return self.repaired(Layer(_whole(model), _whole(layer), float(scale)) for model, layer, scale in data)


class IndicatorSpace(Cube):
    """Stacks as switches, for optimizers of numbers: all layers in sequence, `repeats` times over, each on or off.

    A genome has a number in [0, 1] for each of these slots, which is on above 0.5; where scales are searched, as many
    more for the slots' scales. Where too many slots are on, those with the largest numbers are; where too few, the
    largest of the others are too. Akiba et al. 2024, §3.2.

    Args:
        recipe: a recipe whose slices are a hole.
        depths: the number of layers of each model of the hole.
        fold: see `StackSpace`.
        sigma: the optimizer's first step, by which the start is placed.

    Attributes:
        stacks: the same stacks as lists of layers.
        slots: the layer of each slot.
    """

    def __init__(
        self, recipe: Recipe, depths: Sequence[int], fold: Folding | None = None, *, sigma: float = DEFAULT_SIGMA
    ) -> None:
        self.recipe = recipe
        self.stacks = StackSpace(recipe, depths, fold)
        self.slots: Stack = self.stacks.layers * self.stacks.repeats
        self.dimensions = [
            Dimension(self._name("on", i), ("slices",), 0.0, 1.0, log=False, start=self._first(i, sigma))
            for i in range(len(self.slots))
        ]
        if self.stacks.scale is not None:
            low, high = self.stacks.scale
            self.dimensions += [
                Dimension(self._name("scale", i), ("slices",), low, high, log=True, start=1.0)
                for i in range(len(self.slots))
            ]

    def _name(self, what: str, slot: int) -> str:
        layer = self.slots[slot]
        turn = slot // len(self.stacks.layers)
        again = f" (use {turn + 1})" if turn else ""
        return f"slices: {what}, {self.stacks.models[layer.model]} layer {layer.layer}{again}"

    def _first(self, slot: int, sigma: float) -> float:
        """Returns where a slot's switch starts: on, and far from the border, in the first pass over the first model."""
        return min(0.5 + 2 * sigma, 1.0) if slot < self.stacks.depths[0] else 0.5

    def stack(self, genome: Sequence[float]) -> Stack:
        """Returns the layers whose slots are on; every genome of the right length has some."""
        count = len(self.slots)
        switches = [dimension.number(gene) for dimension, gene in zip(self.dimensions, genome[:count], strict=False)]
        largest = sorted(range(count), key=lambda i: -switches[i])
        on = sum(switch > 0.5 for switch in switches)
        chosen = sorted(largest[: min(max(on, self.stacks.min_layers), self.stacks.max_layers)])
        if self.stacks.scale is None:
            return tuple(self.slots[i] for i in chosen)
        scales = [self.dimensions[count + i].number(genome[count + i]) for i in chosen]
        return tuple(self.slots[i]._replace(scale=scale) for i, scale in zip(chosen, scales, strict=True))

    def decode(self, genome: Sequence[float]) -> Recipe:
        """Returns the recipe that `genome` stands for; every genome of the right length has one."""
        return self.stacks.decode(self.stack(genome))


def _filtered(filters: Sequence[str], value: float, otherwise: float) -> list[dict[str, Any]]:
    return [*({"filter": part, "value": value} for part in filters), {"value": otherwise}]


def _whole(number: float) -> int:
    return int(number) if math.isfinite(number) else 0
