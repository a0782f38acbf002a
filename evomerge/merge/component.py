"""Merging one component of a larger model: the language part of a model of text and images.

Every model of the recipe is seen through its language part, under the names that its tensors have in the larger
model. So the plan is made as for plain language models; then the larger model's other tensors are added as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from evomerge.architecture import Architecture, LanguagePart
from evomerge.checkpoint import Checkpoint, CheckpointView
from evomerge.errors import RecipeError
from evomerge.merge.plan import Job, Layout, TensorRef, config_stored_as
from evomerge.merge.renamed import RenamedCheckpoint
from evomerge.recipe import Recipe


def language_parts(recipe: Recipe, opened: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Returns the models of a recipe with a component as they are merged, and what else the result has.

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
        # Outside the layers, only embeddings and heads have a row for each token.
        tokens = own.config.get("vocab_size") or 0
        padding: dict[str, Checkpoint] = {}
        for tensor in [tensor for tensor in names if tensor in whole.tensors]:
            shape, wanted = checkpoint.tensors[names[tensor]].shape, whole.tensors[tensor].shape
            if shape[1:] != wanted[1:] or shape == wanted or shape[:1] < (tokens,):
                continue
            if shape > wanted:
                faults.append(
                    f"{model} has {shape[0]} rows in {names[tensor]}, but {name} has {wanted[0]} in {tensor}: tokens"
                    " that only a language model has cannot be in the result; remove them from that model"
                )
            elif tokens:
                padding[tensor] = whole
        difference = f"language part {'' if model == name else whole.reference}"
        seen[model] = RenamedCheckpoint(checkpoint, names, own.config, difference, padding)
    if faults:
        raise RecipeError([recipe.fault(("component", "language_of"), fault) for fault in faults])
    rest = {tensor: tensor for tensor in beside}
    seen[_rest(name)] = RenamedCheckpoint(whole, rest, part.config, "language part ")
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
    beside = tuple(Job(info, (TensorRef(_rest(name), tensor),), None, None) for tensor, info in rest.tensors.items())
    config = config_stored_as(recipe, part.within(whole.config, layout.config))
    return dataclasses.replace(layout, donor=whole, config=config, jobs=layout.jobs + beside)


def advice(recipe: Recipe, *models: Checkpoint) -> str:
    """Returns advice for two models that do not fit, where one may be merged into the language part of the other."""
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
