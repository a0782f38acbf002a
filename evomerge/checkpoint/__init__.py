"""A tensor by name, lazily, from a folder or a Hub id; and shards, then one rename.

`Checkpoint` reads, `CheckpointWriter` writes, `TensorInfo` says what a tensor is without loading it. Only
safetensors files are read: a pickle runs code when it is opened.
"""

from collections.abc import Sequence
from pathlib import Path

from evomerge.checkpoint.adapter import ADAPTER_WEIGHTS, AdaptedCheckpoint
from evomerge.checkpoint.folder import TEMPLATES, UNFINISHED, belongs_to_model, files_beside, unfinished
from evomerge.checkpoint.header import TensorInfo, read_object, reading
from evomerge.checkpoint.hub import Reference, folder_of, tokenizer_folder
from evomerge.checkpoint.reading import Checkpoint
from evomerge.checkpoint.target import replace_file
from evomerge.checkpoint.view import CheckpointView
from evomerge.checkpoint.writing import CheckpointWriter
from evomerge.paths import HERE

__all__ = [
    "TEMPLATES",
    "UNFINISHED",
    "AdaptedCheckpoint",
    "Checkpoint",
    "CheckpointView",
    "CheckpointWriter",
    "Reference",
    "TensorInfo",
    "belongs_to_model",
    "files_beside",
    "open_checkpoint",
    "read_object",
    "replace_file",
    "tokenizer_folder",
    "unfinished",
]


def open_checkpoint(text: str, folders: Sequence[Path] = HERE) -> Checkpoint:
    """The model that a reference names, with its adapter if it has one, checked but not loaded.

    Args:
        text: ``path[@revision][+adapter[@revision]]``.
        folders: where local paths are looked for.

    Raises:
        CheckpointError: one of the two cannot be found or read, or they do not fit together.
    """
    with reading(text):
        reference = Reference.parse(text, folders)
        if reference.adapter_text is None:
            return Checkpoint.open(text, folders)
        folder = folder_of(reference.adapter_text, folders, text=text, weights=lambda _: [ADAPTER_WEIGHTS])
        return AdaptedCheckpoint(Checkpoint.open(reference.model_text, folders), text, folder)
