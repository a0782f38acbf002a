"""The engine under the merge methods: tensors read piece by piece, kernels of what is done to each element, measures.

A kernel is one Python function of an element; torch runs it on blocks, or it is compiled as a loop of C.
"""

from evomerge.kernels.fused import PIECE, Fused, SourceTensor, all_finite
from evomerge.kernels.native import compiler
from evomerge.kernels.operands import Operands

__all__ = ["PIECE", "Fused", "Operands", "SourceTensor", "all_finite", "compiler"]
