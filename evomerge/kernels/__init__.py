"""The engine under the merge methods: tensors read piece by piece, kernels of what is done to each element, measures.

A kernel is one Python function of an element; torch runs it on blocks, or it is compiled as a loop of C.
"""

from evomerge.kernels.fused import PIECE, Fused, LazyTensor, all_finite, combination, pieces
from evomerge.kernels.lines import Lines
from evomerge.kernels.loops import Spans
from evomerge.kernels.magnitudes import Magnitudes, Threshold
from evomerge.kernels.native import compiler
from evomerge.kernels.operands import Operands
from evomerge.kernels.trace import Element, hardshrink, maximum, total

__all__ = [
    "PIECE",
    "Element",
    "Fused",
    "LazyTensor",
    "Lines",
    "Magnitudes",
    "Operands",
    "Spans",
    "Threshold",
    "all_finite",
    "combination",
    "compiler",
    "hardshrink",
    "maximum",
    "pieces",
    "total",
]
