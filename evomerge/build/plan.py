"""`Plan`: how a model is made, one job for each of its tensors, and doing one of them.

The plan is made from headers and configs alone. Two sinks carry it out, `into_model` and `into_directory`; both
run the same jobs, so what was scored in memory is what is written to disk, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.errors import MergeError
from evomerge.methods import MergeMethod, Operands, Parameters, run_compiled
from evomerge.recipe import Recipe

Write = Callable[[int, Tensor], None]
"""Takes (the first element, elements from there on: flat, in the result's dtype)."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def all_finite(tensor: Tensor) -> bool:
    """Returns whether every element is a finite number; one pass, no temporaries (NaN carries into both ends)."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)


@dataclass(frozen=True)
class Job:
    """How one tensor of the result is made.

    Attributes:
        info: its name, dtype and shape in the result.
        inputs: (model, tensor's name) for each tensor that is merged, the base not among them.
        base: the same for the base, where the method takes one.
        parameters: the method's values; None where the first input is copied: it is not of floats.
    """

    info: TensorInfo
    inputs: tuple[tuple[str, str], ...]
    base: tuple[str, str] | None
    parameters: Parameters | None


@dataclass(frozen=True)
class Plan:
    """How a model is made: its jobs in an order that reads the first model sequentially.

    Attributes:
        recipe: the recipe without holes.
        method: its merge method.
        checkpoints: every model that is read, by its name in the recipe.
        donor: the model that gives the config, the tokenizer and the generation settings.
        config: the result's config.json.
        jobs: one for each tensor.
    """

    recipe: Recipe
    method: MergeMethod
    checkpoints: Mapping[str, Checkpoint]
    donor: Checkpoint
    config: Mapping[str, Any]
    jobs: tuple[Job, ...]

    @property
    def layout(self) -> list[TensorInfo]:
        """Every tensor of the result: name, dtype, shape."""
        return [job.info for job in self.jobs]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result's weights: the recipe's, else that of the first."""
        named = self.recipe.out_dtype or self.recipe.dtype
        stored = (info.dtype for info in self.layout if info.dtype.is_floating_point)
        return DTYPES[named] if named else next(stored, torch.float32)

    @property
    def nbytes(self) -> int:
        """The bytes of the result's tensors."""
        return sum(job.info.nbytes for job in self.jobs)

    @property
    def kept_bytes(self) -> int:
        """The bytes that a search keeps beside the sources, for all candidates, at most."""
        each = self.method.kept_bytes
        return sum(each * job.info.numel * len(job.inputs) for job in self.jobs if job.parameters is not None)

    def merge(self, job: Job, operands: Operands, write: Write) -> None:
        """Merges the tensor that `job` describes: computed in float32, rounded to the result's dtype.

        Args:
            job: one of the plan's.
            operands: its sources.
            write: takes the result, piece by piece.

        Raises:
            MergeError: the method cannot merge these tensors, or the result is not finite.
        """
        if job.parameters is None:
            for start, stop in operands.pieces():
                write(start, operands.tensors[0].piece(start, stop))
            return

        def rounded(start: int, merged: Tensor) -> None:
            result = merged.to(job.info.dtype)
            self._refuse(job, all_finite(result))
            write(start, result)

        with self._named(job):
            self.method(operands, job.parameters).run(rounded)

    def merge_compiled(self, job: Job, operands: Operands, target: Tensor) -> bool:
        """Merges the tensor in place with compiled kernels, unless it is only copied, with the bits of `merge`.

        Args:
            job: one of the plan's.
            operands: its sources.
            target: flat and contiguous, of the job's number of elements, in the result's dtype or a wider one.

        Returns:
            Whether it was: otherwise nothing is done.

        Raises:
            MergeError: as `merge`.
        """
        if job.parameters is None:
            return False
        with self._named(job):
            fused = self.method(operands, job.parameters)
            self._refuse(job, run_compiled(fused, target, job.info.dtype))
        return True

    @contextmanager
    def _named(self, job: Job) -> Iterator[None]:
        try:
            yield
        except MergeError as fault:
            raise MergeError(f"{job.info.name}: {fault}") from None

    def _refuse(self, job: Job, finite: bool) -> None:
        if not finite:
            dtype = str(job.info.dtype).removeprefix("torch.")
            raise MergeError(f"the merged tensor has values that are not finite in {dtype}")
