"""Where each tensor of a checkpoint goes in a model of transformers: a whole parameter, or a part of one.

transformers renames tensors as it loads them, and fuses some: the experts of a layer become one parameter. Its own
table of conversions is asked here, so that a model filled in place is the model that `from_pretrained` would load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.checkpoint import TensorInfo
from evomerge.errors import ArchitectureError


@dataclass(frozen=True)
class _Part:
    """What is put at one place: a tensor of the checkpoint, or others joined.

    Attributes:
        shape: its shape.
        name: the tensor's name, where it is one.
        joined: how `parts` are joined: "stack" along a new `dim`, "concatenate" along `dim`, or "transpose"
            of `dim` and `other` in the one part.
    """

    shape: tuple[int, ...]
    name: str = ""
    joined: str = ""
    parts: tuple[_Part, ...] = ()
    dim: int = 0
    other: int = 0


def places(model: Any, layout: Iterable[TensorInfo], reference: str) -> dict[str, Tensor | None]:
    """Returns the place of each tensor in the model: a parameter, a buffer, or a view of a part of one.

    Args:
        model: a model of transformers.
        layout: the tensors of a checkpoint.
        reference: how messages call it.

    Returns:
        A tensor of the model's dtype and the checkpoint's shape for each name; writing to it changes the model. It
        need not be contiguous. None where the model has no use for the tensor.

    Raises:
        ArchitectureError: a shape is not the model's, a parameter has no tensor, or transformers converts
            tensors in a way that is no placement.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    infos = {info.name: info for info in layout}
    targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    of_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix = getattr(model, "base_model_prefix", None)

    found: dict[str, Tensor | None] = {}
    groups: dict[str, dict[str, list[_Part]]] = {}
    # transformers' own order: experts are stacked in the order of their numbers.
    for name in sorted(infos, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, targets)
        if target not in targets and name in targets:
            target, pattern = name, None
        if target not in targets:
            found[name] = None
        elif pattern is None:
            _put(targets[target], _Part(infos[name].shape, name), found)
        else:
            part = _Part(infos[name].shape, name)
            groups.setdefault(target, {}).setdefault(pattern, []).append(part)
    for target, collected in groups.items():
        converter = of_pattern[next(iter(collected))]
        _put(targets[target], _joined(converter, collected, target, targets[target]), found)
    _refuse_gaps(model, found, f"{reference}: ", list(infos))
    return {name: found[name] for name in infos}


def _joined(converter: Any, collected: Mapping[str, list[_Part]], target: str, place: Tensor) -> _Part:
    """Returns how a conversion joins tensors into the one parameter `target`."""
    state = dict(collected)
    for operation in converter.operations:
        kind = type(operation).__name__
        several = len(state) > 1
        if kind == "MergeModulelist":
            state = {pattern: [_stacked(parts, operation.dim)] for pattern, parts in state.items()}
        elif kind == "Concatenate":
            # In the conversion's order of patterns, whatever that of the names.
            parts = [part for pattern in converter.source_patterns for part in state.get(pattern, [])]
            state = {converter.target_patterns[0]: [_concatenated(parts, operation.dim)]}
        elif kind == "Transpose" and not several:
            ((pattern, (part,)),) = state.items()
            if not (operation.check_dims and part.shape == tuple(place.shape)):
                state = {pattern: [_transposed(part, operation.dim0, operation.dim1)]}
        else:
            raise _no_placement(converter, collected, target, kind)
    left = [part for parts in state.values() for part in parts]
    if len(left) != 1 or len(converter.target_patterns) != 1:
        raise _no_placement(converter, collected, target, type(converter.operations[-1]).__name__)
    return left[0]


def _stacked(parts: Sequence[_Part], dim: int) -> _Part:
    shape = list(parts[0].shape)
    shape.insert(dim, len(parts))
    return _Part(tuple(shape), joined="stack", parts=tuple(parts), dim=dim)


def _concatenated(parts: Sequence[_Part], dim: int) -> _Part:
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _Part(tuple(shape), joined="concatenate", parts=tuple(parts), dim=dim)


def _transposed(part: _Part, dim: int, other: int) -> _Part:
    shape = list(part.shape)
    shape[dim], shape[other] = shape[other], shape[dim]
    return _Part(tuple(shape), joined="transpose", parts=(part,), dim=dim, other=other)


def _put(place: Tensor, part: _Part, found: dict[str, Tensor | None]) -> None:
    """Notes the place of each tensor of which `part` consists; `place` is where the whole of it goes."""
    if tuple(place.shape) != part.shape:
        name = part.name or next(_names(part))
        whole = "" if part.name else ", joined with others,"
        raise ArchitectureError(
            f"{name}{whole} has shape {list(part.shape)}, but the model that config.json describes wants"
            f" {list(place.shape)}; is it the right config.json?"
        )
    if part.name:
        found[part.name] = place
        return
    with torch.no_grad():
        start = 0
        for index, inner in enumerate(part.parts):
            if part.joined == "stack":
                view = place.select(part.dim, index)
            elif part.joined == "concatenate":
                view = place.narrow(part.dim, start, inner.shape[part.dim])
                start += inner.shape[part.dim]
            else:
                view = place.transpose(part.dim, part.other)
            _put(view, inner, found)


def _names(part: _Part) -> Iterator[str]:
    if part.name:
        yield part.name
    for inner in part.parts:
        yield from _names(inner)


def _no_placement(converter: Any, collected: Mapping[str, list[_Part]], target: str, kind: str) -> ArchitectureError:
    names = [part.name for parts in collected.values() for part in parts]
    return ArchitectureError(
        f"{names[0]}: transformers makes {', '.join(converter.target_patterns)} (such as {target}) of it by {kind}, so"
        " no part of the model can be written in its stead, as a search does; save the model again with this"
        " version of transformers, or make the merge without searching: evomerge apply"
    )


def _refuse_gaps(model: nn.Module, found: Mapping[str, Tensor | None], place: str, names: Sequence[str]) -> None:
    """Raises an ArchitectureError where a parameter of the model is not filled, or filled only in part."""
    # Tied parameters are one object; views of one parameter share its storage.
    filled: dict[int, int] = {}
    for view in found.values():
        if view is not None:
            whole = view if view._base is None else view._base
            filled[id(whole)] = filled.get(id(whole), 0) + view.numel()
    lacking = [name for name, parameter in model.named_parameters() if filled.get(id(parameter), 0) < parameter.numel()]
    if lacking:
        raise ArchitectureError(
            f"{place}no tensor, or too few, for {len(lacking)} of the model's parameters, such as"
            f" {', '.join(lacking[:3])}; found, for example, {', '.join(names[:3])}"
        )
