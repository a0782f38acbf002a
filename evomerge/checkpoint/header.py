"""The small parts of a checkpoint, none of which is trusted: headers of safetensors files, and JSON files.

The format (https://github.com/huggingface/safetensors#format): eight bytes, little-endian, with the
header's length; the header, a JSON object from tensor names to dtype, shape and offsets; then the bytes of
all tensors, without holes. Offsets count from the end of the header.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evomerge.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_METADATA = "__metadata__"

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
# Only in newer versions of torch; with an older one, a file that uses it is refused as one of an unknown dtype.
if hasattr(torch, "float8_e8m0fnu"):
    _DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

# Enough for the index of any known model a hundred times over; a larger file is an attack or a mistake.
_MOST_JSON_BYTES = 100_000_000

_DAMAGED = "the file is damaged or malicious; download it again from a source that you trust"


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is, without its values.

    Attributes:
        name: its name in the checkpoint.
        dtype: the dtype in which it is stored.
        shape: its shape; ``()`` for a scalar.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return self.numel * self.dtype.itemsize


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Raises a CheckpointError that names `what` where the system refuses to read it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what}: cannot be read: {error.strerror or error}") from error


def _damaged(path: Path, fault: str) -> CheckpointError:
    return CheckpointError(f"{path}: {fault}; {_DAMAGED}")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs; a duplicate key is an error, as readers differ in which value they take."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"a duplicate key, {key!r}")
        key.encode()  # half a surrogate pair is a ValueError here, and not later in the writer
        found[key] = value
    return found


def _parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, its keys unique at every depth."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"expected JSON, found {str(error) or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a small file holds.

    Args:
        path: a file of at most 100 MB.

    Raises:
        CheckpointError: it cannot be read, is too large, not JSON, or not an object.
    """
    with reading(path):
        size = path.stat().st_size
        if size > _MOST_JSON_BYTES:
            raise _damaged(path, f"expected at most {_MOST_JSON_BYTES:,} bytes of JSON, found {size:,}")
        return _parse_object(path.read_bytes(), path)


def weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, by an index whose file names are all safe.

    Args:
        index: a ``model.safetensors.index.json``.

    Raises:
        CheckpointError: the index is damaged, or names a shard outside its folder or one that is not safetensors.
    """
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object from tensor names to shard names")
    for shard in set(found.values()):
        if not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names the shard {shard!r}; only .safetensors files are read: a pickle runs code"
            )
        # The separators of all systems and the colon of a drive: the file may come from any of them.
        if re.search(r"[/\\:\x00]", shard) or shard.startswith(".."):
            raise CheckpointError(
                f"{index}: names the shard {shard!r}, which leads out of its folder; expected a plain file name. "
                "Do not use this checkpoint"
            )
    return found


def read_header(path: Path) -> tuple[list[TensorInfo], int]:
    """The tensors of a safetensors file in the order of their bytes, and the first byte of the first tensor.

    safetensors checks that the header describes the file's bytes exactly: types, sizes, no holes, no overlaps.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, truncated, malformed, or has a dtype that torch lacks.
    """
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            # For numpy: for torch it would map the whole file, which the system refuses where memory is short.
            with safe_open(path, "numpy") as opened:
                slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
        except SafetensorError as error:
            fault = str(error).removeprefix("Error while deserializing header: ")
            if not fault.endswith("not fully covered"):
                raise _damaged(
                    path, f"expected a safetensors file, found {size:,} bytes with a fault: {fault}"
                ) from None
            header = _parse_object(file.read(start - 8), path)
            end = start + max((header[name]["data_offsets"][1] for name in header.keys() - {_METADATA}), default=0)
            if size < end:
                raise _damaged(path, f"truncated: its header describes {end:,} bytes, found {size:,}") from None
            raise _damaged(path, f"expected {end:,} bytes, found {size - end:,} after the last tensor") from None
        _parse_object(file.read(start - 8), path)  # safetensors takes the last of several tensors of one name.
    infos = []
    for name, view in slices.items():
        code, shape = view.get_dtype(), tuple(view.get_shape())
        if code not in _DTYPES:
            raise CheckpointError(f"{path}: {name} is {code}, which cannot be read; use one of {', '.join(_DTYPES)}")
        infos.append(TensorInfo(name, _DTYPES[code], shape))
        # Torch multiplies dimensions in 64 bits, those of an empty tensor too.
        if math.prod(length for length in shape if length) * infos[-1].dtype.itemsize >= 2**63:
            raise _damaged(path, f"{name}: shape {list(shape)} is too large to address")
    return infos, start


def encode_header(infos: Sequence[TensorInfo]) -> bytes:
    """The first bytes of a file that holds these tensors in this order; a multiple of 8, so that values are aligned.

    Args:
        infos: the tensors, names unique, of dtypes that safetensors has.
    """
    entries: dict[str, Mapping[str, Any]] = {_METADATA: {"format": "pt"}}
    starts = starts_of(infos, 0)
    for info in infos:
        offsets = [starts[info.name], starts[info.name] + info.nbytes]
        entries[info.name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def starts_of(infos: Sequence[TensorInfo], first: int) -> dict[str, int]:
    """The first byte of each tensor of a file, by name.

    Args:
        infos: the file's tensors, in the order of their bytes.
        first: the first byte of the first tensor.
    """
    starts = {}
    for info in infos:
        starts[info.name] = first
        first += info.nbytes
    return starts
