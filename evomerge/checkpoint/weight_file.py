"""`WeightFile`: the tensors of one safetensors file, read lazily."""

from __future__ import annotations

import os
import threading
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
        infos, first = read_header(path)
        self.tensors = {info.name: info for info in infos}
        self._starts = starts_of(infos, first)
        self._lock = threading.Lock()
        self._map: Any = None
        self._file: FileIO | None = None
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
                self._check_open()
                if self._map is None:
                    self._map = safe_open(self.path, "pt")
                tensor: Tensor = self._map.get_tensor(name)
                return tensor
        except SafetensorError as error:
            raise self._changed() from error
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
        with self._lock, reading(self.path):
            self._check_open()
            file = self._file = self._file or FileIO(self.path)
        read = 0
        while read < len(data):
            with reading(self.path):
                count = os.preadv(file.fileno(), [data.numpy().data[read:]], at + start * dtype.itemsize + read)
            if count == 0:
                raise self._changed()
            read += count
        return data.view(dtype)

    def close(self) -> None:
        """Closes the file; views of it stay valid."""
        with self._lock:
            self._closed = True
            self._map = None
            if self._file is not None:
                self._file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise CheckpointError(f"{self.path}: the checkpoint is closed; open it again to read")

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: changed since it was opened; do not write to a model that is in use")


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
