"""`Drawing`: what a picture of a recipe shows: heat maps of numbers, the path of a stack, what a search may choose."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from evomerge.architecture.configs import depth_of
from evomerge.checkpoint import Reference
from evomerge.errors import EvomergeError, RecipeError
from evomerge.paths import find
from evomerge.recipe import Recipe, StackHole
from evomerge.recipe.values import MOST_LAYERS
from evomerge.report.heat import HeatMap, heat_maps
from evomerge.report.names import printable, short_names
from evomerge.report.path import StackPath, stack_path


@dataclass(frozen=True)
class Choice:
    """What a search for slices may choose from.

    Attributes:
        models: for each model its index among the drawing's models, and its depth where it is known.
        facts: the bounds, a sentence each.
    """

    models: tuple[tuple[int, int | None], ...]
    facts: tuple[str, ...]


Panel = HeatMap | StackPath | Choice


@dataclass(frozen=True)
class Drawing:
    """A picture of a recipe.

    Attributes:
        title: what the recipe does.
        facts: what holds for all of it, a line each.
        models: short names of the models, different from each other.
        panels: what is drawn, each with a heading.
    """

    title: str
    facts: tuple[str, ...]
    models: tuple[str, ...]
    panels: tuple[tuple[str, Panel], ...]


def drawing_of(recipe: Recipe) -> Drawing:
    """Returns the picture of a recipe; of its models, configs are read where they are on this machine, and no weights.

    Args:
        recipe: a recipe with or without holes, merged by any method.

    Raises:
        RecipeError: it has more layers than a model can have.
    """
    for location, module in recipe.modules_by_place().items():
        layers = sum(part.num_layers for part in module.slices or ())
        if layers > MOST_LAYERS:
            message = f"the slices have {layers:,} layers; a picture shows up to {MOST_LAYERS:,}"
            raise RecipeError([recipe.fault((*location, "slices"), message)])
    names = recipe.references()
    depths = {name: depth for name in names if (depth := _depth(name, recipe.folders)) is not None}
    models = short_names(names)
    panels: list[tuple[str, Panel]] = []
    if recipe.stack_hole is not None:
        panels.append(("layers to choose from", _choice(recipe.stack_hole, names, depths)))
    for location, module in recipe.modules_by_place().items():
        where = f"{printable(str(location[-1]))}: " if location else ""
        path = stack_path(recipe, module, names)
        if path is not None:
            panels.append((f"{where}layers", path))
        for heat in heat_maps(recipe, module, dict(zip(names, models, strict=True)), depths):
            if path is not None and recipe.merge_method == "passthrough" and not recipe.holes():
                continue  # its scales are in the path
            panels.append((f"{where}{printable(heat.parameter)}", heat))
    merged = [models[names.index(name)] for name in recipe.parents()]
    drawn = {panel.parameter for _, panel in panels if isinstance(panel, HeatMap)}
    facts = _facts(recipe, dict(zip(names, models, strict=True)), drawn)
    if not panels:
        facts = (*facts, "no number differs by model or layer")
    return Drawing(f"{printable(recipe.merge_method)} of {', '.join(merged)}", facts, models, tuple(panels))


def _facts(recipe: Recipe, models: Mapping[str, str], drawn: Set[str]) -> tuple[str, ...]:
    facts = []
    if recipe.base_model is not None:
        facts.append(f"base model: {models[recipe.base_model]}")
    if recipe.component is not None:
        facts.append(f"the language model of {models[recipe.component.language_of]}")
    given = {name: value for name, value in recipe.parameters.items() if name not in drawn}
    plain = [f"{name} {_plain(value)}" for name, value in given.items() if isinstance(value, int | float)]
    if plain:
        facts.append(f"for all: {', '.join(plain)}")
    if recipe.tasks:
        facts.append(f"tasks: {', '.join(Path(entry.task).stem for entry in recipe.tasks)}")
    if recipe.holes():
        settings = recipe.settings()
        facts.append(f"search: {settings.optimizer}, {settings.evaluations:,} evaluations, seed {settings.seed}")
    return tuple(map(printable, facts))


def _plain(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _choice(hole: StackHole, names: Sequence[str], depths: Mapping[str, int]) -> Choice:
    wanted = hole.search
    models = tuple((names.index(name), depths.get(name)) for name in wanted.models)
    known = [depth for _, depth in models if depth is not None]
    if len(known) == len(models):
        with contextlib.suppress(ValueError):
            fewest, most = hole.bounds(known)
            bounds = f"{fewest} to {most} layers"
    else:
        fewest_text = wanted.min_layers or "half of the shallowest model's"
        bounds = f"{fewest_text} to {wanted.max_layers or 'twice the deepest model’s'} layers"
    uses = "each layer once at most" if wanted.repeats == 1 else f"each layer up to {wanted.repeats} times"
    order = "in any order" if wanted.encoding == "order" else "in their models' order"
    scale = "" if wanted.scale is None else f"each with a scale from {wanted.scale[0]:g} to {wanted.scale[1]:g}"
    return Choice(models, tuple(filter(None, (bounds, f"{uses}, {order}", scale))))


def _depth(name: str, folders: Sequence[Path]) -> int | None:
    """Returns a model's number of layers by its config.json; None where that is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        reference = Reference.parse(name, folders)
        folder = find(reference.model, folders, os.path.isdir)
        found = folder / "config.json" if folder else None
        if found is None:
            cached = try_to_load_from_cache(reference.model, "config.json", revision=reference.revision)
            found = Path(cached) if isinstance(cached, str) else None
        config = json.loads(found.read_bytes()) if found else None
        depth = depth_of(config) if isinstance(config, dict) else 0
        return depth if 0 < depth <= MOST_LAYERS else None
    except (OSError, ValueError, EvomergeError):  # of a model that is not here, or has another kind of file
        return None
