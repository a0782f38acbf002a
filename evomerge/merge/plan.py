"""`Layout` and `Plan`: how a model is made, one job for each of its tensors, and doing one of them.

The plan is made from headers and configs alone. Two sinks carry it out, `into_tensors` and `into_directory`; both
run the same jobs, so what was scored in memory is what is written to disk, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evomerge.architecture import Architecture
from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.errors import MergeError
from evomerge.kernels import Fused, LazyTensor, Operands, pieces
from evomerge.methods import MergeMethod, Parameters
from evomerge.recipe import Recipe

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

MERGED = {*DTYPES.values(), torch.float64}
"""The dtypes of tensors that can be merged; others are at most copied."""


def config_stored_as(recipe: Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result's config with the dtype in which the recipe stores it, where it says one."""
    dtype = recipe.out_dtype or recipe.dtype
    # Both spellings: transformers reads "dtype", and "torch_dtype" before version 4.56.
    kept = {key: value for key, value in config.items() if not (dtype and key == "torch_dtype")}
    return {**kept, "dtype": dtype} if dtype else kept


class TensorRef(NamedTuple):
    """A tensor of a model that is merged.

    Attributes:
        model: the model's name in the recipe.
        name: the tensor's name in that model.
    """

    model: str
    name: str


@dataclass(frozen=True)
class Job:
    """How one tensor of the result is made.

    Attributes:
        info: its name, dtype and shape in the result.
        inputs: the tensors that are merged, the base not among them.
        base: the base's tensor, where the method takes one.
        slot: the index of the method's values in a plan's; None where the first input is copied: it is not of floats.
    """

    info: TensorInfo
    inputs: tuple[TensorRef, ...]
    base: TensorRef | None
    slot: int | None


@dataclass(frozen=True)
class Layout:
    """What recipes that differ in nothing but their parameters' numbers have in common: all but those numbers.

    Attributes:
        method: the merge method.
        checkpoints: every model that is read, by its name in the recipe.
        donor: the model that gives the config, the tokenizer and the generation settings.
        config: the result's config.json.
        jobs: one for each tensor, in an order that reads the first model sequentially.
    """

    method: MergeMethod
    checkpoints: Mapping[str, Checkpoint]
    donor: Checkpoint
    config: Mapping[str, Any]
    jobs: tuple[Job, ...]

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor of the result: name, dtype, shape."""
        return tuple(job.info for job in self.jobs)

    @cached_property
    def architecture(self) -> Architecture:
        """Which of the result's tensors are in which layer."""
        return Architecture.of(self.config, (info.name for info in self.tensors))

    @cached_property
    def nbytes(self) -> int:
        """The bytes of the result's tensors."""
        return sum(info.nbytes for info in self.tensors)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype in which the result's model holds each of its weights exactly: the widest of its matrices'.

        Vectors, which some models keep in float32 beside matrices in bfloat16, count where there is no matrix.
        """
        floating = [info for info in self.tensors if info.dtype in MERGED]
        matrices = [info for info in floating if len(info.shape) > 1]
        return reduce(torch.promote_types, {info.dtype for info in matrices or floating} or {torch.float32})

    @property
    def kept_bytes(self) -> int:
        """The bytes that a search keeps beside the models, for all candidates, at most."""
        each = self.method.kept_bytes
        return sum(each * job.info.numel * len(job.inputs) for job in self.jobs if job.slot is not None)


class Piece(NamedTuple):
    """Some elements of a tensor of the result.

    Attributes:
        start: the first.
        stop: the one past the last.
        fill: writes them to a buffer: flat, contiguous, of their number, in the job's dtype or a wider one, on the
            device of the inputs. It can be called from any thread, and raises `MergeError` where one of them is not
            finite.
    """

    start: int
    stop: int
    fill: Callable[[Tensor], None]


@dataclass(frozen=True)
class Plan:
    """How a model is made: the layout, and the values that this recipe fills it with.

    Attributes:
        recipe: the recipe without holes.
        layout: what it shares with every recipe of its structure.
        values: the merge method's values, by the slots of the layout's jobs.
    """

    recipe: Recipe
    layout: Layout
    values: tuple[Parameters, ...]

    def parameters(self, job: Job) -> Parameters | None:
        """Returns the method's values for one of the layout's jobs; None where its tensor is copied."""
        return None if job.slot is None else self.values[job.slot]

    def pieces(self, job: Job, operands: Operands) -> Iterator[Piece]:
        """Yields the tensor that `job` describes: merged in float32, rounded to the result's dtype.

        What its merge has to measure first is measured before the first piece is yielded.

        Args:
            job: one of the layout's.
            operands: its inputs.

        Raises:
            MergeError: the method cannot merge these tensors.
        """
        parameters = self.parameters(job)
        if parameters is None:
            for start, stop in pieces(job.info.numel):
                yield Piece(start, stop, partial(_copy, operands.tensors[0], start, stop))
            return
        try:
            fused = self.layout.method(operands, parameters)
        except MergeError as fault:
            raise MergeError(f"{job.info.name}: {fault}") from None
        for start, stop in fused.parts():
            yield Piece(start, stop, partial(_merge, job, fused, start, stop))


def _copy(tensor: LazyTensor, start: int, stop: int, output: Tensor) -> None:
    output.copy_(tensor.piece(start, stop))


def _merge(job: Job, fused: Fused, start: int, stop: int, output: Tensor) -> None:
    if not fused.merge(start, stop, output, job.info.dtype):
        dtype = str(job.info.dtype).removeprefix("torch.")
        raise MergeError(f"{job.info.name}: the merged tensor has values that are not finite in {dtype}")
