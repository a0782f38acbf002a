"""Carrying a plan out: in place into tensors in memory, or streamed into a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
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
"""Tensors that are merged at the same time on the way to a directory: memory is bounded by so many."""


def into_tensors(plan: Plan, places: Mapping[str, Tensor | None], store: WeightStore) -> None:
    """Writes every tensor of `plan` in place.

    Args:
        plan: how the model is made.
        places: for each of the plan's tensors one of its shape, in the result's dtype or a wider one, which need not
            be contiguous; None where it is not wanted.
        store: where the weights are read.

    Raises:
        MergeError: a tensor cannot be merged.
    """
    jobs = [job for job in plan.layout.jobs if places[job.info.name] is not None]

    def begun(job: Job) -> list[Callable[[], None]]:
        pieces, place = plan.pieces(job, store.operands(job)), places[job.info.name]
        assert place is not None  # Those are no jobs; this line is for the type checker.
        if not place.is_contiguous() or place.device.type != store.device.type:
            return [partial(_fill, pieces, place.detach(), store.device)]
        flat = place.detach().view(-1)
        return [partial(fill, flat[start:stop]) for start, stop, fill in pieces]

    def done(job: Job) -> None:
        for step in begun(job):
            step()

    with torch.no_grad():
        devices = {store.device.type, *(place.device.type for place in places.values() if place is not None)}
        if devices != {"cpu"} or compiler() is None:
            # Each step is shared out by the device itself, or by torch.
            for job in jobs:
                done(job)
            return
        if store.tier == "disk":
            _in_parallel((partial(done, job) for job in jobs), _MOST_IN_FLIGHT)
            return
        steps: dict[str, list[Callable[[], None]]] = {}

        def begin(job: Job) -> None:
            steps[job.info.name] = begun(job)

        _in_parallel((partial(begin, job) for job in jobs if not store.measured(job)), _MOST_IN_FLIGHT)
        # What is measured is soon begun: all of it first, as that is Python's work, which threads only hold up.
        for job in jobs:
            if job.info.name not in steps:
                begin(job)
        _in_parallel([step for job in jobs for step in steps[job.info.name]], torch.get_num_threads())


def _fill(pieces: Iterable[Piece], place: Tensor, device: torch.device) -> None:
    """Fills a tensor that is not contiguous, or not where it is merged, by way of one that is."""
    target = torch.empty_like(place, memory_format=torch.contiguous_format, device=device)
    flat = target.view(-1)
    for start, stop, fill in pieces:
        fill(flat[start:stop])
    place.copy_(target)


def into_directory(
    plan: Plan,
    folder: Path,
    *,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    needed: Iterable[Path] = (),
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
        overwrite: whether a folder that holds a model and nothing else is replaced, at the end.
        needed: what the folder must not be or hold, nor so any of the plan's models, such as the recipe's file.
        progress: called with the bytes of each tensor that was written.

    Raises:
        MergeError: a tensor cannot be merged.
        CheckpointError: a source cannot be read, or the folder not be written.
    """
    store = WeightStore(plan.layout.checkpoints, "disk", torch.device("cpu"), reused=False)
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
        files, texts = side_files(plan)
        out.commit(config=plan.layout.config, files=files, texts=texts)


def _in_parallel(steps: Iterable[Callable[[], T]], most: int, done: Callable[[T], object] = lambda _: None) -> None:
    """Does all steps, at most so many and as many as torch has threads at the same time.

    A step has one thread: its sums have the same bits on any machine.

    Args:
        steps: what to do; they are gone through before the first is waited for.
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
