"""`Operands`: one tensor of every model that is merged, read piece by piece, and what is measured of it.

A merge runs over pieces, so that memory is bounded by a few of them and never by a tensor. What depends on the tensors
alone, and not on the candidate's numbers, is measured once for each `Operands`; a search keeps them, an `apply` lets go
of them tensor by tensor.

Every number that is measured is a sum over blocks of one size in one order, taken in float64: its bits do not depend
on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from evomerge.kernels.fused import BLOCK, PIECE, Fused, SourceTensor, combination, difference, displaced, distance
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
        kept: whether other merges of the same tensors follow, so that what is measured should be made quick to
            ask for again.
    """

    def __init__(
        self, tensors: Sequence[SourceTensor], base: SourceTensor | None, name: str = "", *, kept: bool = False
    ) -> None:
        self.tensors = tuple(tensors)
        self.base = base
        self.name = name
        self.kept = kept
        self._known: dict[Hashable, object] = {}

    @property
    def required_base(self) -> SourceTensor:
        """The base, for a method that declares that it needs one."""
        assert self.base is not None
        return self.base

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
        """Where they are merged."""
        return self.tensors[0].device

    def once(self, key: Hashable, measure: Callable[[], T]) -> T:
        """Returns what `measure` returned the first time that it was asked for under `key`.

        For whatever depends on the tensors alone; not for what depends on a candidate's numbers.
        """
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]  # type: ignore[return-value]

    def delta(self, model: int, start: int, stop: int) -> Tensor:
        """Returns elements of the task vector of model `model`, X_i - B, flat, float32, free to be changed.

        Without a base, a copy of X_i.
        """
        return self._compared(difference, model).values(start, stop)

    def distance(self, model: int, start: int, stop: int) -> Tensor:
        """Returns the magnitudes of what `delta` gives."""
        return self._compared(distance, model).values(start, stop)

    def whole_delta(self, model: int) -> Tensor:
        """Returns the whole of `delta` in its shape."""
        return self.delta(model, 0, self.numel).reshape(self.shape)

    def weighted(self, coefficients: Sequence[float]) -> Fused:
        """Returns the merge B + sum of c_i (X_i - B); without a base, the sum of c_i X_i."""
        if self.base is None:
            return Fused.uniform(combination, self.tensors, coefficients)
        return Fused.uniform(displaced, (self.base, *self.tensors), coefficients)

    def gram(self) -> np.ndarray:
        """Returns the inner products of all pairs, float64, of shape (n, n), measured once.

        Of the task vectors where there is a base, else of the models' tensors themselves.
        """
        return self.once("gram", lambda: self._gram([partial(self.delta, model) for model in self._models]))

    def gram_with_base(self) -> np.ndarray:
        """Returns the inner products of all pairs of tensors as they are, the base being the last, measured once."""
        tensors = [*self.tensors, *([] if self.base is None else [self.base])]
        return self.once("gram with base", lambda: self._gram([tensor.piece for tensor in tensors]))

    def l1_norm(self, model: int) -> float:
        """Returns the sum of the magnitudes of a task vector, in float64, measured once."""
        return self.once(("l1", model), lambda: self.total(self._compared(distance, model)))

    def magnitudes(self, model: int) -> Magnitudes:
        """Returns the order of the magnitudes of a task vector, which names the threshold of any density."""
        read = partial(self.distance, model)
        return self.once(("magnitudes", model), lambda: Magnitudes(read, self.numel, kept=self.kept))

    def noise(self, seed: int, model: int) -> SourceTensor:
        """Returns the random numbers of model `model` as a further source, see `noise_piece`."""

        def drawn(start: int, stop: int) -> Tensor:
            parts = [
                noise_piece(seed, model, self.name, first // PIECE, min(PIECE, self.numel - first))
                for first in range(start // PIECE * PIECE, stop, PIECE)
            ]
            first = start // PIECE * PIECE
            whole = torch.from_numpy(np.concatenate(parts))[start - first : stop - first]
            return whole.to(self.device)

        return self.derived(("noise", seed, model), drawn)

    def derived(self, key: Hashable, made: Callable[[int, int], Tensor]) -> SourceTensor:
        """Returns a further source, of the shape of the tensors: made piece by piece, or in a search once and kept.

        Args:
            key: see `once`.
            made: (first element, element past the last) to these elements, flat.
        """
        if not self.kept or self.numel == 0:
            return SourceTensor(self.shape, self.device, made)
        held = self.once(key, lambda: made(0, self.numel))
        return SourceTensor(self.shape, self.device, lambda start, stop: held[start:stop])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yields the first element and the one past the last of each piece."""
        for start in range(0, self.numel, PIECE):
            yield start, min(start + PIECE, self.numel)

    def total(self, term: Fused) -> float:
        """Returns the sum of the merged elements of `term`, in float64."""
        return math.fsum(
            float(block.sum(dtype=torch.float64))
            for start, stop in self.pieces()
            for block in torch.split(term.values(start, stop), BLOCK)
        )

    @property
    def _models(self) -> range:
        return range(len(self.tensors))

    def _compared(self, kernel: Kernel, model: int) -> Fused:
        base = () if self.base is None else (self.base,)
        return self.once((kernel, model), lambda: Fused.uniform(kernel, (self.tensors[model], *base), ()))

    def _gram(self, reads: Sequence[Callable[[int, int], Tensor]]) -> np.ndarray:
        found = np.zeros((len(reads), len(reads)))
        for start, stop in self.pieces():
            parts = [read(start, stop) for read in reads]
            for first in range(0, stop - start, BLOCK):
                wide = [part[first : first + BLOCK].to(torch.float64) for part in parts]
                for i, left in enumerate(wide):
                    for j in range(i + 1):
                        found[i, j] += float((left * wide[j]).sum())
        return found + np.tril(found, -1).T
