"""Checkpoints that no reader may trust, each made by code, with words that its error must have.

`HOSTILE` maps a name to a maker, which is given an empty folder and makes it a hostile checkpoint.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ONE = "model-00001-of-00002.safetensors"
TWO = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Hostile:
    """A maker and the words of the error, the file's name among them."""

    make: Callable[[Path], object]
    words: tuple[str, ...]


HOSTILE: dict[str, Hostile] = {}


def hostile(*words: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        HOSTILE[make.__name__] = Hostile(make, words)
        return make

    return register


def config(folder: Path) -> None:
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')


def entry(shape: object, start: object, stop: object, dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def blob(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def single(folder: Path, header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> None:
    config(folder)
    (folder / "model.safetensors").write_bytes(blob(header, data, length))


def sharded(folder: Path, weight_map: object, shards: Mapping[str, list[str]]) -> None:
    config(folder)
    for shard, names in shards.items():
        header = {name: entry([1], 4 * i, 4 * i + 4) for i, name in enumerate(names)}
        (folder / shard).write_bytes(blob(header, bytes(4 * len(names))))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# The folder


@hostile("no config.json")
def empty_folder(folder: Path) -> None:
    pass


@hostile("no weights", "model.safetensors", "save_pretrained")
def no_weights(folder: Path) -> None:
    config(folder)


@hostile("no weights", "found consolidated.safetensors")
def weights_of_another_name(folder: Path) -> None:
    config(folder)
    (folder / "consolidated.safetensors").write_bytes(blob({}))


@hostile("is an adapter", "name both, as MODEL+")
def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _pickled(name: str) -> None:
    def make(folder: Path) -> None:
        config(folder)
        (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")

    HOSTILE[f"pickle {name}"] = Hostile(make, (name, "pickles", "save_pretrained"))


for _name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
    _pickled(_name)


# config.json


@hostile("config.json", "expected JSON")
def config_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@hostile("config.json", "expected a JSON object", "list")
def config_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


@hostile("config.json", "a duplicate key, 'b'")
def config_key_twice(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": {"b": 1, "b": 2}}')


@hostile("config.json", "expected JSON")
def config_bottomless(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' + "[" * 1_000_000)


@hostile("config.json", "expected JSON")
def config_endless_number(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' + "9" * 100_000 + "}")


@hostile("config.json", "expected JSON", "utf-8")
def config_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")


@hostile("config.json", "at most")
def config_huge(folder: Path) -> None:
    (folder / "config.json").touch()
    os.truncate(folder / "config.json", 10**9)


@hostile("no config.json")
def config_folder(folder: Path) -> None:
    (folder / "config.json").mkdir()


# The header of a safetensors file


@hostile("model.safetensors", "found 3 bytes", "header too small")
def three_bytes(folder: Path) -> None:
    config(folder)
    (folder / "model.safetensors").write_bytes(b"abc")


@hostile("model.safetensors", "found 0 bytes", "header too small")
def no_bytes(folder: Path) -> None:
    config(folder)
    (folder / "model.safetensors").touch()


@hostile("model.safetensors", "header too large")
def huge_header(folder: Path) -> None:
    single(folder, b"{}", length=2**64 - 1)


@hostile("model.safetensors", "found 10 bytes", "invalid header length")
def header_past_the_end(folder: Path) -> None:
    single(folder, b"{}", length=3)


@hostile("model.safetensors", "invalid JSON")
def header_no_json(folder: Path) -> None:
    single(folder, b"{'a': 1}")


@hostile("model.safetensors", "invalid UTF-8")
def header_no_text(folder: Path) -> None:
    single(folder, b"\x80\x81\x82")


@hostile("model.safetensors", "invalid JSON")
def header_half_a_surrogate(folder: Path) -> None:
    single(folder, {"\ud800": entry([1], 0, 4)}, bytes(4))


@hostile("model.safetensors", "recursion limit exceeded")
def header_bottomless(folder: Path) -> None:
    single(folder, b'{"a":' * 500_000)


@hostile("model.safetensors", "invalid type: sequence")
def header_list(folder: Path) -> None:
    single(folder, b"[]")


@hostile("model.safetensors", "a duplicate key, 'a'")
def header_name_twice(folder: Path) -> None:
    part = json.dumps(entry([1], 0, 4))
    single(folder, f'{{"a": {part}, "a": {part}}}'.encode(), bytes(4))


@hostile("model.safetensors", "integer `1`, expected a string")
def metadata_number(folder: Path) -> None:
    single(folder, {"__metadata__": {"format": 1}})


@hostile("model.safetensors", "truncated", "describes 86 bytes", "found 80")
def truncated(folder: Path) -> None:
    single(folder, {"a": entry([4], 0, 16)}, bytes(10))


@hostile("model.safetensors", "expected 73 bytes", "found 4 after the last tensor")
def trailing_bytes(folder: Path) -> None:
    single(folder, {"a": entry([1], 0, 4)}, bytes(8))


@hostile("model.safetensors", "truncated", "describes 1,099,511,627,8")
def offsets_outside(folder: Path) -> None:
    single(folder, {"a": entry([2**38], 0, 2**40)}, bytes(16))


@hostile("model.safetensors", "invalid offset for tensor `b`")
def overlap(folder: Path) -> None:
    single(folder, {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12))


@hostile("model.safetensors", "invalid offset for tensor")
def same_bytes(folder: Path) -> None:
    single(folder, {"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8))


@hostile("model.safetensors", "invalid offset for tensor `b`")
def hole(folder: Path) -> None:
    single(folder, {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))


@hostile("model.safetensors", "unknown variant `F3`", "BF16")
def unknown_dtype(folder: Path) -> None:
    single(folder, {"a": entry([1], 0, 4, "F3")}, bytes(4))


@hostile("model.safetensors", "a is F4, which cannot be read", "BF16")
def dtype_of_half_a_byte(folder: Path) -> None:
    single(folder, {"a": entry([2], 0, 1, "F4")}, bytes(1))


@hostile("model.safetensors", "invalid type: sequence")
def dtype_list(folder: Path) -> None:
    single(folder, {"a": entry([1], 0, 4, [])}, bytes(4))


@hostile("model.safetensors", "invalid shape, data type, or offset")
def shape_too_large(folder: Path) -> None:
    single(folder, {"a": entry([2], 0, 4)}, bytes(4))


@hostile("model.safetensors", "integer `-1`")
def shape_negative(folder: Path) -> None:
    single(folder, {"a": entry([-1, -1], 0, 4)}, bytes(4))


@hostile("model.safetensors", "boolean `true`")
def shape_true(folder: Path) -> None:
    single(folder, {"a": entry([True], 0, 4)}, bytes(4))


@hostile("model.safetensors", "integer `1`, expected a sequence")
def shape_number(folder: Path) -> None:
    single(folder, {"a": entry(1, 0, 4)}, bytes(4))


@hostile("model.safetensors", "overflow computing buffer size")
def shape_wraps(folder: Path) -> None:
    # 2^62 * 4 * 4 bytes: 0 in 64 bits.
    single(folder, {"a": entry([2**62, 4], 0, 0)})


@hostile("model.safetensors", "a", "too large to address")
def empty_but_huge(folder: Path) -> None:
    single(folder, {"a": entry([0, 2**62, 2**62], 0, 0)})


@hostile("model.safetensors", "invalid offset for tensor `a`")
def offsets_backwards(folder: Path) -> None:
    single(folder, {"a": entry([1], 4, 0)}, bytes(4))


@hostile("model.safetensors", "integer `-4`")
def offsets_negative(folder: Path) -> None:
    single(folder, {"a": entry([1], -4, 0)}, bytes(4))


@hostile("model.safetensors", "floating point `0.0`")
def offsets_fractions(folder: Path) -> None:
    single(folder, {"a": entry([1], 0.0, 4.0)}, bytes(4))


@hostile("model.safetensors", "missing field `data_offsets`")
def entry_incomplete(folder: Path) -> None:
    single(folder, {"a": {"dtype": "F32", "shape": [1]}}, bytes(4))


# The index


@hostile("1 of 2 shards are missing", TWO)
def shard_missing(folder: Path) -> None:
    sharded(folder, {"a": ONE, "b": TWO}, {ONE: ["a"]})


@hostile(TWO, "truncated")
def shard_truncated(folder: Path) -> None:
    sharded(folder, {"a": ONE, "b": TWO}, {ONE: ["a"], TWO: ["b"]})
    os.truncate(folder / TWO, (folder / TWO).stat().st_size - 1)


@hostile(INDEX, "tensor c in " + TWO, "no shard has it")
def shard_lacks_a_tensor(folder: Path) -> None:
    sharded(folder, {"a": ONE, "b": TWO, "c": TWO}, {ONE: ["a"], TWO: ["b"]})


@hostile(INDEX, "tensor a in " + TWO, "found it in " + ONE)
def index_names_the_wrong_shard(folder: Path) -> None:
    sharded(folder, {"a": TWO, "b": ONE}, {ONE: ["a"], TWO: ["b"]})


@hostile("tensor a is in two shards", ONE, TWO)
def tensor_in_two_shards(folder: Path) -> None:
    sharded(folder, {"a": ONE, "b": TWO}, {ONE: ["a"], TWO: ["b", "a"]})


@hostile(INDEX, "a duplicate key, 'a'")
def index_key_twice(folder: Path) -> None:
    config(folder)
    (folder / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')


@hostile(INDEX, "weight_map")
def index_without_a_map(folder: Path) -> None:
    config(folder)
    (folder / INDEX).write_text("{}")


@hostile(INDEX, "weight_map")
def index_of_numbers(folder: Path) -> None:
    sharded(folder, {"a": 1}, {})


@hostile(INDEX, "pytorch_model.bin", "a pickle runs code")
def index_of_pickles(folder: Path) -> None:
    sharded(folder, {"a": "pytorch_model.bin"}, {})


def _escaping(title: str, name: str) -> None:
    def make(folder: Path) -> None:
        # The file is there and sound: only its name is wrong.
        secret = folder.parent / "secret.safetensors"
        secret.write_bytes(blob({"a": entry([1], 0, 4)}, bytes(4)))
        (folder / "sub").mkdir()
        sharded(folder, {"a": name.format(secret=secret)}, {})

    HOSTILE[f"shard {title}"] = Hostile(make, (INDEX, "leads out of its folder"))


_escaping("by dots", "../secret.safetensors")
_escaping("by a folder and dots", "sub/../../secret.safetensors")
_escaping("absolute", "{secret}")
_escaping("in a folder", "sub/a.safetensors")
_escaping("by backslashes", "..\\secret.safetensors")
_escaping("on a drive", "C:secret.safetensors")
_escaping("with a zero byte", "a\0.safetensors")


@hostile("model.safetensors", "no weights")
def weights_a_pipe(folder: Path) -> None:
    # Opening a pipe that nobody writes to would wait for ever.
    config(folder)
    os.mkfifo(folder / "model.safetensors")
