"""`differences`: how two checkpoints do not fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from evomerge.architecture.layers import EMBEDDING, TIED_HEAD, Architecture


class _Shaped(Protocol):
    """A tensor's shape, as `TensorInfo` has it."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Tensors(Protocol):
    """What `differences` needs of a `Checkpoint`, which lies on the same floor and is not imported.

    Attributes:
        reference: how messages call it.
        config: its config.json.
        tensors: shapes by name.
    """

    @property
    def reference(self) -> str: ...  # noqa: D102

    @property
    def config(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def tensors(self) -> Mapping[str, _Shaped]: ...  # noqa: D102


def differences(first: Tensors, other: Tensors, *, most: int = 5) -> list[str]:
    """Sentences that say how two checkpoints do not fit together; none where they do.

    Names and shapes are compared; dtypes may differ. A head that only one of them stores is no difference
    where it is tied. A different size of the vocabulary is told as such, once.

    Args:
        first: a checkpoint, as the base.
        other: the one compared to it.
        most: the most differences told; where there are more, a last sentence counts the others.

    Raises:
        ArchitectureError: the layers of one of them cannot be found.
    """
    ours = Architecture.of(first.config, first.tensors)
    theirs = Architecture.of(other.config, other.tensors)
    found = []
    depth = min(ours.num_layers, theirs.num_layers)

    def past(architecture: Architecture, name: str) -> bool:
        """Whether only the deeper of the two has this tensor's layer."""
        layer = architecture.layer_of(name)
        return layer is not None and layer >= depth

    if ours.num_layers != theirs.num_layers:
        found.append(f"{first.reference} has {ours.num_layers} layers, {other.reference} has {theirs.num_layers}")
    for mine, here, your in ((first, ours, other), (other, theirs, first)):
        only = [
            name
            for name in mine.tensors
            if name not in your.tensors
            and name not in here.tied
            # What follows from a difference in depth is told already.
            and not past(here, name)
        ]
        if only:
            found.append(f"{mine.reference} has {_some(only)} that {your.reference} lacks")

    shared = [name for name in first.tensors if name in other.tensors]
    unequal = [name for name in shared if first.tensors[name].shape != other.tensors[name].shape]
    vocabulary = [name for name in unequal if _vocabulary_differs(ours, name, first, other)]
    if vocabulary:
        name = vocabulary[0]
        found.append(
            f"the vocabularies differ in size: {name} has {first.tensors[name].shape[0]} rows in "
            f"{first.reference} and {other.tensors[name].shape[0]} in {other.reference}; "
            "say in the recipe which tokenizer to use (tokenizer_source)"
        )
    found += [
        f"{name} has shape {list(first.tensors[name].shape)} in {first.reference} "
        f"and {list(other.tensors[name].shape)} in {other.reference}"
        for name in unequal
        if name not in vocabulary
    ]
    if len(found) > most:
        return [*found[:most], f"and {len(found) - most} more differences"]
    return found


def _some(names: Sequence[str]) -> str:
    """A few names and how many there are."""
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensors ({', '.join(names[:3])}{more})"


def _vocabulary_differs(architecture: Architecture, name: str, first: Tensors, other: Tensors) -> bool:
    """Whether a tensor is an embedding or a head, and differs in nothing but its rows."""
    mine, your = first.tensors[name].shape, other.tensors[name].shape
    outside = architecture.position(name) != "layers"
    named = EMBEDDING.search(name) or TIED_HEAD.fullmatch(name) or "head" in name
    return bool(outside and named and len(mine) == len(your) and mine[1:] == your[1:])
