"""Arguments for any merge method, drawn from what it declares."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.kernels import LazyTensor, Operands
from evomerge.kernels.noise import FIRST
from evomerge.methods import METHODS, MergeMethod, Parameters

method = METHODS.__getitem__

# Binary fractions: sums of weights that cancel, and votes that tie, do so exactly in float32 and float64.
VALUES = {
    "weight": (0.5, 0.25, -0.75, 0.0, 1.0, 0.625),
    "density": (0.0, 0.1, 0.5, 0.77, 1.0),
    "lambda": (1.0, 0.7, -0.5, 0.0),
    "rank": (1.0, 0.5, 2.0, 0.0),
    "scale": (1.0, 0.0, -0.3, 1.7),
    "shift": (0.0, -0.75, 0.125),
    "t": (0.0, 0.3, 0.5, 0.9, 1.0, 1.25, -0.5),
    "seed": (0, 7),
    "gamma": (0.0, 0.01, 0.1, 0.9),
    "epsilon": (0.0, 0.004, 0.05, 0.09),
}


@dataclass
class Arguments:
    tensors: list[torch.Tensor]
    base: torch.Tensor | None
    parameters: Parameters
    name: str = "layer"

    def merge(self, method: MergeMethod) -> torch.Tensor:
        return merge_tensors(method, self.tensors, self.base, self.parameters, self.name)

    def operands(self, *, kept: bool = False) -> Operands:
        base = None if self.base is None else LazyTensor.of(self.base)
        return Operands([LazyTensor.of(tensor) for tensor in self.tensors], base, self.name, kept=kept)

    def noise(self, source: int) -> np.ndarray:
        """The random whole numbers of a source, from 0 on, as float64."""
        tensor = self.operands().noise(int(self.parameters.shared.get("seed", 0)), source)
        return tensor.piece(0, tensor.numel).numpy().reshape(tensor.shape).astype(np.float64) - FIRST


def merge_tensors(method, tensors, base, parameters, name=""):
    """The merge of tensors in memory, float32."""
    base = None if base is None else LazyTensor.of(base)
    found = method(Operands([LazyTensor.of(tensor) for tensor in tensors], base, name), parameters)
    return result_of(found, tensors[0].shape)


def complete(method, shared, models):
    """The given values, with the defaults filled in."""
    defaults = {p.name: p.default for p in method.parameters if p.default is not None}
    per_model = {p.name for p in method.parameters if p.per_model}
    once = {name: value for name, value in defaults.items() if name not in per_model}
    each = {name: value for name, value in defaults.items() if name in per_model}
    return Parameters({**once, **shared}, tuple({**each, **own} for own in models))


def tensors_of(kind, shape, count, rng, dtype=torch.float32):
    """Draws a base and `count` tensors, rounded to `dtype` and cast to float32."""
    base = rng.normal(size=shape) * 0.05
    deltas = rng.normal(size=(count, *shape)) * 0.01
    if kind == "equal magnitudes":
        base = rng.integers(-4, 5, size=shape) * 0.25
        deltas = rng.choice([-0.5, 0.5, 0.0], size=(count, *shape))
    elif kind == "copies":
        deltas[:] = 0
    elif kind == "one copy":
        deltas[0] = 0
    elif kind == "zeros":
        base, deltas = base * 0, deltas * 0
    elif kind == "tiny":  # about the norms that count as none
        base, deltas = base * 1e-7, deltas * 1e-7
    elif kind == "far apart":
        deltas = deltas * 20
    else:
        assert kind == "normal"

    def cast(array):
        return torch.tensor(np.asarray(array)).to(dtype).to(torch.float32)

    return cast(base), [cast(base + delta) for delta in deltas]


def fewest_and_most(method, most=4):
    return method.models[0], min(most, method.models[1] or most)


def some_value(parameter, rng):
    if parameter.kind == "bool":
        return bool(rng.integers(2))
    if parameter.name in VALUES:
        valid = [value for value in VALUES[parameter.name] if parameter.fault(value) is None]
        return rng.choice(valid).item()
    low = parameter.low if math.isfinite(parameter.low) else 0.0
    high = parameter.high if math.isfinite(parameter.high) else low + 1.0
    return float(rng.uniform(low, high)) if parameter.kind == "float" else int(rng.integers(low, low + 12))


def draw(method, shape, seed, kind="normal", dtype=torch.float32):
    """Draws arguments with every parameter given; the weights do not sum to zero.

    Where a base is optional, there is none for odd seeds.
    """
    rng = np.random.default_rng(seed)
    fewest, most = fewest_and_most(method)
    count = int(rng.integers(fewest, most + 1))
    base, tensors = tensors_of(kind, shape, count, rng, dtype)
    shared = {p.name: some_value(p, rng) for p in method.parameters if not p.per_model}
    models = [{p.name: some_value(p, rng) for p in method.parameters if p.per_model} for _ in range(count)]
    if "weight" in models[0] and sum(own["weight"] for own in models) == 0:
        models[0]["weight"] += 0.5
    parameters = complete(method, shared, models)
    without = method.base == "unused" or (method.base == "optional" and seed % 2)
    return Arguments(tensors, None if without else base, parameters)


def defaults(method, shape, seed=0, kind="normal", count=None):
    """Draws tensors; parameters are the defaults, and where there is none, 0.5."""
    rng = np.random.default_rng(seed)
    count = count or fewest_and_most(method)[1]
    base, tensors = tensors_of(kind, shape, count, rng)
    required = [p for p in method.parameters if p.default is None]
    parameters = complete(
        method,
        {p.name: 0.5 for p in required if not p.per_model},
        [{p.name: 0.5 for p in required if p.per_model} for _ in range(count)],
    )
    return Arguments(tensors, None if method.base == "unused" else base, parameters)


def same_bits(left, right):
    return (
        left.shape == right.shape
        and left.dtype == right.dtype == torch.float32
        and torch.equal(left.contiguous().view(torch.int32), right.contiguous().view(torch.int32))
    )


def result_of(found, shape):
    """Carries out what a method answered."""
    flat = torch.zeros(math.prod(shape), dtype=torch.float32)
    for start, stop in found.parts():
        found.merge(start, stop, flat[start:stop])
    return flat.view(shape)
