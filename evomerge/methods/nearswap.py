"""NearSwap: moves a base toward another model where the two are near."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.kernels import Element, Fused, Operands, combination, maximum
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# Elements nearer than this are taken to be this far apart.
_NEAREST = 1e-6


def _nearswap(operands: Operands, parameters: Parameters) -> Fused:
    ends, t = operands.with_base, float(parameters.shared["t"])
    # The kernel starts from the other model, whose elements it takes over without rounding; so is the base here.
    return Fused.uniform(near, ends, (t,)) if t > 0 else Fused.uniform(combination, ends, (1.0, 0.0))


def near(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of w b + (1 - w) a, w = min(1, t / max(|a - b|, 1e-6))."""
    (base, other), (t,) = blocks, numbers
    step = other - base
    # 1 - w = max(0, 1 - t / max(|a - b|, 1e-6))
    left = maximum(1 - t * (1 / maximum(abs(step), _NEAREST)), 0)
    return other - step * left


NEARSWAP = MergeMethod(
    name="nearswap",
    summary="The base, moved by up to about t at each element toward another model.",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    parameters=(Parameter("t", "How far to move at most; nearer elements are taken over.", low=0.0),),
    base="endpoint",
    models=(1, 1),
    merge=_nearswap,
)
"""w X + (1 - w) B with w = min(1, t / max(|X - B|, 1e-6)): elements nearer than `t` are X's, others move by `t`.

alchemonaut 2024, NearSwap, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""
