"""A tensor by name, lazily, from a folder or a Hub id; and shards, then one rename.

`Checkpoint` reads, `CheckpointWriter` writes, `TensorInfo` says what a tensor is without loading it. Only
safetensors files are read: a pickle runs code when it is opened.
"""

from evomerge.checkpoint.header import TensorInfo
from evomerge.checkpoint.reading import Checkpoint
from evomerge.checkpoint.view import CheckpointView
from evomerge.checkpoint.writing import CheckpointWriter

__all__ = ["Checkpoint", "CheckpointView", "CheckpointWriter", "TensorInfo"]
