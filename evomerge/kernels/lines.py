"""`Lines`: the rows or the columns of a tensor as vectors, what is measured of each, and a number for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evomerge.kernels.fused import PIECE, Fused, LazyTensor, combination, pieces
from evomerge.kernels.operands import Operands
from evomerge.kernels.trace import Element


class Lines:
    """The vectors that a tensor is made of.

    Args:
        operands: the tensors.
        columns: whether they run along the first dimension; else along the last. A tensor of one dimension, or of
            none, is one vector.
    """

    def __init__(self, operands: Operands, *, columns: bool) -> None:
        shape = operands.shape or (1,)
        self._operands = operands
        self._columns = columns
        self.length = shape[0 if columns else -1]
        self.count = math.prod(shape[1:] if columns else shape[:-1])

    def gram(self) -> Tensor:
        """Returns the inner products of the vectors of all pairs of models, float64, of shape (n, n, count).

        Of the task vectors where there is a base, else of the models' tensors themselves; measured once.
        """
        return self._operands.once(("gram of lines", self._columns), self._gram)

    def spread(self, numbers: Tensor) -> LazyTensor:
        """Returns a tensor in which each element has the number of its vector.

        Args:
            numbers: one for each vector, float32, of shape (count,).
        """

        def rows(start: int, stop: int) -> Tensor:
            first, end = start // self.length, -(-stop // self.length)
            offset = start - first * self.length
            return numbers[first:end].repeat_interleave(self.length)[offset : offset + stop - start]

        def columns(start: int, stop: int) -> Tensor:
            first = start % self.count
            times = -(-(first + stop - start) // self.count)
            return (numbers.repeat(times) if times > 1 else numbers)[first : first + stop - start]

        return LazyTensor(self._operands.shape, self._operands.device, columns if self._columns else rows)

    def weighted(self, coefficients: Sequence[Tensor]) -> Fused:
        """Returns B + sum of c_i (X_i - B), or without a base the sum of c_i X_i, c_i being each vector's own.

        Args:
            coefficients: for each model one number for each vector, of shape (count,).
        """
        spread = [self.spread(numbers.float()) for numbers in coefficients]
        return Fused.uniform(_combination_of_lines, (*self._operands.with_base, *spread), ())

    def groups(self) -> Iterator[tuple[int, int]]:
        """Yields the first row and the one past the last of parts of about a piece."""
        rows, width = (self.length, self.count) if self._columns else (self.count, self.length)
        return pieces(rows, max(1, PIECE // max(1, width)))

    def _gram(self) -> Tensor:
        operands, models = self._operands, range(len(self._operands.tensors))
        width = self.count if self._columns else self.length
        found = torch.zeros((len(models), len(models), self.count), dtype=torch.float64, device=operands.device)
        for first, stop in self.groups():
            parts = [operands.delta(i, first * width, stop * width).double().view(-1, width) for i in models]
            for i in models:
                for j in range(i + 1):
                    products = parts[i] * parts[j]
                    if self._columns:
                        found[i, j] += products.sum(dim=0)
                    else:
                        found[i, j, first:stop] = products.sum(dim=1)
                    found[j, i] = found[i, j]
        return found


def _combination_of_lines(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of `Lines.weighted`: perhaps the base, the tensors, and as many coefficients as tensors."""
    count = len(blocks) // 2
    return combination(blocks[:-count], blocks[-count:])
