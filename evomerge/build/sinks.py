"""Carrying a plan out: in place into a model in memory, or streamed into a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from evomerge.build.live import LiveModel
from evomerge.build.plan import Plan, Read
from evomerge.build.side_files import side_files
from evomerge.checkpoint import CheckpointWriter


def into_model(plan: Plan, live: LiveModel, read: Read) -> None:
    """Writes every tensor of `plan` in place into the model in memory.

    Args:
        plan: how the model is made.
        live: the model.
        read: where the sources are read, see `Sources.read`.

    Raises:
        MergeError: a tensor cannot be merged; the model then holds parts of two candidates: fill it again.
    """
    with torch.no_grad():
        for job in plan.jobs:
            place = live.places[job.info.name]
            if place is not None:
                plan.merge(job, read, place)


def into_directory(
    plan: Plan,
    folder: Path,
    *,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the plan's model to `folder`: shards, index, config, tokenizer, generation config, chat template.

    Tensors are streamed to their places: memory is bounded by the largest tensors in flight. The folder
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

    def read(model: str, name: str) -> torch.Tensor:
        return plan.checkpoints[model].read(name)

    with (
        torch.no_grad(),
        CheckpointWriter(folder, plan.layout, shard_bytes=shard_bytes, overwrite=overwrite) as out,
    ):
        for job in plan.jobs:
            out.write(job.info.name, plan.merge(job, read))
            progress(job.info.nbytes)
        files, texts = side_files(plan)
        out.commit(config=plan.config, files=files, texts=texts)
