"""`differences`: how two checkpoints do not fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evomerge.architecture.layers import EMBEDDING, TIED_HEAD, Architecture


class Tensors(Protocol):
    """What `differences` needs of a `Checkpoint`, which is in a module of the same layer and not imported.

    Attributes:
        reference: how messages call it.
        config: its config.json.
        tensors: by name what has a shape.
    """

    reference: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Any]


def differences(first: Tensors, other: Tensors, *, most: int = 5) -> list[str]:
    """Sentences that say how two checkpoints do not fit together; none where they do.

    Names and shapes are compared; dtypes may differ. A head that only one of them stores is no difference
    where it is tied. Vocabularies of different sizes are reported once.

    Args:
        first: a checkpoint, as the base.
        other: the one compared to it.
        most: the most differences listed; where there are more, a last sentence counts the others.

    Raises:
        ArchitectureError: the layers of one of them cannot be found.
    """
    ours = Architecture.of(first.config, first.tensors)
    theirs = Architecture.of(other.config, other.tensors)
    found = []
    depth = min(ours.num_layers, theirs.num_layers)
    if ours.num_layers != theirs.num_layers:
        found.append(f"{first.reference} has {ours.num_layers} layers, {other.reference} has {theirs.num_layers}")
    for mine, here, your in ((first, ours, other), (other, theirs, first)):
        only = [
            name
            for name in mine.tensors.keys() - your.tensors.keys() - here.tied
            # What follows from a difference in depth is reported already.
            if (layer := here.layer_of(name)) is None or layer < depth
        ]
        if only:
            found.append(f"{mine.reference} has {_some(sorted(only))} that {your.reference} lacks")
    vocabularies, shapes = [], []
    for name in first.tensors:
        mine_shape = first.tensors[name].shape
        your_shape = other.tensors[name].shape if name in other.tensors else mine_shape
        if mine_shape == your_shape:
            continue
        if _is_vocabulary(ours, name) and mine_shape[1:] == your_shape[1:]:
            vocabularies.append(
                f"the vocabularies differ in size: {name} has {mine_shape[0]} rows in {first.reference} and "
                f"{your_shape[0]} in {other.reference}; say in the recipe which tokenizer to use (tokenizer_source)"
            )
        else:
            shapes.append(
                f"{name} has shape {list(mine_shape)} in {first.reference} and {list(your_shape)} in {other.reference}"
            )
    found += vocabularies[:1] + shapes
    return found if len(found) <= most else [*found[:most], f"and {len(found) - most} more differences"]


def _some(names: Sequence[str]) -> str:
    """A few names and how many there are."""
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensors ({', '.join(names[:3])}{more})"


def _is_vocabulary(architecture: Architecture, name: str) -> bool:
    """Whether a tensor is an embedding or a head."""
    named = EMBEDDING.search(name) or TIED_HEAD.fullmatch(name) or "head" in name
    return bool(named) and architecture.position(name) != "layers"
