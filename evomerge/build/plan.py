"""`Plan`: how a model is made, one job for each of its tensors, and doing one of them.

The plan is made from headers and configs alone. Two sinks carry it out, `into_model` and `into_directory`; both
run the same jobs, so what was scored in memory is what is written to disk, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.errors import MergeError
from evomerge.methods import MergeMethod, Parameters, noise_for
from evomerge.recipe import Recipe

Read = Callable[[str, str], Tensor]
"""(model, tensor's name) to that tensor in its own dtype, on the device where the merge is computed."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


BLOCK = 32_000
"""Elements of a block: a few float32 temporaries of it fit in a core's second-level cache, and it stays under the
32,768 from which torch wakes its threads, which takes longer than the work on a block."""


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
        tokenizer_donor: the model that gives the tokenizer's files.
        config: the result's config.json.
        jobs: one for each tensor.
    """

    recipe: Recipe
    method: MergeMethod
    checkpoints: Mapping[str, Checkpoint]
    donor: Checkpoint
    tokenizer_donor: Checkpoint
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

    def merge(self, job: Job, read: Read, into: Tensor | None = None) -> Tensor:
        """Returns the tensor that `job` describes; computed in float32, rounded to the result's dtype.

        Args:
            job: one of the plan's.
            read: where the sources are read.
            into: a contiguous tensor of the job's shape to write to, in the result's dtype or a wider one; by
                default a new one in the result's dtype.

        Raises:
            MergeError: the method cannot merge these tensors, or the result is not finite.
        """
        if job.parameters is None:
            return _written(read(*job.inputs[0]), into)
        tensors = [read(*place) for place in job.inputs]
        base = read(*job.base) if job.base else None
        try:
            if self.method.elementwise and tensors[0].device.type == "cpu":
                return self._merged_in_blocks(job, tensors, base, into)
            return _written(self._merged(job, tensors, base), into)
        except MergeError as fault:
            raise MergeError(f"{job.info.name}: {fault}") from None

    def _merged(self, job: Job, tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
        parameters = job.parameters or Parameters({}, ())
        seed = int(parameters.shared.get("seed", 0))
        noise = noise_for(seed, job.info.name, tensors[0].shape, tensors[0].device)
        wide = [tensor.float() for tensor in tensors]
        merged = self.method(wide, None if base is None else base.float(), parameters, noise).to(job.info.dtype)
        if not all_finite(merged):
            dtype = str(job.info.dtype).removeprefix("torch.")
            raise MergeError(f"the merged tensor has values that are not finite in {dtype}")
        return merged

    def _merged_in_blocks(
        self, job: Job, tensors: Sequence[Tensor], base: Tensor | None, into: Tensor | None
    ) -> Tensor:
        """Returns the same as `_merged`, whose float32 temporaries then never leave the processor's cache."""
        merged = torch.empty(job.info.shape, dtype=job.info.dtype) if into is None else into
        flat = merged.view(-1)
        rows = [tensor.reshape(-1) for tensor in tensors]
        base_row = None if base is None else base.reshape(-1)
        for start in range(0, flat.numel(), BLOCK):
            here = slice(start, start + BLOCK)
            part = None if base_row is None else base_row[here]
            flat[here] = self._merged(job, [row[here] for row in rows], part)
        return merged


def _written(tensor: Tensor, into: Tensor | None) -> Tensor:
    return tensor if into is None else into.copy_(tensor)
