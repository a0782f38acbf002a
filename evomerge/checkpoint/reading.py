"""`Checkpoint`: a tensor by name, lazily, from a folder or a Hub id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoint.folder import files_beside
from evomerge.checkpoint.header import CONFIG, INDEX, WEIGHTS, TensorInfo, read_object, reading, weight_map
from evomerge.checkpoint.hub import folder_of
from evomerge.checkpoint.weight_file import WeightFile, bytes_of
from evomerge.errors import CheckpointError
from evomerge.paths import HERE

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Checkpoint:
    """A tensor by name, lazily, from a folder or a Hub id.

    Opening checks every file's header against its size without loading weights. All methods may be called
    from several threads. As a context manager it closes at the end.

    Attributes:
        reference: the text that it was opened with.
        folder: the folder that holds the files.
        config: what config.json says.
        tensors: every tensor by name, in the order in which they lie on disk: shard by shard, by offset.
            Reading in this order is sequential.
        nbytes: the bytes of all tensors.
    """

    reference: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    nbytes: int

    def __init__(self, reference: str, folder: Path) -> None:
        self.reference = reference
        self.folder = folder
        self.config = MappingProxyType(read_object(_config_of(reference, folder)))
        self._files = _weight_files(reference, folder)
        self.tensors = MappingProxyType({name: file.tensors[name] for name, file in self._files.items()})
        self.nbytes = sum(info.nbytes for info in self.tensors.values())

    @classmethod
    def open(cls, reference: str, folders: Sequence[Path] = HERE) -> Checkpoint:
        """The checkpoint that a reference names, checked but not loaded.

        Args:
            reference: ``path``, ``org/name`` or ``org/name@revision``. An existing folder wins over a Hub
                id; a Hub id is downloaded into the Hub's cache.
            folders: where local paths are looked for.

        Raises:
            CheckpointError: it cannot be found, or a file is missing, truncated, unsafe or inconsistent.
        """
        with reading(reference):
            return cls(reference, folder_of(reference, folders))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str, device: str | torch.device = "cpu") -> Tensor:
        """The values of one tensor, in its own dtype.

        On the CPU the result is a view of the file's pages where the system can map the file: they cost no memory
        that the system cannot take back. Do not write into it: the file stays as it is, but later reads see what was
        written. A view stays valid after `close`.

        Args:
            name: one of `tensors`.
            device: where the values go.

        Returns:
            A tensor of the dtype and shape of ``tensors[name]`` on `device`.

        Raises:
            CheckpointError: no such tensor, the checkpoint is closed, or its file was removed or changed.
        """
        self._check_name(name)
        return self.made(name).to(device)

    def made(self, name: str) -> Tensor:
        """The values of one of `tensors`, on the CPU, in the dtype and shape that it says.

        Raises:
            CheckpointError: as `read`.
        """
        return self._files[name].read(name)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Some elements of one tensor, flat, in its own dtype, in memory of their own on the CPU.

        They are read from the file and not mapped: reading all of it leaves none of its pages in the process.

        Args:
            name: one of `tensors`.
            start: the first element.
            stop: the element past the last.

        Raises:
            CheckpointError: no such tensor, the checkpoint is closed, or its file was removed or changed.
        """
        self._check_name(name)
        return self._files[name].piece(name, start, stop)

    def fingerprint(self, kept: MutableMapping[str, str] | None = None) -> str:
        """A hex digest that changes with any byte of the weights, the config or a side file.

        It does not depend on the folder's path, on times, or on the shards. Every byte is read, unless `kept` has it.

        Args:
            kept: digests of earlier calls, by the paths, sizes and times of change of the files that they are of; one
                that is computed is added.

        Raises:
            CheckpointError: the checkpoint is closed, or a file was removed.
        """
        kept = {} if kept is None else kept
        stamp = _stamp({self.folder / CONFIG, *(file.path for file in self._files.values()), *self.side_files()})
        if stamp not in kept:
            # Older transformers write the path that a model was loaded from into its config.
            config = {key: value for key, value in self.config.items() if key != "_name_or_path"}
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
            with ThreadPoolExecutor() as threads:
                hashes = dict(zip(self._files, threads.map(self._hash, self._files), strict=True))
            for name in sorted(hashes):
                info = self.tensors[name]
                digest.update(f"\n{name!r} {info.dtype} {info.shape} ".encode() + hashes[name])
            digest.update(side_hash(self).encode())
            kept[stamp] = digest.hexdigest()
        return kept[stamp]

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files of the weights, sorted."""
        return tuple(sorted({file.path for file in self._files.values()}))

    def side_files(self) -> tuple[Path, ...]:
        """The files beside the weights that a merged model needs too, sorted.

        The generation config, the tokenizer's and processors' files, chat templates; never code. A file in
        ``additional_chat_templates`` keeps that folder when `CheckpointWriter.commit` copies it.
        """
        return files_beside(self.folder)

    def paths(self) -> frozenset[Path]:
        """Everything that it is read from: its folder and its files, links followed."""
        paths = (self.folder, *(file.path for file in self._files.values()), *self.side_files())
        return frozenset(path.resolve() for path in paths)

    def close(self) -> None:
        """Closes the files. Tensors already read stay valid; reading more is an error."""
        for file in self._files.values():
            file.close()

    def _check_name(self, name: str) -> None:
        if name not in self.tensors:
            raise CheckpointError(f"{self.reference}: no tensor {name!r}; it has {len(self.tensors)} others")

    def _hash(self, name: str) -> bytes:
        return hashlib.sha256(bytes_of(self.made(name))).digest()


def side_hash(checkpoint: Checkpoint) -> str:
    """A hex digest of the names and bytes of a model's side files.

    Raises:
        CheckpointError: one cannot be read any more.
    """
    digest = hashlib.sha256()
    for path in checkpoint.side_files():
        with reading(path):
            data = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(checkpoint.folder).as_posix()!r} {data}\n".encode())
    return digest.hexdigest()


def _stamp(paths: set[Path]) -> str:
    """A hex digest of where files are, how large, and when they were changed."""
    digest = hashlib.sha256()
    for path in sorted(path.absolute() for path in paths):
        with reading(path):
            found = path.stat()
        digest.update(repr((str(path), found.st_size, found.st_mtime_ns)).encode())
    return digest.hexdigest()


def _config_of(reference: str, folder: Path) -> Path:
    """The path of config.json; the error where it is missing says what the folder is instead."""
    path = folder / CONFIG
    if path.is_file():
        return path
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{reference}: is an adapter, not a model; name both, as MODEL+{reference}")
    raise CheckpointError(f"{folder}: no {CONFIG}; expected the folder of a transformers model")


def _weight_files(reference: str, folder: Path) -> dict[str, WeightFile]:
    """The file of every tensor, in the order in which they lie on disk."""
    index = folder / INDEX
    # As transformers does: where both are there, the single file is the model.
    mapped = weight_map(index) if index.is_file() and not (folder / WEIGHTS).is_file() else {}
    shards = sorted(set(mapped.values())) or [WEIGHTS]
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing and not mapped:
        raise _no_weights(reference, folder)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing, the first {missing[0]}; "
            "download the model again"
        )
    found: dict[str, WeightFile] = {}
    for shard in shards:
        file = WeightFile(folder / shard)
        for name in file.tensors:
            if name in found:
                raise CheckpointError(
                    f"{folder}: the tensor {name} is in two shards, {found[name].path.name} and {shard}; "
                    "expected one; download the model again or save it again"
                )
            found[name] = file
    for name, shard in mapped.items():
        if name not in found or found[name].path.name != shard:
            where = f"found it in {found[name].path.name}" if name in found else "no shard has it"
            raise CheckpointError(
                f"{index}: expected the tensor {name} in {shard}, {where}; the index and the shards are not "
                "of the same model; download it again"
            )
    return found


def _no_weights(reference: str, folder: Path) -> CheckpointError:
    """The error for a folder without weights that can be read."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{reference}: has its weights only as pickles ({pickles[0]}), which can run any code when "
            f"opened; expected {WEIGHTS}. Convert them, if you trust them: "
            "python -c 'from transformers import AutoModelForCausalLM as M; "
            f'M.from_pretrained("{reference}", dtype="auto").save_pretrained("DIR")\''
        )
    others = sorted(path.name for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern))
    return CheckpointError(
        f"{folder}: no weights; expected {WEIGHTS} or {INDEX}, found {', '.join(others[:3]) or 'neither'}; "
        "download the model again, or save it with transformers' save_pretrained"
    )
