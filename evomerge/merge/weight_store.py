"""Where the models' weights are kept during a search, and reading them from there."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError, EvaluationError
from evomerge.kernels import LazyTensor, Operands, all_finite
from evomerge.merge.plan import MERGED, Job

Tier = Literal["device", "memory", "disk"]

HEADROOM = 0.8
"""The share of free memory that is filled; the rest is for activations and for the system."""


def compute_device(device: str) -> torch.device:
    """Returns the device on which merges are computed, for ``--device``.

    Raises:
        EvaluationError: this machine has no such device.
    """
    name = device
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        # Of a tensor there: "cuda" is given its index, without which it is equal to no tensor's device.
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as fault:
        reason = (str(fault).splitlines() or ["unknown"])[0]
        raise EvaluationError(f"--device {device}: not available here ({reason}); use cpu, cuda, mps or auto") from None


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Returns the free memory of a device, or for the CPU of the machine or the container, in bytes.

    Args:
        device: the device.
        root: where Linux shows the limits of containers.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_container_bytes(root)])


def _container_bytes(root: Path) -> Iterator[int]:
    """Yields what is left of the memory limit of each control group of this process.

    https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # Not Linux.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, most, used, total = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, most, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            total = "total_"
        else:
            continue
        own = mount / path.strip("/")
        # In a container, the path may be the host's, while the mount shows the container's own group at its top.
        for group in (own, *own.parents):
            if not group.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):  # No such group, or its limit is "max".
                left = int((group / most).read_text()) - int((group / used).read_text())
                counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # Pages of files, such as those of the models, are freed when memory is needed.
                yield max(0, left + sum(int(counts.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive")))


def choose_tier(source_bytes: int, model_bytes: int, device: torch.device) -> Tier:
    """Returns the fastest tier in which the weights fit beside the resident model.

    Args:
        source_bytes: the bytes of all models that are merged.
        model_bytes: the bytes of the model that is refilled.
        device: where the merge is computed.
    """
    if device.type == "cuda" and source_bytes + model_bytes < HEADROOM * free_bytes(device):
        return "device"
    beside = 0 if device.type == "cuda" else model_bytes
    return "memory" if source_bytes + beside < HEADROOM * free_bytes(torch.device("cpu")) else "disk"


_HELD = 1 << 24
"""Elements of the largest tensor that is held while it is merged where weights are read from files once."""


class WeightStore:
    """The tensors of all models, read once and kept where `tier` says.

    Args:
        checkpoints: every model by its name in the recipe.
        tier: ``device``, ``memory``, or ``disk``: read from the files each time.
        device: the device on which tensors are read; the CPU for MPS, which lacks the float64 that merging needs.
        reused: whether many candidates are built from them, so that what is measured of them is kept.
    """

    def __init__(
        self, checkpoints: Mapping[str, Checkpoint], tier: Tier, device: torch.device, *, reused: bool = True
    ) -> None:
        self.tier = tier
        # Of a tensor there, as in `compute_device`.
        self.device = torch.empty(0, device="cpu" if device.type == "mps" else device).device
        self._checkpoints = checkpoints
        self._reused = reused
        self._kept: dict[tuple[str, str], Tensor] = {}
        self._operands: dict[Hashable, Operands] = {}

    def load(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Reads every tensor once, refuses what is not finite, and keeps the rest as `tier` says.

        Args:
            progress: called with the bytes of each tensor that was read.

        Raises:
            CheckpointError: a tensor cannot be read, or holds a value that is not finite.
        """
        for model, checkpoint in self._checkpoints.items():
            for name, info in checkpoint.tensors.items():
                tensor = checkpoint.read(name)
                if tensor.dtype in MERGED and not all_finite(tensor):
                    count = int((~torch.isfinite(tensor)).sum())
                    raise CheckpointError(
                        f"{model}: {name} has {count:,} values that are NaN or infinite, of {tensor.numel():,};"
                        " a merge would spread them; get an intact copy of the model"
                    )
                if self.tier == "device":
                    self._kept[model, name] = tensor.contiguous().to(self.device)
                elif self.tier == "memory":
                    # A copy: pages of a memory map may be dropped, and read from the disk again.
                    kept = tensor.clone(memory_format=torch.contiguous_format)
                    self._kept[model, name] = kept.pin_memory() if self.device.type == "cuda" else kept
                progress(info.nbytes)
        # All objects of now (torch's above all) stay. Otherwise Python's garbage collection goes through them again and
        # again, which takes a tenth of the time in which a candidate is built.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def measured(self, job: Job) -> bool:
        """Returns whether what `job` merges was measured for earlier candidates, so that it begins quickly."""
        return self._key(job) in self._operands

    def operands(self, job: Job) -> Operands:
        """Returns what `job` merges, with all that was measured of it for earlier candidates."""
        key = self._key(job)
        if key in self._operands:
            return self._operands[key]
        base = None if job.base is None else self._tensor(*job.base)
        kept = self._reused and self.tier != "disk"
        found = Operands([self._tensor(*ref) for ref in job.inputs], base, job.info.name, kept=kept)
        if self._reused:
            self._operands[key] = found
        return found

    def _key(self, job: Job) -> Hashable:
        return job.info.name, job.inputs, job.base

    def _tensor(self, model: str, name: str) -> LazyTensor:
        checkpoint, device = self._checkpoints[model], self.device
        shape = checkpoint.tensors[name].shape
        kept = self._kept.get((model, name))

        if kept is not None and kept.device == device:
            return LazyTensor.of(kept)
        # Some methods read a tensor several times: what is small is held from the first piece to the last.
        whole = cache(lambda: checkpoint.piece(name, 0, math.prod(shape)).to(device))

        def piece(start: int, stop: int) -> Tensor:
            if kept is not None:
                return kept.view(-1)[start:stop].to(device, non_blocking=True)
            if not self._reused and stop - start < math.prod(shape) <= _HELD:
                return whole()[start:stop]
            return checkpoint.piece(name, start, stop).to(device)

        return LazyTensor(shape, device, piece)
