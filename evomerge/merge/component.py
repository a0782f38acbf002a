"""Merging one component of a larger model: the language part of a model of text and images.

Every model of the recipe is seen through its language part, under the names that its tensors have in the larger
model. So the plan is made as for plain language models; then the larger model's other tensors are added as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from evomerge.architecture import Architecture, LanguagePart
from evomerge.checkpoint import Checkpoint, CheckpointView, TensorInfo
from evomerge.errors import RecipeError
from evomerge.merge.plan import Job, Layout, config_stored_as
from evomerge.recipe import Recipe


class _Renamed(CheckpointView):
    """Some of a checkpoint's tensors under other names.

    Where `whole` has further rows of an embedding or a head, tokens of images for instance, they are its own.
    """

    def __init__(
        self, inner: Checkpoint, names: Mapping[str, str], part: LanguagePart, whole: Checkpoint | None = None
    ) -> None:
        tensors = {}
        self._names = names
        self._whole = whole
        for name, own in names.items():
            info = inner.tensors[own]
            shape = info.shape
            if whole is not None and name in whole.tensors:
                wanted = whole.tensors[name].shape
                # Outside the layers, only embeddings and heads have as many rows as there are tokens.
                tokens = part.config.get("vocab_size")
                if tokens and shape[1:] == wanted[1:] and (tokens,) <= shape[:1] < wanted[:1]:
                    shape = wanted
            tensors[name] = TensorInfo(name, info.dtype, shape)
        where = "" if whole is None else whole.reference
        super().__init__(inner, difference=f"language part {where}", config=part.config, tensors=tensors)

    def made(self, name: str) -> Tensor:
        """See `CheckpointView.made`."""
        own = self.inner.read(self._names[name])
        rows = self.tensors[name].shape[:1]
        if self._whole is None or tuple(own.shape[:1]) == rows:
            return own
        return torch.cat([own, self._whole.read(name)[len(own) :].to(own.dtype)])

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `Checkpoint.piece`."""
        own = self._names[name]
        if self.tensors[name].shape == self.inner.tensors[own].shape:
            return self.inner.piece(own, start, stop)
        return super().piece(name, start, stop)


def language_parts(recipe: Recipe, opened: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Returns the models of a recipe with a component as they are merged, and what the result has besides.

    Args:
        recipe: a recipe that has a component.
        opened: every model that it names.

    Raises:
        RecipeError: the model whose component is merged has no other, or a language model has tokens that it lacks.
        ArchitectureError: a model's layers cannot be found.
    """
    name = _whole_name(recipe)
    whole = opened[name]
    part = LanguagePart.of(whole.config, whole.tensors)
    beside = [tensor for tensor in whole.tensors if tensor not in part.names]
    if not beside:
        message = f"{name} is a language model and nothing else; name the larger model whose language part is merged"
        raise RecipeError([recipe.fault(("component", "language_of"), message)])
    seen: dict[str, Checkpoint] = {}
    faults: list[str] = []
    for model, checkpoint in opened.items():
        own = LanguagePart.of(checkpoint.config, checkpoint.tensors)
        names = {own.renamed(tensor, part): tensor for tensor in checkpoint.tensors if tensor in own.names}
        seen[model] = view = _Renamed(checkpoint, names, own, None if model == name else whole)
        tokens = own.config.get("vocab_size") or 0
        for tensor, info in view.tensors.items():
            most = whole.tensors[tensor].shape if tensor in whole.tensors else info.shape
            if info.shape[1:] == most[1:] and info.shape[:1] >= (tokens,) and info.shape > most:
                faults.append(
                    f"{model} has {info.shape[0]} rows in {names[tensor]}, but {name} has {most[0]} in {tensor}: tokens"
                    " that only a language model has have no place in the result; take them out of that model"
                )
    if faults:
        raise RecipeError([recipe.fault(("component", "language_of"), fault) for fault in faults])
    seen[_rest(name)] = _Renamed(whole, {tensor: tensor for tensor in beside}, part)
    return seen


def completed(layout: Layout, recipe: Recipe) -> Layout:
    """Returns the layout of the whole model, from that of its language part.

    Raises:
        RecipeError: the language models lack a tensor that the whole model's language part has.
    """
    name = _whole_name(recipe)
    view, rest = layout.checkpoints[name], layout.checkpoints[_rest(name)]
    assert isinstance(rest, CheckpointView)
    whole = rest.inner
    part = LanguagePart.of(whole.config, whole.tensors)
    architecture = Architecture.of(view.config, view.tensors)
    made = {job.info.name for job in layout.jobs} | architecture.tied
    lacking = [tensor for tensor in view.tensors if architecture.layer_of(tensor) is None and tensor not in made]
    if lacking:
        message = (
            f"the language models lack {', '.join(lacking[:3])}, which {name} has; merge models of one architecture"
        )
        raise RecipeError([recipe.fault(("component", "language_of"), message)])
    beside = tuple(Job(info, ((_rest(name), tensor),), None, None) for tensor, info in rest.tensors.items())
    config = config_stored_as(recipe, part.within(whole.config, layout.config))
    return dataclasses.replace(layout, donor=whole, config=config, jobs=layout.jobs + beside)


def advice(recipe: Recipe, *models: Checkpoint) -> str:
    """Returns what to add to the news that two models do not fit, where one may be merged into a part of the other."""
    if recipe.component:
        return ""
    larger = [one for one in models if len(LanguagePart.of(one.config, one.tensors).names) < len(one.tensors)]
    if len(larger) != 1:
        return ""
    name = larger[0].reference
    return f'; to merge into the language part of {name}, add "component: {{language_of: {name}}}"'


def _whole_name(recipe: Recipe) -> str:
    assert recipe.component is not None
    return recipe.component.language_of


def _rest(name: str) -> str:
    return f"{name} (all but its language part)"
