"""`Operands`: one tensor of every model that is merged, read piece by piece, and what is measured of it.

A merge runs over pieces, so that memory is bounded by a few of them and never by a tensor. What depends on the tensors
alone, and not on the candidate's numbers, is measured once for each `Operands`; a search keeps them, an `apply` frees
them tensor by tensor.

Every number that is measured is a sum over blocks of one size in one order, taken in float64: its bits do not depend
on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from evomerge.kernels.fused import BLOCK, PIECE, Fused, LazyTensor, combination, difference, distance, pieces
from evomerge.kernels.magnitudes import Magnitudes
from evomerge.kernels.noise import noise_piece
from evomerge.kernels.trace import Kernel

T = TypeVar("T")


class Operands:
    """One tensor of every model that is merged, of one shape and on one device, and what is measured of it.

    Args:
        tensors: one for each model, the base not among them.
        base: the base's; None where the method takes none.
        name: the name of the tensor that is built; the random methods draw by it.
        kept: whether other merges of the same tensors follow, so that measurements are worth preparing for reuse.
    """

    def __init__(
        self, tensors: Sequence[LazyTensor], base: LazyTensor | None, name: str = "", *, kept: bool = False
    ) -> None:
        self.tensors = tuple(tensors)
        self.base = base
        self.name = name
        self.kept = kept
        self._known: dict[Hashable, object] = {}

    @property
    def with_base(self) -> tuple[LazyTensor, ...]:
        """The base, if there is one, then the tensors of the models."""
        return self.tensors if self.base is None else (self.base, *self.tensors)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each of them, and of the result."""
        return self.tensors[0].shape

    @property
    def numel(self) -> int:
        """The number of elements of each of them."""
        return self.tensors[0].numel

    @property
    def device(self) -> torch.device:
        """The device on which they are merged."""
        return self.tensors[0].device

    def once(self, key: Hashable, measure: Callable[[], T]) -> T:
        """Returns the result of the first call of `measure` for `key`.

        Only for what depends on the tensors alone, not on a candidate's numbers.
        """
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]  # type: ignore[return-value]

    def delta(self, model: int, start: int, stop: int) -> Tensor:
        """Returns elements of the task vector of model `model`, X_i - B, flat, float32; it may be changed.

        Without a base, a copy of X_i.
        """
        return self._compared(difference, model).values(start, stop)

    def distance(self, model: int, start: int, stop: int) -> Tensor:
        """Returns the magnitudes of what `delta` gives."""
        return self._compared(distance, model).values(start, stop)

    def whole_delta(self, model: int) -> Tensor:
        """Returns all of `delta` in its shape."""
        return self.delta(model, 0, self.numel).reshape(self.shape)

    def weighted(self, coefficients: Sequence[float]) -> Fused:
        """Returns the merge B + sum of c_i (X_i - B); without a base, the sum of c_i X_i."""
        return Fused.uniform(combination, self.with_base, coefficients)

    def gram(self) -> np.ndarray:
        """Returns the inner products of all pairs, float64, of shape (n, n), measured once.

        Of the task vectors where there is a base, else of the models' tensors themselves.
        """
        reads = [partial(self.delta, model) for model in range(len(self.tensors))]
        return self.once("gram", lambda: _gram(reads, self.numel))

    def gram_with_base(self) -> np.ndarray:
        """Returns the inner products of all pairs of `with_base`, the tensors themselves, measured once."""
        return self.once("gram with base", lambda: _gram([tensor.piece for tensor in self.with_base], self.numel))

    def l1_norm(self, model: int) -> float:
        """Returns the sum of the magnitudes of a task vector, in float64, measured once."""
        return self.once(("l1", model), lambda: self.total(self._compared(distance, model)))

    def magnitudes(self, model: int) -> Magnitudes:
        """Returns the order of the magnitudes of a task vector, which names the threshold of any density."""
        read = partial(self.distance, model)
        return self.once(("magnitudes", model), lambda: Magnitudes(read, self.numel, kept=self.kept))

    def noise(self, seed: int, model: int) -> LazyTensor:
        """Returns the random numbers of model `model` as a further tensor, see `noise_piece`."""

        def drawn(start: int, stop: int) -> Tensor:
            first = start // PIECE
            parts = [
                noise_piece(seed, model, self.name, first + index, min(PIECE, self.numel - here))
                for index, (here, _) in enumerate(pieces(stop, first=first * PIECE))
            ]
            whole = torch.from_numpy(np.concatenate(parts))[start - first * PIECE : stop - first * PIECE]
            return whole.to(self.device)

        return self.derived(("noise", seed, model), drawn)

    def derived(self, key: Hashable, made: Callable[[int, int], Tensor]) -> LazyTensor:
        """Returns a further tensor of the same shape: made piece by piece, or in a search once and kept.

        Args:
            key: see `once`.
            made: (first element, element past the last) to these elements, flat.
        """
        if not self.kept or self.numel == 0:
            return LazyTensor(self.shape, self.device, made)
        return LazyTensor.of(self.once(key, lambda: made(0, self.numel)).view(self.shape))

    def total(self, term: Fused) -> float:
        """Returns the sum of the merged elements of `term`, in float64."""
        return math.fsum(
            float(block.sum(dtype=torch.float64))
            for start, stop in pieces(self.numel)
            for block in torch.split(term.values(start, stop), BLOCK)
        )

    def _compared(self, kernel: Kernel, model: int) -> Fused:
        base = () if self.base is None else (self.base,)
        return self.once((kernel, model), lambda: Fused.uniform(kernel, (*base, self.tensors[model]), ()))


def _gram(reads: Sequence[Callable[[int, int], Tensor]], numel: int) -> np.ndarray:
    found = np.zeros((len(reads), len(reads)))
    for start, stop in pieces(numel):
        parts = [read(start, stop) for read in reads]
        for first, end in pieces(stop - start, BLOCK):
            wide = [part[first:end].to(torch.float64) for part in parts]
            for i, left in enumerate(wide):
                for j in range(i + 1):
                    found[i, j] += float((left * wide[j]).sum())
    return found + np.tril(found, -1).T
