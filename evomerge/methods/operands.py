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
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from evomerge.methods.magnitudes import Magnitudes
from evomerge.methods.noise import noise_piece

BLOCK = 32_000
"""Elements that are summed or ranked together: under the 32,768 from which torch shares work out among threads, so that
a sum has the same bits however many there are."""

PIECE = 8 * BLOCK
"""Elements of a piece, the unit in which tensors are read, noise is drawn and results are written: a few float32
temporaries of it fit in the caches, and it is worth sharing out among threads."""

T = TypeVar("T")


@dataclass(frozen=True)
class SourceTensor:
    """A tensor that can be read piece by piece, from memory or from a file.

    Attributes:
        shape: its shape.
        device: where its pieces are handed out.
        piece: (first element, element past the last) to these elements, flat, in the dtype of the source; the
            result is never written to.
    """

    shape: tuple[int, ...]
    device: torch.device
    piece: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> SourceTensor:
        """Returns a tensor in memory, of any dtype, as a source."""
        flat = tensor.detach().reshape(-1)
        return cls(tuple(tensor.shape), tensor.device, lambda start, stop: flat[start:stop])

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def whole(self) -> Tensor:
        """Returns all of it as float32, in its shape; it is never written to."""
        return self.piece(0, self.numel).float().reshape(self.shape)


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

    def delta(self, source: int, start: int, stop: int) -> Tensor:
        """Returns elements of the task vector of model `source`, X_i - B, flat, float32, free to be changed.

        Without a base, a copy of X_i.
        """
        tensor = self.tensors[source].piece(start, stop).float()
        return tensor.clone() if self.base is None else tensor - self.base.piece(start, stop).float()

    def whole_delta(self, source: int) -> Tensor:
        """Returns the whole of `delta` in its shape."""
        return self.delta(source, 0, self.numel).reshape(self.shape)

    def gram(self) -> np.ndarray:
        """Returns the inner products of all pairs, float64, of shape (n, n), measured once.

        Of the task vectors where there is a base, else of the models' tensors themselves.
        """
        return self.once("gram", lambda: self._gram([partial(self.delta, source) for source in self._sources]))

    def gram_with_base(self) -> np.ndarray:
        """Returns the inner products of all pairs of tensors as they are, the base being the last, measured once."""
        tensors = [*self.tensors, *([] if self.base is None else [self.base])]
        return self.once("gram with base", lambda: self._gram([tensor.piece for tensor in tensors]))

    def l1_norm(self, source: int) -> float:
        """Returns the sum of the magnitudes of a task vector, in float64, measured once."""
        return self.once(("l1", source), lambda: self.total(lambda a, b: self.delta(source, a, b).abs_()))

    def magnitudes(self, source: int) -> Magnitudes:
        """Returns the order of the magnitudes of a task vector, which names the threshold of any density."""

        def read(start: int, stop: int) -> Tensor:
            return self.delta(source, start, stop)

        return self.once(("magnitudes", source), lambda: Magnitudes(read, self.numel, kept=self.kept))

    def noise(self, seed: int, source: int) -> SourceTensor:
        """Returns the random numbers of model `source` as a further source, see `noise_piece`."""

        def drawn(start: int, stop: int) -> Tensor:
            parts = [
                noise_piece(seed, source, self.name, first // PIECE, min(PIECE, self.numel - first))
                for first in range(start // PIECE * PIECE, stop, PIECE)
            ]
            first = start // PIECE * PIECE
            whole = torch.from_numpy(np.concatenate(parts))[start - first : stop - first]
            return whole.to(self.device)

        if not self.kept:
            return SourceTensor(self.shape, self.device, drawn)
        held = self.once(("noise", seed, source), lambda: drawn(0, self.numel) if self.numel else torch.empty(0))
        return SourceTensor(self.shape, self.device, lambda start, stop: held[start:stop])

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Yields the first element and the one past the last of each piece of a range, by default of all."""
        end = self.numel if stop is None else stop
        for first in range(start, end, PIECE):
            yield first, min(first + PIECE, end)

    def total(self, term: Callable[[int, int], Tensor], start: int = 0, stop: int | None = None) -> float:
        """Returns the sum, in float64, of what `term` gives for the elements from a first up to a last one.

        Args:
            term: (first element, element past the last) to one number for each element, float32.
            start: the first element.
            stop: the element past the last; by default the end.
        """
        return math.fsum(
            float(block.sum(dtype=torch.float64))
            for first, end in self.pieces(start, stop)
            for block in torch.split(term(first, end), BLOCK)
        )

    @property
    def _sources(self) -> range:
        return range(len(self.tensors))

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


Number = float | Tensor
"""A number that holds for many elements; where a kernel is compiled, a float32 tensor without dimensions."""

Kernel = Callable[[Sequence[Tensor], Sequence[Number]], Tensor]
"""(blocks of the inputs as float32, the numbers that hold there) to the merged block, float32.

It works element by element and changes no block; the result may be one of them. What it does must not depend on the
numbers' values. It can be hashed: kernels that are equal are compiled once."""


@dataclass(frozen=True)
class Fused:
    """A merge that is done element by element in one pass over memory.

    Attributes:
        kernel: what is done.
        inputs: what it reads, in the order in which the kernel expects it.
        spans: (element past the last, numbers that hold up to there) in ascending order; the last ends the tensor.
    """

    kernel: Kernel
    inputs: tuple[SourceTensor, ...]
    spans: tuple[tuple[int, tuple[float, ...]], ...]

    @classmethod
    def uniform(cls, kernel: Kernel, inputs: Sequence[SourceTensor], numbers: Sequence[float]) -> Fused:
        """Returns a merge whose numbers hold for the whole tensor."""
        return cls(kernel, tuple(inputs), ((inputs[0].numel, tuple(numbers)),))

    @classmethod
    def weighted(cls, operands: Operands, coefficients: Sequence[float]) -> Fused:
        """Returns B + sum of c_i (X_i - B); without a base, the sum of c_i X_i."""
        if operands.base is None:
            return cls.uniform(combination, operands.tensors, coefficients)
        return cls.uniform(displaced, (operands.base, *operands.tensors), coefficients)

    def run(self, write: Callable[[int, Tensor], object]) -> None:
        """Merges all of it, in order.

        Args:
            write: called with the first element and the merged block, flat, float32.
        """
        # A GPU wants few large launches; its memory has room for some pieces of every source.
        piece = PIECE if self.inputs[0].device.type == "cpu" else 128 * PIECE
        for start, stop, numbers in self.parts(piece):
            blocks = [source.piece(start, stop).float() for source in self.inputs]
            write(start, self.kernel(blocks, numbers))

    def parts(self, most: int) -> Iterator[tuple[int, int, tuple[float, ...]]]:
        """Yields (first element, the one past the last, the numbers there), each of `most` elements or fewer."""
        start = 0
        for end, numbers in self.spans:
            # Bounds at multiples of a piece: noise is drawn by them.
            while start < end:
                stop = min(end, (start // most + 1) * most)
                yield start, stop, numbers
                start = stop


def combination(blocks: Sequence[Tensor], numbers: Sequence[Number]) -> Tensor:
    """The kernel of every weighted sum: numbers[0] blocks[0] + numbers[1] blocks[1] + ..."""
    merged = blocks[0].mul(numbers[0])
    for block, number in zip(blocks[1:], numbers[1:], strict=True):
        # Not add_(alpha=...), which some processors fuse into one rounding and others do not.
        merged.add_(block.mul(number))
    return merged


def displaced(blocks: Sequence[Tensor], numbers: Sequence[Number]) -> Tensor:
    """The kernel of blocks[0] + numbers[0] (blocks[1] - blocks[0]) + numbers[1] (blocks[2] - blocks[0]) + ..."""
    base, *others = blocks
    total = (others[0] - base).mul_(numbers[0])
    for block, number in zip(others[1:], numbers[1:], strict=True):
        total.add_((block - base).mul_(number))
    return total.add_(base)


def shrunk(delta: Tensor, limit: Number) -> Tensor:
    """Returns a tensor with zeros for what is not above `limit` in magnitude; NaN stays."""
    if isinstance(limit, Tensor):
        return torch.where(delta.abs() <= limit, 0.0, delta)
    return torch.hardshrink(delta, limit)
