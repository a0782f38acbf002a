"""`CheckpointWriter`: shards, then one rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from evomerge.checkpoint.folder import TEMPLATES
from evomerge.checkpoint.header import CONFIG, INDEX, WEIGHTS, TensorInfo, encode_header, starts_of
from evomerge.checkpoint.target import Target, sync
from evomerge.checkpoint.weight_file import bytes_of
from evomerge.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class _Shard:
    """A file to write: its name, its first bytes, and each tensor with its first byte."""

    name: str
    head: bytes
    tensors: Mapping[str, TensorInfo]
    starts: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(info.nbytes for info in self.tensors.values())


class CheckpointWriter:
    """Shards, then one rename.

    A context manager. The files are written into a folder beside the target; `commit` makes that the target by one
    rename, see `Target`. Left without `commit`, by an error or not, it removes what it wrote; a killed run's remains
    are removed when the next writer of the same folder starts. Memory is bounded by a tensor: each one goes straight
    to its position in its file. `write` may be called from several threads.
    """

    def __init__(
        self,
        folder: Path,
        layout: Sequence[TensorInfo],
        *,
        shard_bytes: int = 5 * 10**9,
        overwrite: bool = False,
        needed: Iterable[Path] = (),
    ) -> None:
        """Plans the shards and checks the target and the disk; nothing is written yet.

        Args:
            folder: the target; missing parents are created.
            layout: every tensor that will be written, in the order in which they should lie, names unique.
            shard_bytes: the most bytes of tensors in a file; a larger tensor has one of its own.
            overwrite: replace an existing folder, at the rename, if a checkpoint is all that it holds.
            needed: files and folders that the target must not be or contain; the current and the home folder are
                always among them.

        Raises:
            CheckpointError: the target is not empty, or not one to overwrite; or the disk has too little room.
        """
        self._target = Target(folder, overwrite=overwrite, needed=needed)
        self.folder = self._target.folder
        self._shards = _plan(layout, shard_bytes)
        self._shard_of = {name: shard for shard in self._shards for name in shard.tensors}
        self._left = {info.name: info.numel for info in layout if info.numel}
        self._files: dict[str, FileIO] = {}
        self._lock = threading.Lock()
        with self._errors():
            self._target.check()
            needed_bytes, free = self._room()
            if needed_bytes > free:
                raise OSError(errno.ENOSPC, "as the disk would say when it is full")

    def __enter__(self) -> CheckpointWriter:
        """Makes the temporary folder and the empty shards.

        Raises:
            CheckpointError: another process is writing this folder, or the disk refuses.
        """
        try:
            with self._errors():
                self._target.begin()
                for shard in self._shards:
                    file = self._files[shard.name] = FileIO(self._target.new / shard.name, "x")
                    _write_at(file, memoryview(shard.head), 0)
                    file.truncate(shard.nbytes)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Removes what was written, unless it was committed."""
        while self._files:
            with suppress(OSError):
                self._files.popitem()[1].close()
        self._target.discard()

    def write(self, name: str, values: Tensor, start: int | None = None) -> None:
        """Writes a tensor, or some of its elements, to its position in its file; any order, each element once.

        Args:
            name: one of the layout's names.
            values: of the layout's dtype, on any device: the whole tensor, or with `start` some elements of it, flat.
            start: the first element's index in the flattened tensor.

        Raises:
            CheckpointError: the layout has no such tensor, it was written before, its dtype or shape is
                another, or the disk is full.
        """
        shard = self._shard_of.get(name)
        if shard is None:
            raise CheckpointError(f"{self.folder}: cannot write {name!r}: the layout has no such tensor")
        info, first = shard.tensors[name], start or 0
        fits = values.shape == info.shape if start is None else first + values.numel() <= info.numel
        if values.dtype != info.dtype or not fits:
            raise CheckpointError(
                f"{self.folder}: {name}: expected {info.dtype} of shape {list(info.shape)}, "
                f"found {values.dtype} of shape {list(values.shape)}{'' if start is None else f' at element {start}'}"
            )
        data = bytes_of(values.detach().cpu().resolve_conj().resolve_neg().contiguous())
        with self._lock:
            left = self._left.get(name, 0) - values.numel()
            if left < 0:
                raise CheckpointError(f"{self.folder}: {name} is written twice; write each tensor once")
            self._left[name] = left
        with self._errors():
            _write_at(self._files[shard.name], data, shard.starts[name] + first * info.dtype.itemsize)

    def commit(
        self,
        *,
        config: Mapping[str, Any],
        files: Iterable[Path] = (),
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Adds the small files, waits until all is on the disk, and renames the folder to the target.

        Args:
            config: the content of config.json.
            files: files to copy by their names, as `Checkpoint.side_files` gives them.
            texts: further files by name; they win over `files` of the same name.

        Raises:
            CheckpointError: a tensor of the layout was not written, or the disk is full.
        """
        missing = sorted(name for name, count in self._left.items() if count)
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} tensors of the layout were not written, e.g. {', '.join(missing[:3])}"
            )
        own = {CONFIG: json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"}
        if len(self._shards) != 1:
            own[INDEX] = self._index()
        copies = {_target_name(path): path for path in files}
        with self._errors():
            for name in copies.keys() - texts.keys():
                (self._target.new / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(copies[name], self._target.new / name)
                sync(self._target.new / name)
            for name, text in {**texts, **own}.items():
                (self._target.new / name).parent.mkdir(exist_ok=True)
                (self._target.new / name).write_text(text, encoding="utf-8", newline="")
                sync(self._target.new / name)
            for file in self._files.values():
                os.fsync(file.fileno())
            self._target.finish()

    def _index(self) -> str:
        """The text of model.safetensors.index.json."""
        total = sum(info.nbytes for shard in self._shards for info in shard.tensors.values())
        names = {name: self._shard_of[name].name for name in sorted(self._shard_of)}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2) + "\n"

    def _room(self) -> tuple[int, int]:
        """The bytes of all shards; and those that are free on the disk once unfinished files are removed."""
        folder = next(parent for parent in self.folder.parents if parent.exists())
        return sum(shard.nbytes for shard in self._shards), shutil.disk_usage(folder).free + self._target.stale_bytes()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises a CheckpointError in place of the system's errors."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                needed, free = self._room()
                raise CheckpointError(
                    f"{self.folder}: the disk is too full: {needed:,} bytes needed, {free:,} free; "
                    "free some, or write elsewhere"
                ) from error
            raise CheckpointError(f"{self.folder}: cannot be written: {error}") from error


def _plan(layout: Sequence[TensorInfo], shard_bytes: int) -> tuple[_Shard, ...]:
    """The shards, filled in the layout's order, named as transformers names them."""
    from huggingface_hub import split_state_dict_into_shards_factory

    infos: dict[str, Any] = {info.name: info for info in layout}
    split = split_state_dict_into_shards_factory(
        infos,
        get_storage_size=lambda info: info.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    shards = []
    for file, names in (split.filename_to_tensors or {WEIGHTS: []}).items():
        # Wide elements first: every tensor then starts at a multiple of its element's size, without holes.
        group = sorted((infos[name] for name in names), key=lambda info: -info.dtype.itemsize)
        head = encode_header(group)
        shards.append(_Shard(file, head, {info.name: info for info in group}, starts_of(group, len(head))))
    return tuple(shards)


def _target_name(path: Path) -> str:
    """The name under which a copied file is stored."""
    return f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name


def _write_at(file: FileIO, data: memoryview, start: int) -> None:
    """Writes all of the bytes from `start` on; one call may write fewer (2 GiB at most, or a disk nearly full)."""
    end = start
    while data:
        count = os.pwrite(file.fileno(), data, end)
        data, end = data[count:], end + count
    if end > start and sys.platform == "linux":
        # The disk begins at once, while more is merged, so that little is left to wait for at the end.
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
