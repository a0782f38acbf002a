"""Carrying out a plan: in place into tensors in memory, or streamed into a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.checkpoint import CheckpointWriter
from evomerge.kernels import compiler
from evomerge.merge.plan import Job, Piece, Plan
from evomerge.merge.side_files import side_files
from evomerge.merge.weight_store import WeightStore

T = TypeVar("T")

_MOST_IN_FLIGHT = 4
"""How many tensors are merged at the same time: memory is bounded by so many."""


def into_tensors(plan: Plan, outputs: Mapping[str, Tensor | None], store: WeightStore) -> None:
    """Writes every tensor of `plan` in place.

    Args:
        plan: how the model is made.
        outputs: for each of the plan's tensors one of its shape, in the result's dtype or a wider one, which need not
            be contiguous; None where it is not wanted.
        store: where the weights are read.

    Raises:
        MergeError: a tensor cannot be merged.
    """
    wanted = [(job, output) for job in plan.layout.jobs if (output := outputs[job.info.name]) is not None]

    def begin(job: Job, output: Tensor) -> list[Callable[[], None]]:
        pieces = plan.pieces(job, store.operands(job))
        if not output.is_contiguous() or output.device.type != store.device.type:
            return [partial(_fill, pieces, output.detach(), store.device)]
        flat = output.detach().view(-1)
        return [partial(fill, flat[start:stop]) for start, stop, fill in pieces]

    def do(job: Job, output: Tensor) -> None:
        for step in begin(job, output):
            step()

    with torch.no_grad():
        if {store.device.type, *(output.device.type for _, output in wanted)} != {"cpu"} or compiler() is None:
            # Each step is shared out by the device itself, or by torch.
            for job, output in wanted:
                do(job, output)
        elif store.tier == "disk":
            _in_parallel((partial(do, *one) for one in wanted), _MOST_IN_FLIGHT)
        else:
            steps: dict[str, list[Callable[[], None]]] = {}

            def prepare(job: Job, output: Tensor) -> None:
                steps[job.info.name] = begin(job, output)

            _in_parallel((partial(prepare, *one) for one in wanted if not store.measured(one[0])), _MOST_IN_FLIGHT)
            # What was measured before begins quickly, and in Python, where threads only wait for each other.
            for job, output in wanted:
                if job.info.name not in steps:
                    prepare(job, output)
            _in_parallel([step for job, _ in wanted for step in steps[job.info.name]], torch.get_num_threads())


def _fill(pieces: Iterable[Piece], output: Tensor, device: torch.device) -> None:
    """Fills a tensor that is not contiguous, or not on the device of the merge, by way of one that is."""
    target = torch.empty_like(output, memory_format=torch.contiguous_format, device=device)
    flat = target.view(-1)
    for start, stop, fill in pieces:
        fill(flat[start:stop])
    output.copy_(target)


def into_directory(
    plan: Plan,
    folder: Path,
    *,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    needed: Iterable[Path] = (),
    progress: Callable[[int], None] = lambda _: None,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes the plan's model to `folder`: shards, index, config, tokenizer, generation config, chat template.

    Tensors are streamed to their files piece by piece: memory is bounded by a few pieces of every input (by a few
    tensors with the methods that need a tensor as a whole), and never by the models. The folder
    appears under its name only when it is complete.

    Args:
        plan: how the model is made.
        folder: the directory to make.
        shard_bytes: the most bytes a shard holds.
        overwrite: whether a folder that holds a model and nothing else is replaced, at the end.
        needed: paths, such as the recipe's file, that must not be overwritten; the plan's models never are.
        progress: called with the bytes of each tensor that was written.
        texts: further files to write, such as a model card, by name.

    Raises:
        MergeError: a tensor cannot be merged.
        CheckpointError: a model cannot be read, or the folder cannot be written.
    """
    store = WeightStore(plan.layout.checkpoints, "disk", torch.device("cpu"), reused=False)
    files, own = side_files(plan)  # what is wrong with them is found before the merge
    read = [path for checkpoint in plan.layout.checkpoints.values() for path in checkpoint.paths()]
    with CheckpointWriter(
        folder, plan.layout.tensors, shard_bytes=shard_bytes, overwrite=overwrite, needed=[*needed, *read]
    ) as out:

        def carry(job: Job) -> int:
            for start, stop, fill in plan.pieces(job, store.operands(job)):
                part = torch.empty(stop - start, dtype=job.info.dtype)
                fill(part)
                out.write(job.info.name, part, start)
            return job.info.nbytes

        # Each thread reads, merges and writes a tensor of its own: while one waits for the disk another computes.
        _in_parallel((partial(carry, job) for job in plan.layout.jobs), _MOST_IN_FLIGHT, progress)
        out.commit(config=plan.layout.config, files=files, texts={**texts, **own})


def _in_parallel(steps: Iterable[Callable[[], T]], most: int, done: Callable[[T], object] = lambda _: None) -> None:
    """Runs all steps, at most `most` at a time, and no more than torch has threads.

    A step has one thread: its sums have the same bits on any machine.

    Args:
        steps: what to do; all are submitted before the first is waited for.
        most: how many at a time.
        done: called with what each returned, from this thread.
    """

    def begin() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)

    pool = ThreadPoolExecutor(min(most, torch.get_num_threads()), initializer=begin)
    try:
        for future in as_completed([pool.submit(step) for step in steps]):
            done(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
