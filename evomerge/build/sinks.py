"""Carrying a plan out: in place into a model in memory, or streamed into a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import Tensor

from evomerge.build.live import LiveModel
from evomerge.build.plan import Job, Plan
from evomerge.build.residence import Sources
from evomerge.build.side_files import side_files
from evomerge.checkpoint import CheckpointWriter

_MOST_IN_FLIGHT = 4
"""Tensors that are merged at the same time on the way to a directory: memory is bounded by so many."""


def into_model(plan: Plan, live: LiveModel, sources: Sources) -> None:
    """Writes every tensor of `plan` in place into the model in memory.

    Args:
        plan: how the model is made.
        live: the model.
        sources: where the weights are read.

    Raises:
        MergeError: a tensor cannot be merged; the model then holds parts of two candidates: fill it again.
    """
    into_tensors(plan, live.places, sources)


def into_tensors(plan: Plan, places: Mapping[str, Tensor | None], sources: Sources) -> None:
    """Writes every tensor of `plan` in place.

    Args:
        plan: how the model is made.
        places: for each of the plan's tensors one of its shape, in the result's dtype or a wider one, which need not
            be contiguous; None where it is not wanted.
        sources: where the weights are read.

    Raises:
        MergeError: a tensor cannot be merged.
    """

    def fill(job: Job) -> None:
        place = places[job.info.name]
        if place is None:
            return
        target = place if place.is_contiguous() else torch.empty_like(place, memory_format=torch.contiguous_format)
        flat = target.view(-1)

        def write(start: int, block: Tensor) -> None:
            flat[start : start + len(block)].copy_(block)

        with torch.no_grad():
            operands = sources.operands(job)
            if not (sources.compiled and plan.merge_compiled(job, operands, flat)):
                plan.merge(job, operands, write)
            if target is not place:
                place.copy_(target)

    for job in plan.jobs:
        fill(job)


def into_directory(
    plan: Plan,
    folder: Path,
    *,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the plan's model to `folder`: shards, index, config, tokenizer, generation config, chat template.

    Tensors are streamed to their places piece by piece: memory is bounded by a few pieces of every source (by a few
    tensors with the methods that need a tensor as a whole), and never by the models. The folder
    appears under its name only when all of it is there.

    Args:
        plan: how the model is made.
        folder: the directory to make.
        shard_bytes: the most bytes a shard holds.
        overwrite: whether a folder that exists is replaced, at the end.
        progress: called with the bytes of each tensor that was written.

    Raises:
        MergeError: a tensor cannot be merged.
        CheckpointError: a source cannot be read, or the folder not be written.
    """
    sources = Sources(plan.checkpoints, "disk", torch.device("cpu"), reused=False)
    with CheckpointWriter(folder, plan.layout, shard_bytes=shard_bytes, overwrite=overwrite) as out:

        def carry(job: Job) -> None:
            with torch.no_grad():
                plan.merge(job, sources.operands(job), lambda start, part: out.write_part(job.info.name, start, part))

        _in_parallel(carry, plan.jobs, lambda job: progress(job.info.nbytes))
        files, texts = side_files(plan)
        out.commit(config=plan.config, files=files, texts=texts)


def _in_parallel(work: Callable[[Job], None], jobs: Iterable[Job], done: Callable[[Job], None]) -> None:
    """Does `work` for every job, and calls `done` after each.

    Each thread reads, merges and writes a tensor of its own: while one waits for the disk another computes. Tensors
    are shared out among the threads, and not the elements of one: its sums have the same bits on any machine.
    """
    workers = min(_MOST_IN_FLIGHT, torch.get_num_threads())
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        begun = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(begun):
            future.result()
            done(begun[future])
    finally:
        pool.shutdown(cancel_futures=True)
