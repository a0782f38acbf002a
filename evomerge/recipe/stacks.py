"""`StackHole`: slices that a search finds, ``{search: {models: [...], ...}}``; and the rates of a genetic search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.document import Location, Strict, shown
from evomerge.recipe.sources import ModelName
from evomerge.recipe.values import MOST_LAYERS


class StackSearch(Strict):
    """Which stacks of layers are searched.

    Attributes:
        models: the models whose layers are stacked.
        repeats: how often a stack may use each layer.
        min_layers: the fewest layers of a stack; by default half the depth of the shallowest model.
        max_layers: the most layers of a stack; by default twice the depth of the deepest model.
        scale: the range of a number for each layer, by which the hidden state is multiplied before the layer; without
            it, layers are stacked as they are. It includes 1, so that the models themselves can be found.
        encoding: ``order``: any layer may come after any other; or ``indicator``: all layers in sequence, `repeats`
            times over, each of them on or off, as in Akiba et al. 2024, §3.2, https://arxiv.org/abs/2403.13187.
    """

    models: tuple[ModelName, ...] = Field(min_length=1)
    repeats: int = Field(default=1, ge=1, le=100)
    min_layers: int | None = Field(default=None, ge=1, le=MOST_LAYERS)
    max_layers: int | None = Field(default=None, ge=1, le=MOST_LAYERS)
    scale: tuple[float, float] | None = None
    encoding: Literal["order", "indicator"] = "order"

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({model for model in models if models.count(model) > 1})
        if repeated:
            raise ValueError(
                f"{', '.join(repeated)} is listed more than once; to use layers several times, set repeats"
            )
        return models

    @field_validator("scale")
    @classmethod
    def _around_one(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None:
            low, high = scale
            if not (0 < low <= 1 <= high < math.inf and low < high):
                raise ValueError(
                    f"scale is [{low:g}, {high:g}]; expected a low number above 0 and a high one with 1 between them,"
                    " such as [0.5, 1.5]: at 1 a layer is as its model has it"
                )
        return scale

    @model_validator(mode="after")
    def _ordered(self) -> StackSearch:
        if self.min_layers is not None and self.max_layers is not None and self.min_layers > self.max_layers:
            raise ValueError(f"min_layers is {self.min_layers}, more than max_layers, {self.max_layers}; swap them")
        return self


class StackHole(Strict):
    """The layers of a model, for a search to choose: ``slices: {search: {models: [...]}}``.

    Attributes:
        search: which stacks of layers are searched.
    """

    search: StackSearch

    def bounds(self, depths: Sequence[int]) -> tuple[int, int]:
        """Returns the fewest and the most layers of a stack.

        Args:
            depths: the number of layers of each of the models.

        Raises:
            ValueError: no stack is within the bounds.
        """
        wanted = self.search
        available = wanted.repeats * sum(depths)
        fewest = wanted.min_layers or max(1, min(min(depths) // 2, wanted.max_layers or MOST_LAYERS))
        most = wanted.max_layers or max(2 * max(depths), fewest)
        if fewest > available:
            raise ValueError(
                f"min_layers is {fewest}, but {sum(depths)} layers, used {wanted.repeats} times at most, make no more"
                f" than {available}; lower min_layers or raise repeats"
            )
        return fewest, min(most, available)


def stack_faults(data: Any) -> Iterator[tuple[Location, str]]:
    """Yields what does not go with a hole for slices, with its location; nothing for a recipe without one.

    Args:
        data: the recipe as plain data, which need not be a recipe.
    """
    if not isinstance(data, dict) or not isinstance(data.get("slices"), dict):
        return
    method = data.get("merge_method")
    if method not in (None, "passthrough"):
        yield (
            ("merge_method",),
            f"a search for slices stacks layers as they are: expected passthrough, found {shown(method)}",
        )
    parameters = data.get("parameters")
    for name in parameters if isinstance(parameters, dict) else ():
        message = "a search for slices sets the parameters of each; remove this, and use the search's scale for scales"
        yield ("parameters", name), message


class Mutations(Strict):
    """The rates of a genetic search's mutations: the probability that a new stack undergoes each.

    Attributes:
        insert: a layer is added.
        delete: a layer is removed.
        swap: two layers change places.
        move_block: adjacent layers move to another depth.
        repeat_block: adjacent layers are repeated right after themselves.
        other_model: a layer is replaced by another model's layer of the same index.
        jitter_scale: one layer's scale changes, where scales are searched.
    """

    insert: float = Field(default=0.1, ge=0, le=1)
    delete: float = Field(default=0.1, ge=0, le=1)
    swap: float = Field(default=0.1, ge=0, le=1)
    move_block: float = Field(default=0.1, ge=0, le=1)
    repeat_block: float = Field(default=0.05, ge=0, le=1)
    other_model: float = Field(default=0.2, ge=0, le=1)
    jitter_scale: float = Field(default=0.3, ge=0, le=1)

    @model_validator(mode="after")
    def _some(self) -> Mutations:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("every rate is 0, so no new stack would be made; raise one of them")
        return self
