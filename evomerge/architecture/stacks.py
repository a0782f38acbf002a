"""`config_of_stack`: the config of a model whose layers come from others, in an order of its own.

A layer's kind (sliding or full attention, dense or with experts) is said in the config: in lists with an entry for
each layer, which follow the layers; or in numbers that stand for a pattern (``first_k_dense_replace``), which are made
lists where transformers knows one, else set anew, else refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evomerge.architecture.configs import DEPTHS, depth_of, parsed_text, parts_of
from evomerge.errors import ArchitectureError

# Lists that may by chance be as long as the stack and say nothing of its layers.
_NOT_PER_LAYER = re.compile(r"architectures|.*token.*|.*_limit|.*section.*|.*labels|.*languages")
# Texts with a letter for each layer, such as Nemotron's hybrid_override_pattern.
_PATTERN = re.compile(r".*pattern")

# The first so many layers are dense, the others have experts.
_FIRST = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers")
# The last so many layers are of another kind.
_LAST = ("num_kv_shared_layers",)
# Every so many layers one is of another kind; and the name of the first such layer's index.
_EVERY = {
    "attn_layer_period": "attn_layer_offset",
    "expert_layer_period": "expert_layer_offset",
    "moe_layer_freq": "",
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
        origins: for each layer of the stack the config of the model that it comes from, and its index there.

    Raises:
        ArchitectureError: a model has no such layer, or no config can say what kinds of layers these are.
    """
    depth = depth_of(config)
    complete = {id(one): _complete(one) for one, _ in origins}
    layers = [_Layer(complete[id(one)], depth_of(one), index) for one, index in origins]
    wrong = [layer for layer in layers if not 0 <= layer.index < layer.depth]
    if wrong or not depth:
        most = wrong[0].depth if wrong else depth
        raise ArchitectureError(
            f"layers {[layer.index for layer in wrong or layers]} asked for, but the model has {most} layers; "
            f"use indices from 0 to {most - 1}"
        )
    result = copy.deepcopy(dict(config))
    *outer, text = parts_of(result)
    own = _complete(config)
    for key, value in own.items():
        new = _followed(key, value, layers, depth)
        if new == value:
            continue
        # What is the same for all layers needs no saying where it was not said.
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


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text config with what config.json leaves out, or says in another form, as transformers reads it."""
    parsed = parsed_text(config)
    said = {key: value for key, value in parts_of(config)[-1].items() if value is not None}
    return {**({} if parsed is None else parsed.to_dict()), **said}


def _followed(key: str, value: Any, layers: Sequence[_Layer], depth: int) -> Any:
    """A value of the config for the stack: one entry a layer, or layers' indices; else as it is."""
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
        return [place for place, layer in enumerate(layers) if layer.index in (layer.config.get(key) or ())]
    return value


def _entry(key: str, value: Any, layer: _Layer) -> Any:
    """What a per-layer list says of a layer: its own model's, else that of the model that gives the config."""
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

    def flags(key: str, of: Callable[[_Layer, int], bool]) -> list[bool]:
        return [of(layer, int(layer.config.get(key, own[key]))) for layer in layers]

    numbers = [key for key, value in own.items() if type(value) is int and _LISTS.get(key) not in text]
    for key in numbers:
        if key in _FIRST:
            first = flags(key, lambda layer, count: layer.index < count)
            if first != sorted(first, reverse=True):
                raise _refusal(key, own[key], "the first layers", [place for place, flag in enumerate(first) if flag])
            _say(text, own, key, sum(first))
        elif key in _LAST:
            last = flags(key, lambda layer, count: layer.index >= layer.depth - count)
            if last != sorted(last):
                raise _refusal(key, own[key], "the last layers", [place for place, flag in enumerate(last) if flag])
            _say(text, own, key, sum(last))
        elif key in _EVERY and own[key] > 1:
            offset = int(own.get(_EVERY[key], 0))
            kept = flags(key, partial(_on_beat, offset))
            if kept != [place % own[key] == offset for place in range(len(layers))]:
                raise _refusal(key, own[key], "every so many layers", [i for i, flag in enumerate(kept) if flag])
    if type(own.get("decoder_sparse_step")) is int and own["decoder_sparse_step"] > 1:
        # The same in a list: every layer has experts but those that are named.
        dense = flags("decoder_sparse_step", lambda layer, step: (layer.index + 1) % step != 0)
        named = set(text.get("mlp_only_layers") or ())
        text["decoder_sparse_step"] = 1
        text["mlp_only_layers"] = [place for place, flag in enumerate(dense) if flag or place in named]
    if type(own.get("moe_layer_interval")) is int:
        _set_interval(text, own, layers)
    if own.get("scale_attn_by_inverse_layer_idx") and any(layer.index != i for i, layer in enumerate(layers)):
        raise _refusal("scale_attn_by_inverse_layer_idx", True, "each layer by its place", [])


def _on_beat(offset: int, layer: _Layer, period: int) -> bool:
    return layer.index % period == offset


def _set_interval(text: dict[str, Any], own: Mapping[str, Any], layers: Sequence[_Layer]) -> None:
    """Sets ERNIE's three numbers: which layer of each interval has experts, from a first to a last layer."""
    interval, start, end = (int(own.get(f"moe_layer_{name}", 0)) for name in ("interval", "start_index", "end_index"))
    sparse = [
        place
        for place, layer in enumerate(layers)
        if (layer.index + 1) % interval == 0 and start <= layer.index <= (layer.depth - 1 if end == -1 else end)
    ]
    if not sparse:
        raise _refusal("moe_layer_interval", interval, "some layers", sparse)
    if sparse == [place for place in range(sparse[0], sparse[-1] + 1) if (place + 1) % interval == 0]:
        step = interval
    elif sparse == list(range(sparse[0], sparse[-1] + 1)):
        step = 1
    else:
        raise _refusal("moe_layer_interval", interval, "every so many layers", sparse)
    _say(text, own, "moe_layer_interval", step)
    _say(text, own, "moe_layer_start_index", sparse[0])
    if not (end == -1 and sparse[-1] + step >= len(layers)):
        _say(text, own, "moe_layer_end_index", sparse[-1])


def _say(text: dict[str, Any], own: Mapping[str, Any], key: str, value: int) -> None:
    """Sets a number, if only where the config says it or it is another."""
    if key in text or own.get(key) != value:
        text[key] = value


def _refuse_other_kinds(
    result: Mapping[str, Any], own: Mapping[str, Any], layers: Sequence[_Layer], depth: int
) -> None:
    """Raises an ArchitectureError where transformers reads another kind of layer from the config than it was."""
    parsed = parsed_text(result)
    for key, value in {} if parsed is None else parsed.to_dict().items():
        before = own.get(key)
        if not isinstance(value, list) or not isinstance(before, list) or len(value) != len(layers):
            continue
        expected = _followed(key, before, layers, depth)
        if isinstance(expected, list) and len(expected) == len(layers) and value != expected:
            place = next(i for i, (is_, was) in enumerate(zip(value, expected, strict=True)) if is_ != was)
            raise ArchitectureError(
                f"layer {place} of the stack was layer {layers[place].index}, with {expected[place]!r} in {key}; but"
                f" from the config of the stack transformers reads {value[place]!r}, and no entry of it can say"
                " otherwise; keep layers of this kind at places where the pattern has them"
            )


def _refusal(key: str, value: object, what: str, found: list[int]) -> ArchitectureError:
    places = f"; in this stack, these are its layers {found}" if found else ""
    return ArchitectureError(
        f"config.json has {key}: {value}, which makes {what} of another kind than the others{places}, and no number "
        "can say so; keep layers of each kind at places where the pattern has them"
    )
