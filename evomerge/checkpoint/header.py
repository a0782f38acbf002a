"""The header of a safetensors file, both ways, trusting nothing that it says.

The format (https://github.com/huggingface/safetensors#format): eight bytes, little-endian, with the
header's length; the header, a JSON object from tensor names to dtype, shape and offsets; then the bytes of
all tensors, without holes. Offsets count from the end of the header.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

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
# Newer torch only; a file that uses it on an older torch gets the error for an unknown dtype.
if hasattr(torch, "float8_e8m0fnu"):
    _DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

# The limit of safetensors' own loader: what is past it, nobody else could load.
_MOST_HEADER_BYTES = 100_000_000
# Enough for the index of any known model a hundred times over; a larger file is an attack or a mistake.
_MOST_JSON_BYTES = 100_000_000

_DAMAGED = "the file is damaged or hostile; download it again from a source that you trust"


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


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        info: the tensor.
        start: its first byte, counted from the start of the file.
    """

    info: TensorInfo
    start: int


@contextmanager
def told(what: object) -> Iterator[None]:
    """Raises a CheckpointError that names `what` where the system does not let it be read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what}: cannot be read: {error.strerror or error}") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs; a key that is there twice is an error, as readers differ in which they take."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        key.encode()  # half a surrogate pair is a ValueError here, and not later in the writer
        found[key] = value
    return found


def _parse_object(data: bytes, fault: Callable[[str], CheckpointError]) -> dict[str, Any]:
    """The JSON object in `data`, its keys unique at every depth."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise fault(f"expected JSON, found {str(error) or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise fault(f"expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a small file holds.

    Args:
        path: an existing file of at most 100 MB.

    Raises:
        CheckpointError: it is not a regular file, too large, not JSON, or not an object.
    """

    def fault(text: str) -> CheckpointError:
        return CheckpointError(f"{path}: {text}; {_DAMAGED}")

    with told(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise fault("expected a file, found a folder or a device")
        if status.st_size > _MOST_JSON_BYTES:
            raise fault(f"expected at most {_MOST_JSON_BYTES:,} bytes of JSON, found {status.st_size:,}")
        data = path.read_bytes()
    return _parse_object(data, fault)


def read_header(path: Path) -> list[Place]:
    """The tensors of a safetensors file in the order of their offsets, with every promise of it checked.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, truncated, or its header does not describe its bytes exactly.
    """

    def fault(text: str) -> CheckpointError:
        return CheckpointError(f"{path}: {text}; {_DAMAGED}")

    with told(path):
        # A stat before the open: opening a named pipe would wait for ever.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise fault("expected a safetensors file, found a folder or a device")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise fault(f"truncated: expected a header of 8 bytes or more, found {size} bytes")
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER_BYTES:
                raise fault(f"the header claims {length:,} bytes; at most {_MOST_HEADER_BYTES:,} are allowed")
            if 8 + length > size:
                raise fault(f"truncated: the header claims {length:,} bytes, the file has {size:,}")
            header = _parse_object(file.read(length), fault)

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise fault("__metadata__: expected an object of strings")
    spans = sorted((_span(name, entry, fault) for name, entry in header.items()), key=lambda span: (span[1], span[2]))
    data = size - 8 - length
    end = 0
    for info, start, stop in spans:
        if start != end:
            kind = "overlap" if start < end else "leave a hole"
            raise fault(f"{info.name}: its offsets start at {start:,}, expected {end:,}: tensors {kind}")
        end = stop
    if end > data:
        raise fault(f"truncated: the tensors need {end:,} bytes, the file has {data:,} after the header")
    if end < data:
        raise fault(f"{data - end:,} bytes after the last tensor belong to none")
    return [Place(info, 8 + length + start) for info, start, _ in spans]


def _span(name: str, entry: object, fault: Callable[[str], CheckpointError]) -> tuple[TensorInfo, int, int]:
    """A tensor with its first byte and the byte past its last one, counted from the end of the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault(f"{name}: expected exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise fault(f"{name}: unknown dtype {code!r}; expected one of {', '.join(_DTYPES)}")
    if not _naturals(shape):
        raise fault(f"{name}: shape {shape!r}: expected a list of integers, none below 0")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fault(f"{name}: data_offsets {offsets!r}: expected [first byte, byte past the last]")
    info = TensorInfo(name, _DTYPES[code], tuple(shape))
    # Torch multiplies dimensions in 64 bits, those of an empty tensor too.
    if math.prod(size for size in shape if size) * info.dtype.itemsize >= 2**63:
        raise fault(f"{name}: shape {shape} is too large to address")
    if info.nbytes != offsets[1] - offsets[0]:
        held = offsets[1] - offsets[0]
        raise fault(f"{name}: {code} of shape {shape} is {info.nbytes} bytes, its offsets hold {held}")
    return info, offsets[0], offsets[1]


def _naturals(value: object) -> bool:
    """Whether this is a list of integers of 0 or more that a machine can count to (`True` is no integer)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def encode_header(infos: Iterable[TensorInfo]) -> tuple[bytes, dict[str, Place]]:
    """The header of a file that holds these tensors in this order, and the place of each.

    Args:
        infos: the tensors, names unique.

    Returns:
        The first bytes of the file, a multiple of 8 so that the values are aligned; and places by name.

    Raises:
        CheckpointError: a dtype has no name in safetensors, or a name is reserved.
    """
    entries: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    starts: list[tuple[TensorInfo, int]] = []
    end = 0
    for info in infos:
        if info.name == "__metadata__":
            raise CheckpointError("a tensor is named __metadata__, which safetensors reserves; rename it")
        if info.dtype not in _CODES:
            raise CheckpointError(
                f"{info.name}: safetensors cannot store {info.dtype}; use one of {', '.join(map(str, _CODES))}"
            )
        starts.append((info, end))
        stop = end + info.nbytes
        entries[info.name] = {
            "dtype": _CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [end, stop],
        }
        end = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {info.name: Place(info, len(head) + start) for info, start in starts}
