"""`WeightFile`: the tensors of one safetensors file, read lazily."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from evomerge.checkpoint.header import read_header, reading, starts_of
from evomerge.errors import CheckpointError


class WeightFile:
    """The tensors of one safetensors file. Its header is checked here; values are read when asked for.

    All methods may be called from several threads.

    Args:
        path: the file.

    Attributes:
        path: the file.
        tensors: every tensor by name, in the order on disk.

    Raises:
        CheckpointError: see `read_header`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._state = _state(path.stat())
        infos, first = read_header(path)
        self.tensors = {info.name: info for info in infos}
        self._starts = starts_of(infos, first)
        self._lock = threading.Lock()
        self._map: Any = None
        self._closed = False

    def read(self, name: str) -> Tensor:
        """The values of one tensor, a view of the file's pages wherever the system can map the file.

        Do not write into a view: the file stays as it is, but later reads of the tensor see what was written. A view
        stays valid after `close`.

        Raises:
            CheckpointError: the file is closed, or was removed or changed since it was opened.
        """
        try:
            with self._lock, reading(self.path):
                self._check(self.path.stat())
                if self._map is None:
                    self._map = safe_open(self.path, "pt")
                tensor: Tensor = self._map.get_tensor(name)
                return tensor
        except RuntimeError:  # The system refuses to map a file larger than its memory.
            info = self.tensors[name]
            return self.piece(name, 0, info.numel).reshape(info.shape)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Some elements of one tensor, flat, in memory of their own.

        They are read from the file and not mapped: reading all of it leaves none of its pages in the process.

        Args:
            name: one of its tensors.
            start: the first element.
            stop: the element past the last.

        Raises:
            CheckpointError: as `read`.
        """
        dtype, at = self.tensors[name].dtype, self._starts[name]
        data = torch.empty((stop - start) * dtype.itemsize, dtype=torch.uint8)
        read = 0
        # Opened for each piece: the shards of many models may be more files than a process may hold open.
        with reading(self.path), self.path.open("rb", buffering=0) as file:
            self._check(os.fstat(file.fileno()))
            file.seek(at + start * dtype.itemsize)
            while read < len(data):
                count = file.readinto(data.numpy().data[read:])
                if not count:
                    raise self._changed()
                read += count
        return data.view(dtype)

    def close(self) -> None:
        """Ends reading; views stay valid."""
        with self._lock:
            self._closed = True
            self._map = None

    def _check(self, found: os.stat_result) -> None:
        if self._closed:
            raise CheckpointError(f"{self.path}: the checkpoint is closed; open it again to read")
        if _state(found) != self._state:
            raise self._changed()

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: changed since it was opened; do not write to a model that is in use")


def _state(found: os.stat_result) -> tuple[int, ...]:
    """What is different once a file was replaced, truncated or written to."""
    # Not the inode: some network file systems give a file another number each time.
    return found.st_size, found.st_mtime_ns


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
