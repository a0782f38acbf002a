"""`Fused`: a merge that is done element by element in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.kernels.loops import Spans, loop
from evomerge.kernels.native import compiler
from evomerge.kernels.trace import Element, Kernel, total, trace

BLOCK = 32_000
"""Elements that are summed or ranked together: under the 32,768 from which torch splits work among threads, so that a
sum has the same bits with any number of threads."""

PIECE = 8 * BLOCK
"""Elements of a piece, the unit in which tensors are read, noise is drawn and results are written: a few float32
temporaries of it fit in the caches, and it is large enough to be worth a thread's while."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read piece by piece, from memory or from a file.

    Attributes:
        shape: its shape.
        device: the device on which its pieces are returned.
        piece: (first element, element past the last) to these elements, flat, in the tensor's own dtype; what it
            returns is never written to.
    """

    shape: tuple[int, ...]
    device: torch.device
    piece: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """Returns a tensor in memory, of any dtype, to be read in pieces."""
        flat = tensor.detach().reshape(-1)
        return cls(tuple(tensor.shape), tensor.device, lambda start, stop: flat[start:stop])

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Fused:
    """A merge that is done element by element in one pass over memory.

    Attributes:
        kernel: what is done.
        inputs: what it reads, in the order in which the kernel expects it.
        spans: the kernel's numbers; the last span ends the tensor.
    """

    kernel: Kernel
    inputs: tuple[LazyTensor, ...]
    spans: Spans

    @classmethod
    def uniform(cls, kernel: Kernel, inputs: Sequence[LazyTensor], numbers: Sequence[float]) -> Fused:
        """Returns a merge with the same numbers for the whole tensor."""
        return cls(kernel, tuple(inputs), ((inputs[0].numel, numbers),))

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yields the first element and the one past the last of the parts in which it is best merged."""
        most = 8 * PIECE if compiler() else PIECE
        if self.inputs[0].device.type != "cpu":
            # A GPU needs few large launches; its memory has room for several pieces of every input.
            most = 128 * PIECE
        # Bounds at multiples of a piece: noise is drawn by them.
        return pieces(self.spans[-1][0], most)

    def merge(self, start: int, stop: int, output: Tensor, dtype: torch.dtype | None = None) -> bool:
        """Merges some elements: by a compiled loop where there is one, else by torch, with the same bits.

        Args:
            start: the first element.
            stop: the element past the last.
            output: the output buffer: flat, contiguous, of as many elements, on the device of the inputs.
            dtype: what the result is rounded to: the dtype of `output`, as by default, or a narrower one.

        Returns:
            Whether every element of the result is a finite number.
        """
        if start == stop:
            return True
        blocks = [tensor.piece(start, stop) for tensor in self.inputs]
        spans = [(min(end, stop) - start, numbers) for end, numbers in self.spans if end > start]
        rounded, count = dtype or output.dtype, len(spans[0][1])
        on_cpu, dtypes = output.device.type == "cpu", tuple(block.dtype for block in blocks)
        run = loop(self.kernel, dtypes, count, rounded, output.dtype) if on_cpu else None
        if run is not None:
            return run(blocks, spans, output)
        traced, finite, first = trace(self.kernel, len(blocks), count), True, 0
        for end, numbers in spans:
            # On a CPU in parts whose temporaries stay in the cache.
            for here, after in pieces(end, 2 * BLOCK if on_cpu else stop - start, first):
                merged = traced.run([block[here:after].float() for block in blocks], numbers).to(rounded)
                output[here:after] = merged
                finite = finite and all_finite(merged)
            first = end
        return finite

    def values(self, start: int, stop: int) -> Tensor:
        """Returns merged elements, flat, float32; they may be changed."""
        found = torch.empty(stop - start, dtype=torch.float32, device=self.inputs[0].device)
        self.merge(start, stop, found)
        return found


def pieces(numel: int, size: int = PIECE, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yields the first element and the one past the last of each piece of `size`, from `first` to `numel`."""
    for start in range(first, numel, size):
        yield start, min(start + size, numel)


def all_finite(tensor: Tensor) -> bool:
    """Returns whether every element is a finite number; one pass, no temporaries (NaN carries into both ends)."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def combination(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of sum of c_i X_i; with one block more than numbers, the base B first, of B + sum of c_i (X_i - B)."""
    if len(blocks) == len(numbers):
        return total(number * block for number, block in zip(numbers, blocks, strict=True))
    base, *others = blocks
    return base + total(number * (block - base) for number, block in zip(numbers, others, strict=True))


def difference(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of X - B, the base B first; without a base, of X."""
    return blocks[1] - blocks[0] if len(blocks) > 1 else blocks[0]


def distance(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of the magnitude of that."""
    return abs(difference(blocks, ()))
