"""`fold_of`: which weights of a layer can hold a factor on what the layer adds to the residual stream.

Multiplying the residual stream by s_1, s_2, ... before each layer is the same as multiplying what layer i adds to it by
c_i = 1 / (s_1 ... s_i), if every layer and the head read the stream through a norm: a norm cancels the factor that the
stream has accumulated. Such scales are searched in Akiba et al. 2024, §3.2, https://arxiv.org/abs/2403.13187.

There is no list of architectures: blocks are recognised by the names of their norms and last projections.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.architecture.configs import parsed_text, parts_of
from evomerge.architecture.layers import Architecture
from evomerge.errors import ArchitectureError

_NORM = re.compile(r"norm|^ln_?\w*$", re.IGNORECASE)
# What a branch ends with: the projection back to the residual stream, or its bias where both lie in one module.
_LAST = re.compile(r"(o_proj|out_proj|c_proj|down_proj|w2|wo|fc2|fc_out|dense|dense_4h_to_h|output_linear)(_bias)?")
# Settings under which a norm comes after the sum instead of before the branch.
_POST_NORM = {"do_layer_norm_before": False, "apply_residual_connection_post_layernorm": True}


@dataclass(frozen=True)
class Fold:
    """Which tensors of a layer are scaled to scale what the layer adds to the residual stream.

    Attributes:
        filters: parts of their names for a recipe's ``filter``, which no other tensor of the model contains.
        offset: whether they are weights w of norms that multiply by 1 + w, so that w becomes c (1 + w) - 1; otherwise
            it becomes c w.
    """

    filters: tuple[str, ...]
    offset: bool

    def includes(self, name: str) -> bool:
        """Returns whether a tensor is scaled."""
        return any(part in name for part in self.filters)

    def shift(self, scale: float) -> float:
        """Returns what is added to a tensor that was multiplied by `scale`."""
        return scale - 1.0 if self.offset else 0.0

    def parameters(self, scale: float) -> dict[str, list[dict[str, Any]]]:
        """Returns passthrough's parameters in a recipe for a layer that adds `scale` times as much to the stream."""
        values = {"scale": (scale, 1.0), "shift": (self.shift(scale), 0.0)}
        return {
            name: [*({"filter": part, "value": folded} for part in self.filters), {"value": default}]
            for name, (folded, default) in values.items()
            if folded != default
        }


def fold_of(config: Mapping[str, Any], names: Iterable[str]) -> Fold:
    """Returns which tensors of a layer are scaled: the norms behind its branches, or their last projections.

    Args:
        config: a transformers config.json.
        names: all tensors' names.

    Raises:
        ArchitectureError: the layers cannot be found, or a scale cannot be folded into them; the reason is given.
    """
    names = tuple(names)
    architecture = Architecture.of(config, names)
    layers: defaultdict[int, list[str]] = defaultdict(list)
    for name in names:
        layer = architecture.layer_of(name)
        if layer is not None:
            layers[layer].append(name[len(architecture.stack) :].partition(".")[2])
    if not layers:
        raise _refusal("the model has no stack of layers")
    if not any(
        _NORM.search(part) for name in names if architecture.position(name) == "after" for part in name.split(".")
    ):
        raise _refusal("no norm comes between the last layer and the head")
    for part in parts_of(config):
        for key, value in _POST_NORM.items():
            if part.get(key) is value:
                raise _refusal(f"config.json has {key}: {value}, so no norm comes before a branch")
    # Layers of one kind have the same names.
    kinds = {frozenset(own): layer for layer, own in reversed(layers.items())}
    found = {kind: _branch_ends(sorted(kind), layer) for kind, layer in kinds.items()}
    behind = {norms for norms, _ in found.values()}
    if len(behind) > 1:
        raise _refusal("only some of the layers have norms behind their branches")
    targets = {
        f"{architecture.stack}{layer}.{rest}"
        for layer, own in layers.items()
        for rest in found[frozenset(own)][1]
    }  # fmt: skip
    return Fold(_filters(names, targets), behind.pop() and _adds_one(config))


def _branch_ends(rests: Sequence[str], layer: int) -> tuple[bool, list[str]]:
    """Returns whether norms end the branches of a block, and the tensors that do.

    Args:
        rests: the names of its tensors from the layer's number on.
        layer: that number, for messages.
    """
    children: defaultdict[str, list[str]] = defaultdict(list)
    for rest in rests:
        children[rest.partition(".")[0]].append(rest)
    # Projections that lie in the block itself are one branch.
    for child in [child for child in children if not _NORM.search(child)]:
        if all(rest in (child, f"{child}.weight", f"{child}.bias") for rest in children[child]):
            children[""] += children.pop(child)
    norms = [child for child in children if _NORM.search(child)]
    branches = [child for child in children if child not in norms]
    for branch in branches:
        if not any(map(_is_last, children[branch])):
            raise _refusal(
                f"layer {layer} has {children[branch][0]}, and no tensor of {branch or 'the block itself'} is known to"
                " be its last projection"
            )
    if len(norms) == 2 * len(branches):
        by_branch = [norm for norm in norms if any(norm.startswith(f"post_{branch}") for branch in branches)]
        behind = by_branch if len(by_branch) == len(branches) else [one for one in norms if one.startswith("post_")]
        if len(behind) == len(branches):
            return True, [rest for norm in behind for rest in children[norm]]
    if len(norms) > len(branches):
        raise _refusal(f"it is not known which of layer {layer}'s norms ({', '.join(norms)}) are behind a branch")
    if all(norm.startswith("post_") for norm in norms):
        raise _refusal(
            f"layer {layer} reads the residual stream without a norm"
            f" ({', '.join(norms) or 'it has none'}), so a factor on the stream changes what the layer computes"
        )
    return False, [rest for branch in branches for rest in children[branch] if _is_last(rest)]


def _is_last(rest: str) -> bool:
    return any(_LAST.fullmatch(part) for part in rest.split("."))


def _filters(names: Sequence[str], targets: set[str]) -> tuple[str, ...]:
    """Returns parts of names: each target contains one of them, and no other tensor does."""
    filters: dict[str, None] = {}
    for target in sorted(targets):
        if any(part in target for part in filters):
            continue
        part = next(part for part in reversed(target.split(".")) if _LAST.fullmatch(part) or _NORM.search(part))
        part = part.removesuffix("_bias")
        others: list[str] = []
        for spelled in (part, f".{part}", f".{part}."):
            others = [name for name in names if spelled in name and name not in targets]
            if spelled in target and not others:
                filters[spelled] = None
                break
        else:
            raise _refusal(f"no filter matches {target} and not {others[0]}")
    return tuple(sorted(filters))


def _adds_one(config: Mapping[str, Any]) -> bool:
    """Returns whether the model's norms multiply by 1 + weight, by running those of transformers."""
    import torch
    from transformers import MODEL_MAPPING

    parsed = parsed_text(config)
    if type(parsed) not in MODEL_MAPPING:
        raise _refusal(
            f'transformers has no model_type "{config.get("model_type")}", so what its norms compute is unknown'
        )
    classes = vars(sys.modules[MODEL_MAPPING[type(parsed)].__module__])
    norms = [made(4) for name, made in classes.items() if re.fullmatch(r"\w*(RMS|Layer)Norm", name)]
    with torch.no_grad():
        found = {bool(norm(torch.ones(1, 4)).any()) for norm in norms if not norm.weight.zero_().any()}
    if len(found) > 1:
        raise _refusal("some of the model's norms multiply by their weight, and others by 1 + weight")
    return True in found


def _refusal(reason: str) -> ArchitectureError:
    return ArchitectureError(f"the scale of a layer cannot be folded into its weights: {reason}; search without scale")
