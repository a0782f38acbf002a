"""Where the sources live during a search, and reading them from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import psutil
import torch
from torch import Tensor

from evomerge.build.plan import all_finite
from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError, EvaluationError

Place = Literal["device", "memory", "disk"]

HEADROOM = 0.8
"""The part of what is free that is filled; the rest is for activations and for the system."""


def compute_device(device: str) -> torch.device:
    """Returns the device on which merges are computed, for ``--device``.

    Raises:
        EvaluationError: this machine has no such device.
    """
    name = device
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as fault:
        reason = (str(fault).splitlines() or ["unknown"])[0]
        raise EvaluationError(f"--device {device}: not to be had here ({reason}); use cpu, cuda, mps or auto") from None
    return found


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a device, or of the machine for the CPU, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def residence(source_bytes: int, model_bytes: int, device: torch.device) -> Place:
    """Returns where sources are kept: the fastest place in which they fit beside the resident model.

    Args:
        source_bytes: the bytes of all sources together.
        model_bytes: the bytes of the model that is refilled.
        device: where the merge is computed.
    """
    if device.type == "cuda" and source_bytes + model_bytes < HEADROOM * free_bytes(device):
        return "device"
    beside = 0 if device.type == "cuda" else model_bytes
    memory = torch.device("cpu")
    return "memory" if source_bytes + beside < HEADROOM * free_bytes(memory) else "disk"


class Sources:
    """The tensors of all sources, read once and kept where `place` says.

    Args:
        checkpoints: every source by its name in the recipe.
        place: ``device``, ``memory``, or ``disk``: read from the memory-mapped files each time.
        device: where tensors are handed out.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], place: Place, device: torch.device) -> None:
        self.place = place
        self._checkpoints = checkpoints
        self._device = device
        self._kept: dict[tuple[str, str], Tensor] = {}

    def load(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Reads every tensor once, refuses what is not finite, and keeps the rest as `place` says.

        Args:
            progress: called with the bytes of each tensor that was read.

        Raises:
            CheckpointError: a tensor cannot be read, or holds a value that is not finite.
        """
        for model, checkpoint in self._checkpoints.items():
            for name, info in checkpoint.tensors.items():
                tensor = checkpoint.read(name)
                if tensor.is_floating_point() and not all_finite(tensor):
                    count = int((~torch.isfinite(tensor)).sum())
                    raise CheckpointError(
                        f"{model}: {name} has {count:,} values that are NaN or infinite, of {tensor.numel():,};"
                        " a merge with it would be of no use; get a sound copy of the model"
                    )
                if self.place == "device":
                    self._kept[model, name] = tensor.to(self._device)
                elif self.place == "memory":
                    # A copy: a view of the memory map would have the system read the disk again at its whim.
                    kept = tensor.clone()
                    self._kept[model, name] = kept.pin_memory() if self._device.type == "cuda" else kept
                progress(info.nbytes)

    def read(self, model: str, name: str) -> Tensor:
        """Returns a tensor in its own dtype, on the device; it is not to be changed."""
        kept = self._kept.get((model, name))
        if kept is None:
            kept = self._checkpoints[model].read(name)
        return kept.to(self._device, non_blocking=True)
