"""`RenamedCheckpoint`: a checkpoint's tensors under other names, and embeddings with more rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoint import Checkpoint, CheckpointView, TensorInfo


class RenamedCheckpoint(CheckpointView):
    """Some of a checkpoint's tensors under other names.

    Args:
        inner: the checkpoint.
        names: the name of each tensor to the name that it has in `inner`.
        config: the config.
        difference: what makes it another than `inner`, for its fingerprint.
        padding: for tensors that have further rows (tokens of images, for instance): the checkpoint, with as wide a
            tensor of this name, from which those rows are taken.
    """

    def __init__(
        self,
        inner: Checkpoint,
        names: Mapping[str, str],
        config: Mapping[str, Any],
        difference: str,
        padding: Mapping[str, Checkpoint] = MappingProxyType({}),
    ) -> None:
        self._names = names
        self._padding = padding
        tensors = {}
        for name, own in names.items():
            like = padding[name].tensors[name] if name in padding else inner.tensors[own]
            tensors[name] = TensorInfo(name, inner.tensors[own].dtype, like.shape)
        super().__init__(inner, difference=difference, config=config, tensors=tensors)

    def made(self, name: str) -> Tensor:
        """See `CheckpointView.made`."""
        own = self.inner.read(self._names[name])
        if name not in self._padding:
            return own
        return torch.cat([own, self._padding[name].read(name)[len(own) :].to(own.dtype)])

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """See `Checkpoint.piece`."""
        if name in self._padding:
            return super().piece(name, start, stop)
        return self.inner.piece(self._names[name], start, stop)
