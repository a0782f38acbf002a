"""Reading: every value, lazily; every lie refused before a weight is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from evomerge.checkpoint import Checkpoint, TensorInfo, open_checkpoint, tokenizer_folder
from evomerge.checkpoint.hub import Reference
from evomerge.errors import CheckpointError
from tests.hostile.checkpoints import HOSTILE, Hostile, blob, entry, sharded, single
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return tiny_checkpoint(
        folder, 1, dtype=torch.bfloat16, layers=2, shard_bytes=9000, chat_template=True, vocab_size=2048
    )


def same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return mine.dtype == theirs.dtype and mine.shape == theirs.shape and torch.equal(mine, theirs)


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_hostile_checkpoints_are_refused(case: Hostile, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    case.make(folder)
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(str(folder))
    missing = [word for word in case.words if word not in str(raised.value)]
    assert not missing, raised.value
    assert str(folder) in str(raised.value)


def test_every_tensor_is_read_as_safetensors_reads_it(model: Path) -> None:
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 2
    expected = {name: value for shard in shards for name, value in load_file(shard).items()}
    with Checkpoint.open(str(model)) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for name, info in checkpoint.tensors.items():
            assert info == TensorInfo(name, expected[name].dtype, tuple(expected[name].shape))
            assert same(checkpoint.read(name), expected[name])
        assert checkpoint.nbytes == sum(value.nbytes for value in expected.values())
        assert checkpoint.config["num_hidden_layers"] == 2


def test_tensors_are_in_the_order_of_the_disk(tmp_path: Path) -> None:
    # The header's order is neither the names' nor the offsets'.
    single(tmp_path, {"b": entry([1], 8, 12), "c": entry([2], 0, 8), "a": entry([0], 8, 8)}, bytes(12))
    assert list(Checkpoint.open(str(tmp_path)).tensors) == ["c", "a", "b"]


def test_shards_follow_each_other_by_name(tmp_path: Path) -> None:
    sharded(
        tmp_path,
        {"a": "model-00002-of-00002.safetensors", "z": "model-00001-of-00002.safetensors"},
        {"model-00002-of-00002.safetensors": ["a"], "model-00001-of-00002.safetensors": ["z"]},
    )
    assert list(Checkpoint.open(str(tmp_path)).tensors) == ["z", "a"]


def test_pieces_are_parts_of_their_tensors(model: Path) -> None:
    with Checkpoint.open(str(model)) as checkpoint:
        for name, info in checkpoint.tensors.items():
            flat = checkpoint.read(name).reshape(-1)
            for start, stop in [(0, info.numel), (0, 0), (1, 3), (info.numel - 5, info.numel)]:
                piece = checkpoint.piece(name, start, stop)
                assert piece.dtype == info.dtype
                assert torch.equal(piece, flat[start:stop])
            checkpoint.piece(name, 0, 1).zero_()  # its own memory, not the file's
            assert torch.equal(checkpoint.read(name).reshape(-1), flat)
        with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
            checkpoint.piece("nothing", 0, 1)
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.piece(name, 0, 1)


def test_values_at_odd_addresses_are_read(tmp_path: Path) -> None:
    # A header that is not padded, and a bool before a float: both legal, neither aligned.
    values = torch.tensor([1.5, -2.0])
    header = b'{"flag": %s, "values": %s}' % (
        json.dumps(entry([1], 0, 1, "BOOL")).encode(),
        json.dumps(entry([2], 1, 9)).encode(),
    )
    single(tmp_path, header + b" " * (len(header) % 2), b"\x01" + values.numpy().tobytes())
    checkpoint = Checkpoint.open(str(tmp_path))
    assert same(checkpoint.read("values"), values)
    assert same(checkpoint.read("flag"), torch.tensor([True]))


def test_opening_loads_no_weights(tmp_path: Path) -> None:
    # A sparse file larger than memory, which the system refuses to map for torch: only its header has bytes.
    size = 2**40
    header = {"a": entry([size // 4], 0, size), "b": entry([2, 1], size, size + 8)}
    single(tmp_path, header)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(len(blob(header)) + size + 8)
    checkpoint = Checkpoint.open(str(tmp_path))
    assert checkpoint.nbytes == size + 8
    assert checkpoint.piece("a", size // 4 - 1, size // 4).item() == 0.0
    assert same(checkpoint.read("b"), torch.zeros(2, 1))


def test_writing_into_what_was_read_changes_no_file(model: Path) -> None:
    checkpoint = Checkpoint.open(str(model))
    before = fingerprint(model)
    for name in checkpoint.tensors:
        checkpoint.read(name).zero_()
    assert fingerprint(model) == before


def test_a_view_outlives_the_checkpoint(model: Path) -> None:
    checkpoint = Checkpoint.open(str(model))
    name = next(iter(checkpoint.tensors))
    value = checkpoint.read(name)
    copied = value.clone()
    checkpoint.close()
    assert torch.equal(value, copied)
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.read(name)


def test_reading_a_tensor_that_is_not_there(model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.nothing'"):
        Checkpoint.open(str(model)).read("model.nothing")


@pytest.mark.parametrize("change", ["shrinks", "is replaced", "is written to"])
@pytest.mark.parametrize("read_before", [True, False])
def test_a_file_that_changes_while_open_is_an_error(tmp_path: Path, change: str, read_before: bool) -> None:
    single(tmp_path, {"a": entry([1000], 0, 4000)}, bytes(4000))
    weights, checkpoint = tmp_path / "model.safetensors", Checkpoint.open(str(tmp_path))
    if read_before:
        assert same(checkpoint.read("a")[:500], checkpoint.piece("a", 0, 500))
    if change == "is replaced":
        # Of one size: only the names of the tensors are others.
        (tmp_path / "new").write_bytes(blob({"b": entry([1000], 0, 4000)}, bytes(4000)))
        (tmp_path / "new").replace(weights)
    elif change == "shrinks":
        os.truncate(weights, 100)
    else:
        weights.write_bytes(weights.read_bytes())
    os.utime(weights, ns=(0, 0))  # clocks are coarse
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        checkpoint.read("a")
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        checkpoint.piece("a", 0, 1000)


def test_no_file_stays_open(model: Path) -> None:
    """Many models of many shards may have more files than a process may hold open."""
    before = len(os.listdir("/dev/fd"))
    checkpoint = Checkpoint.open(str(model))
    for name, info in checkpoint.tensors.items():
        assert same(checkpoint.read(name), checkpoint.piece(name, 0, info.numel).view(info.shape))
    assert len(os.listdir("/dev/fd")) == before


def test_threads_read_at_once(model: Path) -> None:
    checkpoint = Checkpoint.open(str(model))
    expected = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    checkpoint = Checkpoint.open(str(model))
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        wrong.extend(name for name in checkpoint.tensors if not same(checkpoint.read(name), expected[name]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The fingerprint


def fingerprint(folder: Path) -> str:
    return Checkpoint.open(str(folder)).fingerprint()


def edited(model: Path, folder: Path, name: str, change: str) -> Path:
    """A copy of a checkpoint with one thing changed."""
    shutil.copytree(model, folder)
    if change == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: 7}))
        return folder
    checkpoint = Checkpoint.open(str(folder))
    path = checkpoint._files[name].path
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    at = 8 + length + {"first": start, "last": stop - 1}[change]
    data[at] ^= 1
    path.write_bytes(data)
    return folder


def test_the_fingerprint_is_the_content_s_alone(model: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(model, copied, copy_function=shutil.copyfile)
    assert fingerprint(copied) == fingerprint(model)
    whole = tiny_checkpoint(tmp_path / "whole", base=model, scale=0.0, dtype=torch.bfloat16)
    for path in (model / "config.json", *Checkpoint.open(str(model)).side_files()):
        shutil.copyfile(path, whole / path.name)
    assert len(list(whole.glob("*.safetensors"))) == 1
    assert fingerprint(whole) == fingerprint(model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rms_norm_eps", "config"),
        ("model.embed_tokens.weight", "first"),
        ("model.embed_tokens.weight", "last"),
        ("model.norm.weight", "last"),
        ("model.layers.1.mlp.down_proj.weight", "first"),
    ],
)
def test_the_fingerprint_changes(model: Path, tmp_path: Path, name: str, change: str) -> None:
    assert fingerprint(edited(model, tmp_path / "edited", name, change)) != fingerprint(model)


def test_the_fingerprint_of_a_fine_tune_differs(model: Path, tmp_path: Path) -> None:
    tuned = tiny_checkpoint(tmp_path / "tuned", 5, base=model, dtype=torch.bfloat16)
    shutil.copyfile(model / "config.json", tuned / "config.json")
    assert fingerprint(tuned) != fingerprint(model)


def test_the_fingerprint_is_the_same_for_ever(tmp_path: Path) -> None:
    # Records of old runs hold fingerprints: a change of the digest makes each of them look like another model.
    header = {"a": entry([2, 5000], 0, 40000), "b": entry([], 40000, 40002, "BF16")}
    single(tmp_path, header, bytes(range(250)) * 160 + b"ab")
    before = fingerprint(tmp_path)
    assert before == "f5816c3116081dcf7009bc9580ee1975211f6ebb89ddf94f574533ec22f8d49b"
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-40_002 + 4500] ^= 1  # far from the ends of a tensor that is not small
    path.write_bytes(data)
    assert fingerprint(tmp_path) != before


def test_what_is_kept_of_a_fingerprint_is_of_the_files_as_they_are(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    checkpoint = Checkpoint.open(str(tmp_path / "model"))
    kept: dict[str, str] = {}
    first = checkpoint.fingerprint(kept)
    assert list(kept.values()) == [first]
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert checkpoint.fingerprint(kept) != first
    assert len(kept) == 2
    checkpoint.close()
    assert checkpoint.fingerprint(kept) != first


# Side files


def test_side_files_are_data_only(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "additional_chat_templates").mkdir()
    for name in (
        "modeling_evil.py",
        "training_args.bin",
        "optimizer.pt",
        "README.md",
        "tokenizer.model",
        "additional_chat_templates/tool.jinja",
    ):
        (folder / name).write_text("x")
    found = {path.relative_to(folder).as_posix() for path in Checkpoint.open(str(folder)).side_files()}
    assert found == {
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("name", ["merges.txt", "config.json", "chat_template.jinja", "additional_chat_templates"])
@pytest.mark.parametrize("link", ["../../secret", "{absolute}", "by/../../../secret"])
def test_a_link_out_of_the_model_is_refused_whatever_it_is_opened_for(
    model: Path, tmp_path: Path, name: str, link: str
) -> None:
    secret = tmp_path / "secret"
    if name == "additional_chat_templates":
        secret.mkdir()
    file = secret / "key.jinja" if name == "additional_chat_templates" else secret
    file.write_text("{}")
    folder = tmp_path / "models" / "hostile"
    shutil.copytree(model, folder)
    (folder / "by").mkdir()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(link.format(absolute=secret))
    for opened in (Checkpoint.open, tokenizer_folder, open_checkpoint):
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.*: is a link to {file}, out of the model's"):
            opened(str(folder))


def test_links_within_a_model_and_links_of_weights_are_followed(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "tokenizer.json").rename(folder / "kept.bin")
    (folder / "tokenizer.json").symlink_to("kept.bin")
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
        shard.symlink_to(model / shard.name)
    (tmp_path / "other").symlink_to("model")
    checkpoint = Checkpoint.open(str(tmp_path / "other"))
    assert tmp_path / "other" / "tokenizer.json" in checkpoint.side_files()
    assert {folder, *(shard.resolve() for shard in model.glob("*.safetensors"))} <= checkpoint.paths()


@pytest.mark.parametrize("link", ["../../../secret", "../../blobs/../../secret", "../other/blobs/secret"])
def test_a_folder_called_as_in_the_hub_s_cache_may_link_to_its_blobs_alone(
    model: Path, tmp_path: Path, link: str
) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "c"
    shutil.copytree(model, folder)
    for secret in (tmp_path, tmp_path / "models--a--b" / "snapshots" / "other" / "blobs"):
        secret.mkdir(parents=True, exist_ok=True)
        (secret / "secret").write_text("{}")
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (folder / "merges.txt").symlink_to(link)
    with pytest.raises(CheckpointError, match=r"merges\.txt: is a link to"):
        Checkpoint.open(str(folder))


# References


def test_references_are_parsed(tmp_path: Path) -> None:
    assert Reference.parse("org/name") == Reference("org/name")
    assert Reference.parse("org/name@v1") == Reference("org/name", "v1")
    assert Reference.parse("org/name+org/lora") == Reference("org/name", None, "org/lora")
    assert Reference.parse("o/n@v1+o/l@v2") == Reference("o/n", "v1", "o/l", "v2")
    strange = tmp_path / "a@b+c"
    strange.mkdir()
    assert Reference.parse(str(strange)) == Reference(str(strange))
    assert Reference.parse(f"{strange}+o/l@v2") == Reference(str(strange), None, "o/l", "v2")
    assert Reference.parse(f"o/n+{strange}") == Reference("o/n", None, str(strange))


@pytest.mark.parametrize("text", ["", "@v1", "+lora", "org/name@", "org/name+", "org/name+lora@", "a/b@+c"])
def test_references_with_an_empty_part_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected path\[@revision\]"):
        Checkpoint.open(text)


def test_a_folder_whose_name_has_an_at_sign_is_opened(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny@v2+x"
    shutil.copytree(model, folder)
    assert Checkpoint.open(str(folder)).folder == folder


def test_a_local_folder_wins_over_a_hub_id(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.open("org/name").tensors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("org/name/more", "no such folder"),
        ("org/nowhere", "hf download org/nowhere"),
        ("org/nowhere@v1", "org/nowhere@v1"),
        ("org/name+org/lora", "a model with an adapter"),
    ],
)
def test_references_to_nothing(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(text)


def test_a_revision_of_a_folder_is_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revisions"):
        Checkpoint.open(f"{model}@main")


def test_a_file_is_no_checkpoint(model: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; expected the folder"):
        Checkpoint.open(str(model / "config.json"))


def test_the_hub_s_cache_is_read_through_its_links(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As huggingface_hub lays it out: blobs by hash, snapshots of links that lead out of their folder.
    repository = tmp_path / "models--org--name"
    commits = {"main": "a" * 40, "v1": "b" * 40}
    for revision, commit in commits.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        for file in model.iterdir():
            blob_path = repository / "blobs" / f"{commit[:8]}{file.name}"
            shutil.copyfile(file, blob_path)
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob_path.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert Checkpoint.open("org/name").folder.name == commits["main"]
    checkpoint = Checkpoint.open("org/name@v1")
    assert checkpoint.folder.name == commits["v1"]
    assert checkpoint.reference == "org/name@v1"
    assert same(checkpoint.read("model.norm.weight"), Checkpoint.open(str(model)).read("model.norm.weight"))
    with pytest.raises(CheckpointError, match="org/name@v2"):
        Checkpoint.open("org/name@v2")
