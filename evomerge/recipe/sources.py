"""What a recipe merges: models, slices of layers, modules; and how it names a model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from evomerge.document import Location, Strict, shown, suggestion
from evomerge.recipe.values import Value


class ModelPath(Strict):
    """A model as a mapping, as mergekit allows.

    Attributes:
        path: a folder or a Hub id.
        revision: a branch, tag or commit.
    """

    path: str
    revision: str | None = None


class ModelParts(Strict):
    """A model with an adapter, as a mapping, as mergekit allows.

    Attributes:
        model: the model.
        lora: the adapter that is merged into it.
        override_architecture: accepted and ignored: it picks mergekit's list of tensors, and here their names suffice.
    """

    model: str | ModelPath
    lora: str | ModelPath | None = None
    override_architecture: str | None = None


def _model_name(raw: Any, info: ValidationInfo) -> Any:
    """Returns a model as text, renamed by the context if there is one, see `Recipe.with_models`."""
    text = _model_text(raw)
    return info.context(text) if info.context and isinstance(text, str) else text


def _tokens_name(raw: Any, info: ValidationInfo) -> Any:
    return raw if raw in ("base", "union") else _model_name(raw, info)


def _model_text(raw: Any) -> Any:
    """Returns a model as text, also if it is given as a mapping of its parts, as mergekit allows."""
    if not isinstance(raw, dict):
        return raw
    keys = [*(ModelPath if "path" in raw else ModelParts).model_fields]
    for key in raw:
        if key not in keys:
            raise ValueError(f'unknown key "{key}"{suggestion(str(key), [*keys, "path"])}')
    parts = [
        part if "path" in raw else _model_text(part) for key in keys[:2] if (part := raw.get(key)) not in (None, "")
    ]
    if raw.get(keys[0]) is None:
        raise ValueError(f'expected "model" or "path" in it, found {", ".join(map(str, raw)) or "nothing"}')
    for part in parts:
        if not isinstance(part, str):
            raise ValueError(f"expected text, found {shown(part)}; put it in quotes")
    return ("@" if "path" in raw else "+").join(parts)


_MODEL = str | ModelPath | ModelParts

ModelName = Annotated[str, BeforeValidator(_model_name, json_schema_input_type=_MODEL)]
"""A model as recipes name it: ``path[@revision][+adapter[@revision]]``; a mapping of these parts becomes that text."""

TokensName = Annotated[str, BeforeValidator(_tokens_name, json_schema_input_type=_MODEL)]
"""Whose vocabulary: ``base``, ``union``, or a model."""


def none_is_empty(raw: Any) -> Any:
    """Returns `raw`; for a key with nothing after it, an empty mapping."""
    return {} if raw is None else raw


Section = Annotated[dict[str, Value], BeforeValidator(none_is_empty, json_schema_input_type=dict[str, Value] | None)]
"""Parameters by name."""


def exactly_one(section: Strict, *keys: str) -> None:
    """Raises ValueError unless exactly one of `keys` is given in `section`."""
    given = [key for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        listed = ", ".join(f'"{key}"' for key in keys[:-1]) + f' and "{keys[-1]}"'
        raise ValueError(f"expected exactly one of {listed}, found {' and '.join(given) or 'none of them'}")


class ModelEntry(Strict):
    """One model of a merge over whole models.

    Attributes:
        model: a folder or a Hub id, as ``path[@revision][+adapter[@revision]]``, or a mapping of these parts.
        parameters: the merge method's values for this model.
    """

    model: ModelName
    parameters: Section = Field(default_factory=dict)


class LayerSource(Strict):
    """A range of one model's layers.

    Attributes:
        model: a folder or a Hub id, as in `models`.
        layer_range: the first layer, counted from 0, and the one after the last.
        parameters: the merge method's values for these layers.
    """

    model: ModelName
    layer_range: tuple[int, int]
    parameters: Section = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered(self) -> LayerSource:
        first, end = self.layer_range
        if not 0 <= first < end:
            raise ValueError(f"layer_range is [{first}, {end}]; it must go from 0 or more to a higher number")
        return self


class Slice(Strict):
    """Layers of the result: the merge of its sources' layers; each source has the same number.

    Attributes:
        sources: the layers that are merged.
        base_model: overrides the recipe's.
        parameters: values for all sources that do not have their own.
        residual_weight: accepted and ignored, as in mergekit.
    """

    sources: tuple[LayerSource, ...] = Field(min_length=1)
    base_model: ModelName | None = None
    parameters: Section = Field(default_factory=dict)
    residual_weight: float | None = None

    @model_validator(mode="after")
    def _equal_lengths(self) -> Slice:
        lengths = [source.layer_range[1] - source.layer_range[0] for source in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"its sources have {lengths} layers; give each the same number")
        return self

    @property
    def num_layers(self) -> int:
        """The number of layers of the result that this slice makes."""
        first, end = self.sources[0].layer_range
        return end - first


class Module(Strict):
    """A part of a model that is merged in its own way, such as its text decoder; or, as the only one, all of it.

    Attributes:
        models: the models of a merge over all layers. A module has one of `models` and `slices`.
        slices: the layers of the result from the first to the last.
        parameters: values for all models and slices that do not have their own.
    """

    models: tuple[ModelEntry, ...] | None = Field(default=None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    parameters: Section = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> Module:
        exactly_one(self, "models", "slices")
        return self

    def listed(self) -> tuple[str, ...]:
        """Returns every model that is merged here, in order, with repetitions."""
        if self.models is not None:
            return tuple(entry.model for entry in self.models)
        return tuple(source.model for part in self.slices or () for source in part.sources)

    def depth_at(self, location: Location, depth: int) -> int | None:
        """Returns the number of layers that a value at `location` in this module spans; None if its slices differ.

        Args:
            location: keys and indices, starting from the module.
            depth: the number of layers of the models if they are merged whole.
        """
        if self.slices is None:
            return depth
        if location[:1] == ("slices",) and isinstance(location[1], int):
            return self.slices[location[1]].num_layers
        lengths = {part.num_layers for part in self.slices}
        return lengths.pop() if len(lengths) == 1 else None
