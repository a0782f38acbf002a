"""What a genetic search does to stacks: mutations by name, crossover, and the stacks that it starts from.

Every function returns a stack within the bounds of its space, and the stack itself where it cannot do what it does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from evomerge.search.stack_space import Layer, Stack, StackSpace

Mutation = Callable[[StackSpace, Stack, np.random.Generator], Stack]

NEIGHBOUR = 0.5
"""How often an insertion continues the layer before it, and a swap is one of adjacent layers."""

SCALE_STEP = 1 / 6
"""The deviation of a change of a scale's logarithm, as a fraction of the range's."""


def insert(space: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Adds a layer: half of the time one that is next in some model, otherwise any that may still be used."""
    free = _free(space, stack, space.layers)
    if len(stack) == space.max_layers or not free:
        return stack
    at = int(rng.integers(len(stack) + 1))
    following = [layer for layer in free if at and layer.layer == stack[at - 1].layer + 1]
    near = following and rng.random() < NEIGHBOUR
    layer = _chosen(following if near else free, rng)
    return (*stack[:at], layer, *stack[at:])


def delete(space: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Removes a layer."""
    if len(stack) == space.min_layers:
        return stack
    at = int(rng.integers(len(stack)))
    return stack[:at] + stack[at + 1 :]


def swap(_: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Lets two layers change places: half of the time adjacent ones."""
    if len(stack) < 2:
        return stack
    one = int(rng.integers(len(stack) - 1))
    other = one + 1 if rng.random() < NEIGHBOUR else int(rng.integers(one + 1, len(stack)))
    return (*stack[:one], stack[other], *stack[one + 1 : other], stack[one], *stack[other + 1 :])


def move_block(_: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Moves adjacent layers to another depth."""
    if len(stack) < 2:
        return stack
    first, end = _block(len(stack), len(stack) - 1, rng)
    rest = stack[:first] + stack[end:]
    to = int(rng.integers(len(rest)))
    to += to >= first  # anywhere but where they were
    return rest[:to] + stack[first:end] + rest[to:]


def repeat_block(space: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Repeats adjacent layers right after themselves, those of them that may be used again."""
    first, end = _block(len(stack), len(stack), rng)
    again = _free(space, stack, stack[first:end])[: space.max_layers - len(stack)]
    return stack[:end] + tuple(again) + stack[end:]


def other_model(space: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Replaces a layer by another model's layer of the same index."""
    at = int(rng.integers(len(stack)))
    own = stack[at]
    same = [layer for layer in space.layers if layer.layer == own.layer and layer.model != own.model]
    others = _free(space, stack, same)
    if not others:
        return stack
    return (*stack[:at], _chosen(others, rng)._replace(scale=own.scale), *stack[at + 1 :])


def jitter_scale(space: StackSpace, stack: Stack, rng: np.random.Generator) -> Stack:
    """Changes the scale of a layer a little."""
    if space.scale is None:
        return stack
    low, high = space.scale
    at = int(rng.integers(len(stack)))
    step = rng.normal() * SCALE_STEP * math.log(high / low)
    changed = stack[at]._replace(scale=space.nearest_scale(stack[at].scale * math.exp(step)))
    return (*stack[:at], changed, *stack[at + 1 :])


MUTATIONS: Mapping[str, Mutation] = {
    "insert": insert,
    "delete": delete,
    "swap": swap,
    "move_block": move_block,
    "repeat_block": repeat_block,
    "other_model": other_model,
    "jitter_scale": jitter_scale,
}
"""Every mutation by the name that has its rate in a recipe's ``search: {mutations: ...}``."""


def crossed(space: StackSpace, one: Stack, two: Stack, rng: np.random.Generator) -> Stack:
    """Returns the first layers of one stack and then the last ones of the other, both cut at the same relative depth.

    Layers of the second that may not be used again are left out. If the stack is then too short, layers of the second
    from before the cut come in between, the deepest of them.
    """
    part = rng.random()
    head = one[: round(part * len(one))]
    at = round(part * len(two))
    tail = _free(space, head, two[at:])[: space.max_layers - len(head)]
    missing = max(0, space.min_layers - len(head) - len(tail))
    between = _free(space, (*head, *tail), reversed(two[:at]))[:missing]
    return space.repaired((*head, *reversed(between), *tail))


def depth_wise(space: StackSpace) -> list[Stack]:
    """Returns the stacks of one model's first k layers and another's from k on, for all pairs of models and all k."""
    found = [
        space.repaired((*_range(one, 0, k), *_range(two, k, space.depths[two])))
        for one in range(len(space.depths))
        for two in range(len(space.depths))
        if one != two
        for k in range(1, min(space.depths[one], space.depths[two] - 1) + 1)
    ]
    return list(dict.fromkeys(found))


def block_repeats(space: StackSpace) -> list[Stack]:
    """Returns the models with one block of adjacent layers repeated once, for all models and blocks."""
    if space.repeats == 1:
        return []
    found = [
        (*_range(model, 0, end), *_range(model, first, depth))
        for model, depth in enumerate(space.depths)
        for first in range(depth)
        for end in range(first + 1, depth + 1)
        if space.min_layers <= depth + end - first <= space.max_layers
    ]
    return list(dict.fromkeys(found))


def _range(model: int, first: int, end: int) -> list[Layer]:
    return [Layer(model, i) for i in range(first, end)]


def _free(space: StackSpace, stack: Iterable[Layer], wanted: Iterable[Layer]) -> list[Layer]:
    """Returns those of the wanted layers, in order, that may be used besides a stack's."""
    used = Counter(layer[:2] for layer in stack)
    found = []
    for layer in wanted:
        if used[layer[:2]] < space.repeats:
            used[layer[:2]] += 1
            found.append(layer)
    return found


def _chosen(layers: list[Layer], rng: np.random.Generator) -> Layer:
    return layers[int(rng.integers(len(layers)))]


def _block(depth: int, most: int, rng: np.random.Generator) -> tuple[int, int]:
    """Returns the first layer and the end of a random block of at most `most` layers; short ones are more frequent."""
    size = min(int(rng.geometric(0.3)), most)
    first = int(rng.integers(depth - size + 1))
    return first, first + size
