"""`CheckpointView`: a checkpoint seen in another way, some of its tensors computed as they are read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from evomerge.checkpoint.header import TensorInfo
from evomerge.checkpoint.reading import Checkpoint, side_hash


class CheckpointView(Checkpoint):
    """A checkpoint with some things changed, which is used like any `Checkpoint`.

    A subclass overrides `made`. What is not given is taken from the inner checkpoint.

    Attributes:
        inner: the checkpoint behind the view.
    """

    def __init__(
        self,
        inner: Checkpoint,
        *,
        difference: str,
        reference: str | None = None,
        folder: Path | None = None,
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, TensorInfo] | None = None,
    ) -> None:
        # Without Checkpoint's own initialisation: the files belong to the inner one.
        self.inner = inner
        self.reference = inner.reference if reference is None else reference
        self.folder = inner.folder if folder is None else folder
        self.config = inner.config if config is None else MappingProxyType(dict(config))
        self.tensors = inner.tensors if tensors is None else MappingProxyType(dict(tensors))
        self.nbytes = sum(info.nbytes for info in self.tensors.values())
        self._difference = difference
        self._held = threading.local()

    def made(self, name: str) -> Tensor:
        """See `Checkpoint.made`; by default the inner checkpoint's."""
        return self.inner.read(name)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `Checkpoint.piece`. Each thread keeps the last tensor that was computed for it, whole."""
        if getattr(self._held, "name", None) != name:
            self._held.name, self._held.flat = name, self.read(name).reshape(-1)
        flat: Tensor = self._held.flat
        return flat[start:stop]

    def fingerprint(self, kept: MutableMapping[str, str] | None = None) -> str:
        """A hex digest that changes with the inner checkpoint's and with what makes this view another."""
        parts = (self.inner.fingerprint(kept), self._difference, side_hash(self))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def paths(self) -> frozenset[Path]:
        """See `Checkpoint.paths`."""
        return self.inner.paths()

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self.inner.close()
