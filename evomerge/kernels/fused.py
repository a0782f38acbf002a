"""`Fused`: a merge that is done element by element in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.kernels import eager
from evomerge.kernels.loops import loop
from evomerge.kernels.native import compiler
from evomerge.kernels.trace import Element, Kernel, total, trace

BLOCK = 32_000
"""Elements that are summed or ranked together: under the 32,768 from which torch shares work out among threads, so that
a sum has the same bits however many there are."""

PIECE = 8 * BLOCK
"""Elements of a piece, the unit in which tensors are read, noise is drawn and results are written: a few float32
temporaries of it fit in the caches, and it is worth sharing out among threads."""


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

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yields the first element and the one past the last of the parts in which it is best merged."""
        most = 8 * PIECE if compiler() else PIECE
        if self.inputs[0].device.type != "cpu":
            # A GPU wants few large launches; its memory has room for some pieces of every source.
            most = 128 * PIECE
        # Bounds at multiples of a piece: noise is drawn by them.
        for start in range(0, self.spans[-1][0], most):
            yield start, min(start + most, self.spans[-1][0])

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
        blocks = [source.piece(start, stop) for source in self.inputs]
        spans = [(min(end, stop) - start, numbers) for end, numbers in self.spans if end > start]
        rounded = dtype or output.dtype
        if output.device.type == "cpu":
            run = loop(self.kernel, tuple(block.dtype for block in blocks), len(spans[0][1]), rounded, output.dtype)
            if run is not None:
                return run(blocks, spans, output)
        traced, finite, first = trace(self.kernel, len(blocks), len(spans[0][1])), True, 0
        # On a CPU in parts of which a kernel's temporaries stay in the cache.
        most = 2 * BLOCK if output.device.type == "cpu" else stop - start
        for end, numbers in spans:
            for here in range(first, end, most):
                part = slice(here, min(here + most, end))
                merged = eager.run(traced, [block[part].float() for block in blocks], numbers).to(rounded)
                output[part] = merged
                finite = finite and all_finite(merged)
            first = end
        return finite

    def values(self, start: int, stop: int) -> Tensor:
        """Returns merged elements, flat, float32, free to be changed."""
        found = torch.empty(stop - start, dtype=torch.float32, device=self.inputs[0].device)
        self.merge(start, stop, found)
        return found


def all_finite(tensor: Tensor) -> bool:
    """Returns whether every element is a finite number; one pass, no temporaries (NaN carries into both ends)."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def combination(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of every weighted sum: numbers[0] blocks[0] + numbers[1] blocks[1] + ..."""
    return total(number * block for number, block in zip(numbers, blocks, strict=True))


def displaced(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of blocks[0] + numbers[0] (blocks[1] - blocks[0]) + numbers[1] (blocks[2] - blocks[0]) + ..."""
    base, *others = blocks
    return base + total(number * (block - base) for number, block in zip(numbers, others, strict=True))


def difference(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of blocks[0] - blocks[1]; without a second, of blocks[0]."""
    return blocks[0] - blocks[1] if len(blocks) > 1 else blocks[0]


def distance(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of the magnitude of that."""
    return abs(difference(blocks, ()))
