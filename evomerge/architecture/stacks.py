"""`config_of_stack`: the config of a model whose layers come from others, in any order.

A layer's kind (sliding or full attention, dense or with experts) is said in the config: in lists with an entry for
each layer, which follow the layers; or in numbers that stand for a pattern (``first_k_dense_replace``), which become
lists where transformers knows one, else are adjusted, else refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from evomerge.architecture.configs import DEPTHS, depth_of, once_each, parsed_text, parts_of
from evomerge.errors import ArchitectureError

# Lists that may happen to be as long as the stack, and are not about its layers.
_NOT_PER_LAYER = re.compile(r"architectures|.*token.*|.*_limit|.*section.*|.*labels|.*languages")
# Texts with a letter for each layer, such as Nemotron's hybrid_override_pattern.
_PATTERN = re.compile(r".*pattern")


def _first(count: int, depth: int) -> list[bool]:
    return [i < count for i in range(depth)]


def _last(count: int, depth: int) -> list[bool]:
    return [i >= depth - count for i in range(depth)]


def _every(period: int, offset: int, depth: int) -> list[bool]:
    return [period > 0 and i % period == offset for i in range(depth)]


def _interval(step: int, start: int, end: int, depth: int) -> list[bool]:
    most = depth - 1 if end == -1 else end
    return [step > 0 and (i + 1) % step == 0 and start <= i <= most for i in range(depth)]


# Numbers that stand for a pattern: which layers of a model are of another kind than the rest, by these and its depth.
_PATTERNS: dict[tuple[str, ...], Callable[..., list[bool]]] = {
    ("first_k_dense_replace",): _first,
    ("num_dense_layers",): _first,
    ("n_dense_layers",): _first,
    ("num_kv_shared_layers",): _last,
    ("attn_layer_period", "attn_layer_offset"): _every,
    ("expert_layer_period", "expert_layer_offset"): _every,
    ("moe_layer_freq",): lambda period, depth: _every(period, 0, depth),
    ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index"): _interval,
}
# Where one of these lists says it for each layer, the numbers have no effect.
_LISTS = {
    "attn_layer_period": "layers_block_type",
    "first_k_dense_replace": "mlp_layer_types",
    "moe_layer_freq": "mlp_layer_types",
    "num_dense_layers": "mlp_layer_types",
}


@dataclass(frozen=True)
class _Layer:
    """Where a layer of the stack comes from.

    Attributes:
        config: its model's text config, with the values that config.json leaves out.
        depth: how many layers this model has.
        index: which of them it is.
    """

    config: Mapping[str, Any]
    depth: int
    index: int


def config_of_stack(config: Mapping[str, Any], origins: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """The config of a model whose layers come from this model and others like it.

    The depth follows, and so does what the config says of each layer, by lists or by numbers.

    Args:
        config: the config of the model that gives all but the layers; it is not changed.
        origins: for each layer of the stack the config of the model that it comes from, and its index there,
            which is less than that config's depth.

    Raises:
        ArchitectureError: no config can say what kinds of layers these are.
    """
    depth = depth_of(config)
    models = {id(one): (_complete(one), depth_of(one)) for one in {id(one): one for one, _ in origins}.values()}
    layers = [_Layer(*models[id(one)], index) for one, index in origins]
    result = copy.deepcopy(dict(config))
    *outer, text = parts_of(result)
    own = _complete(config)
    for key, value in own.items():
        new = _followed(key, value, layers, depth)
        if new == value:
            continue
        # What is the same for all layers is not added where the config left it out.
        if key in text or (isinstance(new, list) and len({*map(repr, value), *map(repr, new)}) > 1):
            text[key] = new
    for part in outer:
        for key, value in part.items():
            if key in DEPTHS and value == depth:
                part[key] = len(layers)
            else:
                part[key] = _followed(key, value, [_Layer(part, depth, layer.index) for layer in layers], depth)
    depths = [key for key in DEPTHS if key in text] or ["num_hidden_layers"]
    text |= dict.fromkeys(depths, len(layers))
    _set_numbers(text, own, layers)
    _refuse_other_kinds(result, own, layers, depth)
    return result


@once_each
def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text config, completed with what transformers adds to config.json."""
    parsed = parsed_text(config)
    said = {key: value for key, value in parts_of(config)[-1].items() if value is not None}
    return {**({} if parsed is None else parsed.to_dict()), **said}


def _followed(key: str, value: Any, layers: Sequence[_Layer], depth: int) -> Any:
    """A value of the config for the stack: one entry for each layer, or layers' indices; else unchanged."""
    named = not _NOT_PER_LAYER.fullmatch(key)
    if not named or not (isinstance(value, list) or (isinstance(value, str) and _PATTERN.fullmatch(key))):
        return value
    if len(value) == depth:
        entries = [_entry(key, value, layer) for layer in layers]
        return "".join(entries) if isinstance(value, str) else copy.deepcopy(entries)
    if isinstance(value, str):
        return value
    indices = all(type(item) is int and 0 <= item < depth for item in value)
    if "layer" in key and indices and len(set(value)) == len(value):
        return [i for i, layer in enumerate(layers) if layer.index in (layer.config.get(key) or ())]
    return value


def _entry(key: str, value: Any, layer: _Layer) -> Any:
    """The entry for a layer: from its own model's list, else from that of the model that gives the config."""
    theirs = layer.config.get(key)
    if isinstance(theirs, type(value)) and len(theirs) == layer.depth:
        return theirs[layer.index]
    if layer.index < len(value):
        return value[layer.index]
    raise ArchitectureError(
        f"{key} says what each of {len(value)} layers is, but nothing of layer {layer.index} of another model; "
        "stack layers of models whose configs have it"
    )


def _set_numbers(text: dict[str, Any], own: Mapping[str, Any], layers: Sequence[_Layer]) -> None:
    """Sets the numbers that stand for a pattern so that each layer stays what it was; refuses where none can."""
    for keys, pattern in _PATTERNS.items():
        values = [own.get(key) or 0 for key in keys]
        if type(own.get(keys[0])) is not int or _LISTS.get(keys[0]) in text:
            continue
        kinds = [
            pattern(*(layer.config.get(key, own.get(key)) or 0 for key in keys), layer.depth)[layer.index]
            for layer in layers
        ]
        marked = [i for i, kind in enumerate(kinds) if kind]
        # Each number stays, or is a count, a step of 1, or the first or the last layer of its kind.
        numbers = (len(marked), 1, *marked[:1], *marked[-1:])
        options = product(*((value, *numbers) for value in values))
        new = next((option for option in options if pattern(*option, len(layers)) == kinds), None)
        if new is None:
            raise _refusal(
                keys[0], values[0], f"some layers of another kind; in this stack, these are its layers {marked}"
            )
        for key, number in zip(keys, new, strict=True):
            if key in text or own.get(key) != number:
                text[key] = number
    step = own.get("decoder_sparse_step")
    if type(step) is int and step > 1:
        # The same as a list: every layer has experts but those that are named.
        steps = [layer.config.get("decoder_sparse_step", step) for layer in layers]
        dense = {i for i, layer in enumerate(layers) if (layer.index + 1) % steps[i]}
        text["decoder_sparse_step"] = 1
        text["mlp_only_layers"] = sorted(dense | set(text.get("mlp_only_layers") or ()))
    if own.get("scale_attn_by_inverse_layer_idx") and any(layer.index != i for i, layer in enumerate(layers)):
        raise _refusal("scale_attn_by_inverse_layer_idx", True, "each layer depend on its index")


def _refuse_other_kinds(
    result: Mapping[str, Any], own: Mapping[str, Any], layers: Sequence[_Layer], depth: int
) -> None:
    """Raises an ArchitectureError where transformers would make a layer of another kind than it was."""
    parsed = parsed_text(result)
    for key, value in {} if parsed is None else parsed.to_dict().items():
        before = own.get(key)
        if not isinstance(value, list) or not isinstance(before, list) or len(value) != len(layers):
            continue
        expected = _followed(key, before, layers, depth)
        if isinstance(expected, list) and len(expected) == len(layers) and value != expected:
            at = next(i for i, (is_, was) in enumerate(zip(value, expected, strict=True)) if is_ != was)
            raise ArchitectureError(
                f"layer {at} of the stack was layer {layers[at].index}, with {expected[at]!r} in {key}; but"
                f" from the config of the stack transformers reads {value[at]!r}, and no entry of it can say"
                " otherwise; keep layers of this kind where the pattern has them"
            )


def _refusal(key: str, value: object, what: str) -> ArchitectureError:
    return ArchitectureError(
        f"config.json has {key}: {value}, which makes {what}, and no number can say so; keep layers of each kind where"
        " the pattern has them"
    )
