"""`CheckpointWriter`: shards, then one rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from torch import Tensor

from evomerge.checkpoint.folder import TEMPLATES
from evomerge.checkpoint.header import CONFIG, INDEX, WEIGHTS, TensorInfo, encode_header, starts_of
from evomerge.checkpoint.target import Target, sync
from evomerge.checkpoint.weight_file import bytes_of
from evomerge.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Bytes after which the disk is set to work while more are merged, so that little is left for the end.
_SYNCED_TOGETHER = 1 << 26


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
    to its place. `write` may be called from several threads.
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
            folder: the target; its parents are made where missing.
            layout: every tensor that will be written, in the order in which they should lie.
            shard_bytes: the most bytes of tensors in a file; a larger tensor has one of its own.
            overwrite: replace an existing folder, at the rename, if a checkpoint is all that it holds.
            needed: files and folders that the target must not be or hold, nor so the current and the home folder.

        Raises:
            CheckpointError: the target is not empty, or not one to overwrite; the layout has a name twice or a
                dtype that safetensors lacks; or the disk has too little room.
        """
        self._target = Target(folder, overwrite=overwrite, needed=needed)
        self.folder = self._target.folder
        self._shards = _plan(layout, shard_bytes)
        self._where = {name: shard for shard in self._shards for name in shard.tensors}
        self._left = {info.name: info.numel for info in layout if info.numel}
        self._files: dict[str, FileIO] = {}
        self._state = "new"
        self._lock = threading.Condition()
        self._writing = 0
        self._unsynced = 0
        self._syncing: threading.Thread | None = None
        try:
            self._target.check()
            self._check_room()
        except OSError as error:
            raise self._abandon(error) from error

    def __enter__(self) -> CheckpointWriter:
        """Makes the temporary folder and the empty shards.

        Raises:
            CheckpointError: another process is writing this folder, or the disk refuses.
        """
        if self._state != "new":
            raise CheckpointError(f"{self.folder}: a writer is used once; make another")
        try:
            self._target.begin()
            self._state = "open"
            for shard in self._shards:
                file = self._files[shard.name] = FileIO(self._target.new / shard.name, "x")
                _write_at(file, memoryview(shard.head), 0)
                file.truncate(shard.nbytes)
        except OSError as error:
            raise self._abandon(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was written, unless it was committed."""
        with self._lock:
            if self._state == "open":
                self._discard()

    def write(self, name: str, tensor: Tensor) -> None:
        """Puts one tensor in its place; any order.

        Args:
            name: one of the layout's names, not written yet.
            tensor: of the layout's dtype and shape, on any device.

        Raises:
            CheckpointError: the layout has no such tensor, it was written before, its dtype or shape is
                another, or the disk is full; after the last, nothing is left behind.
        """
        info = self._info(name)
        if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
            raise CheckpointError(
                f"{self.folder}: {name}: expected {info.dtype} of shape {list(info.shape)}, "
                f"found {tensor.dtype} of shape {list(tensor.shape)}"
            )
        self._write(info, 0, tensor)

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        """Puts some elements of a tensor in their place; any order, each element once.

        Args:
            name: one of the layout's names.
            start: the first element's index in the flattened tensor.
            part: the elements from there on, flat, of the layout's dtype, on any device.

        Raises:
            CheckpointError: as for `write`, or the part goes past the tensor's end.
        """
        info = self._info(name)
        if part.dtype != info.dtype or start + part.numel() > info.numel:
            raise CheckpointError(
                f"{self.folder}: {name}: expected elements {start} to {info.numel} at most, of {info.dtype}, "
                f"found {part.numel()} of {part.dtype}"
            )
        self._write(info, start, part)

    def _info(self, name: str) -> TensorInfo:
        shard = self._where.get(name)
        if shard is None:
            raise CheckpointError(f"{self.folder}: cannot write {name!r}: the layout has no such tensor")
        return shard.tensors[name]

    def _write(self, info: TensorInfo, start: int, tensor: Tensor) -> None:
        if info.numel == 0:
            return
        shard = self._where[info.name]
        values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        data = bytes_of(values)
        with self._lock:
            self._check_open()
            left = self._left.get(info.name, 0) - tensor.numel()
            if info.name not in self._left or left < 0:
                raise CheckpointError(f"{self.folder}: {info.name} is written twice; write each tensor once")
            self._left[info.name] = left
            if left == 0:
                del self._left[info.name]
            file = self._files[shard.name]
            self._writing += 1
        # Several threads at once; the files stay open until all have come back.
        fault = None
        try:
            _write_at(file, data, shard.starts[info.name] + start * info.dtype.itemsize)
        except OSError as error:
            fault = error
        with self._lock:
            self._writing -= 1
            self._lock.notify_all()
            if fault is not None:
                self._lock.wait_for(lambda: self._writing == 0)
                raise self._abandon(fault) from fault
            self._unsynced += len(data)
            if self._unsynced >= _SYNCED_TOGETHER and (self._syncing is None or not self._syncing.is_alive()):
                self._unsynced = 0
                self._syncing = threading.Thread(target=_begin_sync, args=(self._target.new / shard.name,))
                self._syncing.start()

    def commit(
        self,
        *,
        config: Mapping[str, Any],
        files: Iterable[Path] = (),
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Adds the small files, waits until all is on the disk, and renames the folder to the target.

        Args:
            config: what config.json shall say.
            files: files to copy by their names, as `Checkpoint.side_files` gives them.
            texts: further files by name; they win over `files` of the same name.

        Raises:
            CheckpointError: a tensor of the layout was not written, a file's name is not plain or taken by
                the checkpoint itself, `config` is not JSON, or the disk is full.
        """
        with self._lock:
            self._check_open()
            if self._left:
                some = ", ".join(sorted(self._left)[:3])
                raise CheckpointError(
                    f"{self.folder}: {len(self._left)} tensors of the layout were not written, e.g. {some}"
                )
            try:
                config_text = json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{self.folder}: the config is not JSON: {error}") from error
            own = {CONFIG: config_text}
            if len(self._shards) != 1:
                own[INDEX] = self._index()
            copies = {_target_name(path): path for path in files}
            self._check_names([*copies, *texts])
            try:
                for name, path in copies.items():
                    if name not in texts:
                        (self._target.new / name).parent.mkdir(exist_ok=True)
                        shutil.copyfile(path, self._target.new / name)
                        sync(self._target.new / name)
                for name, text in {**texts, **own}.items():
                    (self._target.new / name).write_text(text, encoding="utf-8", newline="")
                    sync(self._target.new / name)
                for file in self._files.values():
                    os.fsync(file.fileno())
                self._close_files()
                self._target.finish()
            except OSError as error:
                raise self._abandon(error) from error
            self._state = "committed"

    def _check_room(self) -> None:
        """The disk must have room for all shards before the first is begun."""
        place = self.folder.parent
        while not place.exists():
            place = place.parent
        needed = sum(shard.nbytes for shard in self._shards)
        free = shutil.disk_usage(place).free + self._target.stale_bytes()
        if needed > free:
            raise CheckpointError(
                f"{self.folder}: the disk is too full: {needed:,} bytes needed, {free:,} free; "
                "free some, or write elsewhere"
            )

    def _check_open(self) -> None:
        """Writing is possible between entering the context and `commit`."""
        if self._state != "open":
            raise CheckpointError(
                f"{self.folder}: the writer is {self._state}; write and commit inside its `with` block"
            )

    def _check_names(self, names: Iterable[str]) -> None:
        """Small files must stay in the folder and not replace what the writer itself makes."""
        taken = {CONFIG.lower(), INDEX.lower(), *(shard.name.lower() for shard in self._shards)}
        for name in names:
            plain = name.removeprefix(f"{TEMPLATES}/")
            if not plain or plain in (".", "..") or any(sign in plain for sign in "/\\:\0"):
                raise CheckpointError(f"{self.folder}: {name!r}: expected a plain file name")
            # Some file systems ignore case.
            if name.lower() in taken:
                raise CheckpointError(f"{self.folder}: {name} is written by the writer itself; leave it out")

    def _index(self) -> str:
        """The text of model.safetensors.index.json."""
        total = sum(info.nbytes for shard in self._shards for info in shard.tensors.values())
        names = {name: self._where[name].name for name in sorted(self._where)}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2) + "\n"

    def _abandon(self, error: OSError) -> CheckpointError:
        """Removes what was written; the error to raise for what the disk said."""
        self._discard()
        if error.errno in _FULL:
            needed = sum(shard.nbytes for shard in self._shards)
            with suppress(OSError):
                free = shutil.disk_usage(self.folder.parent).free
                return CheckpointError(
                    f"{self.folder}: the disk is full: {needed:,} bytes needed in all, {free:,} free now "
                    "that the unfinished files are removed; free some, or write elsewhere"
                )
        return CheckpointError(f"{self.folder}: cannot be written: {error}")

    def _discard(self) -> None:
        """Closes and removes everything that was written."""
        self._state = "abandoned"
        self._close_files()
        self._target.discard()

    def _close_files(self) -> None:
        while self._files:
            with suppress(OSError):
                self._files.popitem()[1].close()


def _plan(layout: Sequence[TensorInfo], shard_bytes: int) -> tuple[_Shard, ...]:
    """The shards, filled in the layout's order, named as transformers names them."""
    if shard_bytes < 1:
        raise CheckpointError(f"shard_bytes is {shard_bytes}; expected 1 or more")
    groups: list[list[TensorInfo]] = [[]]
    names: set[str] = set()
    filled = 0
    for info in layout:
        if info.name in names:
            raise CheckpointError(f"the layout has {info.name} twice; name each tensor once")
        names.add(info.name)
        if groups[-1] and filled + info.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += info.nbytes
    shards = []
    for number, group in enumerate(groups, 1):
        name = WEIGHTS if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        # Wide elements first: every tensor then starts at a multiple of its element's size, without holes.
        infos = sorted(group, key=lambda info: -info.dtype.itemsize)
        head = encode_header(infos)
        shards.append(_Shard(name, head, {info.name: info for info in infos}, starts_of(infos, len(head))))
    return tuple(shards)


def _target_name(path: Path) -> str:
    """The name under which a copied file is stored."""
    return f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name


def _write_at(file: FileIO, data: memoryview, start: int) -> None:
    """All of the bytes, at their place; a short write (more than 2 GiB, a disk nearly full) goes on."""
    while data:
        count = os.pwrite(file.fileno(), data, start)
        data, start = data[count:], start + count


def _begin_sync(path: Path) -> None:
    """Does as `sync` ahead of time; what fails fails again at the end, where it is told."""
    with suppress(OSError):
        sync(path)
