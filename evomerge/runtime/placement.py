"""Where each tensor of a checkpoint belongs in a model of transformers: a whole parameter, or a part of one.

transformers renames tensors as it loads them, and fuses some: the experts of a layer become one parameter. Its own
table of conversions is used here, so that a model filled in place is the model that `from_pretrained` would load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.checkpoint import TensorInfo
from evomerge.errors import ArchitectureError

_Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Part:
    """A tensor of the checkpoint, or several joined.

    Attributes:
        shape: its shape.
        views: for each of these tensors by name, the steps to the view of it in a tensor of that shape.
    """

    shape: tuple[int, ...]
    views: Mapping[str, tuple[_Step, ...]]


def places(model: Any, layout: Iterable[TensorInfo], reference: str) -> dict[str, Tensor | None]:
    """Returns what to write each tensor to: a parameter of the model, a buffer, or a view of a part of one.

    Args:
        model: a model of transformers.
        layout: the tensors of a checkpoint.
        reference: what messages call the checkpoint.

    Returns:
        A tensor of the model's dtype and the checkpoint's shape for each name; writing to it changes the model. It
        need not be contiguous. None where the model does not use the tensor.

    Raises:
        ArchitectureError: a shape is not the model's, a parameter has no tensor, or transformers computes a
            parameter by more than joining and transposing tensors.
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

    found: dict[str, Tensor | None] = dict.fromkeys(infos)
    groups: dict[str, dict[Any, list[_Part]]] = {}
    # In transformers' own order: experts are stacked by their numbers.
    for name in sorted(infos, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, targets)
        if target not in targets and name in targets:
            target, pattern = name, None
        part = _Part(infos[name].shape, {name: ()})
        if target in targets and pattern is None:
            found |= _views(part, targets[target], infos)
        elif target in targets:
            groups.setdefault(target, {}).setdefault(pattern, []).append(part)
    for target, collected in groups.items():
        part = _joined(of_pattern[next(iter(collected))], collected, target, targets[target])
        found |= _views(part, targets[target], infos)
    _refuse_gaps(model, found, reference)
    return found


def _joined(converter: Any, collected: Mapping[str, list[_Part]], target: str, whole: Tensor) -> _Part:
    """Returns how a conversion joins tensors into the one parameter `target`."""
    state = dict(collected)
    for operation in converter.operations:
        kind = type(operation).__name__
        if kind == "MergeModulelist":
            state = {pattern: [_stacked(parts, operation.dim)] for pattern, parts in state.items()}
        elif kind == "Concatenate":
            # In the order of the conversion's patterns, not of the names.
            parts = [part for pattern in converter.source_patterns for part in state.get(pattern, [])]
            state = {converter.target_patterns[0]: [_concatenated(parts, operation.dim)]}
        elif kind == "Transpose" and len(state) == 1:
            ((pattern, (part,)),) = state.items()
            if not (operation.check_dims and part.shape == tuple(whole.shape)):
                state = {pattern: [_transposed(part, operation.dim0, operation.dim1)]}
        else:
            break
    else:
        kind = type(converter.operations[-1]).__name__
        joined = [part for parts in state.values() for part in parts]
        if len(joined) == len(converter.target_patterns) == 1:
            return joined[0]
    name = next(name for parts in collected.values() for part in parts for name in part.views)
    raise ArchitectureError(
        f"{name}: transformers computes {', '.join(converter.target_patterns)} (such as {target}) from it with {kind},"
        " so a search cannot write it into the model in place; save the model again with this version of transformers,"
        " or make the merge without searching: evomerge apply"
    )


def _stacked(parts: Sequence[_Part], dim: int) -> _Part:
    shape = list(parts[0].shape)
    shape.insert(dim, len(parts))
    return _through(shape, parts, [partial(torch.select, dim=dim, index=index) for index in range(len(parts))])


def _concatenated(parts: Sequence[_Part], dim: int) -> _Part:
    sizes = [part.shape[dim] for part in parts]
    shape = list(parts[0].shape)
    shape[dim] = sum(sizes)
    ends = accumulate(sizes)
    steps = [
        partial(torch.narrow, dim=dim, start=end - size, length=size) for end, size in zip(ends, sizes, strict=True)
    ]
    return _through(shape, parts, steps)


def _transposed(part: _Part, dim: int, other: int) -> _Part:
    shape = list(part.shape)
    shape[dim], shape[other] = shape[other], shape[dim]
    return _through(shape, [part], [partial(torch.transpose, dim0=dim, dim1=other)])


def _through(shape: Sequence[int], parts: Sequence[_Part], steps: Sequence[_Step]) -> _Part:
    """Returns the parts joined to one of `shape`; each step returns the view of its part."""
    pairs = zip(parts, steps, strict=True)
    return _Part(tuple(shape), {name: (step, *rest) for part, step in pairs for name, rest in part.views.items()})


def _views(part: _Part, whole: Tensor, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Returns the views of a parameter that a part's tensors are written to."""
    first = next(iter(part.views))
    _check_shape(first if len(part.views) == 1 else f"{first}, joined with others,", part.shape, whole)
    with torch.no_grad():
        views = {name: reduce(lambda view, step: step(view), steps, whole) for name, steps in part.views.items()}
    for name, view in views.items():
        _check_shape(name, infos[name].shape, view)
    return views


def _check_shape(name: str, shape: tuple[int, ...], expected: Tensor) -> None:
    if shape != tuple(expected.shape):
        raise ArchitectureError(
            f"{name} has shape {list(shape)}, but the model that config.json describes expects"
            f" {list(expected.shape)}; is it the right config.json?"
        )


def _refuse_gaps(model: nn.Module, found: Mapping[str, Tensor | None], reference: str) -> None:
    """Raises an ArchitectureError where a parameter of the model is not filled, or filled only in part."""
    # Tied parameters are one object; views of one parameter share its storage.
    filled: dict[int, int] = {}
    for view in found.values():
        if view is not None:
            whole = view if view._base is None else view._base
            filled[id(whole)] = filled.get(id(whole), 0) + view.numel()
    missing = [name for name, parameter in model.named_parameters() if filled.get(id(parameter), 0) < parameter.numel()]
    if missing:
        raise ArchitectureError(
            f"{reference}: {len(missing)} of the model's parameters are missing or incomplete in the checkpoint, such"
            f" as {', '.join(missing[:3])}; it has, for example, {', '.join(list(found)[:3])}"
        )
