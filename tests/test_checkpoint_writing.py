"""Writing: what goes in comes out, by every loader; what fails leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoint import UNFINISHED, Checkpoint, CheckpointWriter, TensorInfo
from evomerge.errors import CheckpointError
from tests.tiny import tiny_checkpoint

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
CONFIG = {"model_type": "llama", "num_hidden_layers": 0}


def values_of(info: TensorInfo, seed: int = 0) -> torch.Tensor:
    """Random bytes as a tensor; NaNs and infinities are among them."""
    generator = torch.Generator().manual_seed(seed)
    most = 2 if info.dtype == torch.bool else 256
    data = torch.randint(0, most, (info.nbytes,), dtype=torch.uint8, generator=generator)
    return data.view(info.dtype).reshape(info.shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def infos(*sizes: int, dtype: torch.dtype = torch.float32) -> list[TensorInfo]:
    return [TensorInfo(f"t{number}", dtype, (size,)) for number, size in enumerate(sizes)]


OUTPUT = ("config.json", "model.safetensors")
STRANGERS = [
    "old.txt",
    "notes.md",
    ".git/",
    "runs/",
    "mine.safetensors",
    "model-q4.gguf",
    "training_args.bin",
    "modeling_mine.py",
    "generation_config.json/",
    "additional_chat_templates/mine.txt",
    "recipe.yaml",
]


def make(path: Path, *, folder: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if folder else path.write_text("precious")


def listing(folder: Path) -> dict[str, bytes | str | None]:
    """All in a folder: a file's bytes, a link's target, None for a folder."""

    def content(path: Path) -> bytes | str | None:
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {path.relative_to(folder).as_posix(): content(path) for path in folder.rglob("*")}


def temporary(folder: Path) -> Path:
    """The temporary folder of a writer of ``folder/out``."""
    return folder / f".out.{UNFINISHED}"


def written(folder: Path, layout: list[TensorInfo], **options: Any) -> Path:
    with CheckpointWriter(folder, layout, **options) as writer:
        for info in layout:
            writer.write(info.name, values_of(info))
        writer.commit(config=CONFIG)
    return folder


layouts = st.lists(
    st.builds(
        TensorInfo,
        name=st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__"),
        dtype=st.sampled_from(DTYPES),
        shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    max_size=8,
    unique_by=lambda info: info.name,
)


@settings(max_examples=40, deadline=None)
@given(layout=layouts, shard_bytes=st.integers(1, 400), order=st.randoms(use_true_random=False))
def test_what_is_written_is_read(layout: list[TensorInfo], shard_bytes: int, order: Any) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "out"
        values = {info.name: values_of(info, seed) for seed, info in enumerate(layout)}
        shuffled = list(values)
        order.shuffle(shuffled)
        with CheckpointWriter(folder, layout, shard_bytes=shard_bytes) as writer:
            for name in shuffled:
                writer.write(name, values[name])
            writer.commit(config=CONFIG)
        checkpoint = Checkpoint.open(str(folder))
        assert dict(checkpoint.tensors) == {info.name: info for info in layout}
        found = {}
        for shard in folder.glob("*.safetensors"):
            size = os.path.getsize(shard)
            assert (8 + int.from_bytes(shard.read_bytes()[:8], "little")) % 8 == 0
            with safe_open(shard, "pt") as file:
                assert file.metadata() == {"format": "pt"}
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert size == shard.stat().st_size
        for info in layout:
            mine, theirs = checkpoint.read(info.name), found.pop(info.name)
            assert (mine.dtype, tuple(mine.shape)) == (theirs.dtype, tuple(theirs.shape))
            assert (mine.dtype, tuple(mine.shape)) == (info.dtype, info.shape)
            assert bits(mine) == bits(theirs) == bits(values[info.name])
        assert not found


def test_values_are_aligned_whatever_their_dtypes(tmp_path: Path) -> None:
    layout = [TensorInfo(str(i), dtype, (3,)) for i, dtype in enumerate(reversed(DTYPES))]
    checkpoint = Checkpoint.open(str(written(tmp_path / "out", layout)))
    for name, info in checkpoint.tensors.items():
        assert checkpoint.read(name).data_ptr() % info.dtype.itemsize == 0


# The plan of the shards


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ([10, 10], [["t0", "t1"]]),
        ([10, 15], [["t0", "t1"]]),
        ([10, 16], [["t0"], ["t1"]]),
        ([10, 10, 10, 1], [["t0", "t1"], ["t2", "t3"]]),
        ([99, 1, 99], [["t0"], ["t2"], ["t1"]]),
        ([0, 25, 0, 1], [["t0", "t1", "t2"], ["t3"]]),
    ],
)
def test_shards_are_filled_in_order(tmp_path: Path, sizes: list[int], shards: list[list[str]]) -> None:
    folder = written(tmp_path / "out", infos(*sizes), shard_bytes=100)
    files = sorted(path.name for path in folder.iterdir())
    if len(shards) == 1:
        assert files == ["config.json", "model.safetensors"]
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    assert files == ["config.json", *names, "model.safetensors.index.json"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * sum(sizes)}
    expected = {name: names[i] for i, group in enumerate(shards) for name in group}
    assert index["weight_map"] == expected


def test_tensors_lie_in_the_layout_s_order(tmp_path: Path) -> None:
    layout = list(reversed(infos(3, 4, 5)))
    assert list(Checkpoint.open(str(written(tmp_path / "out", layout))).tensors) == ["t2", "t1", "t0"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "mamba"])
def test_transformers_loads_the_result(kind: str, tmp_path: Path) -> None:
    source = Checkpoint.open(str(tiny_checkpoint(tmp_path / "in", 3, kind, layers=2, chat_template=True)))
    out = tmp_path / "out"
    with CheckpointWriter(out, list(source.tensors.values()), shard_bytes=10_000) as writer:
        for name in reversed(source.tensors):
            writer.write(name, source.read(name))
        writer.commit(config=source.config, files=source.side_files(), texts={"README.md": "# é\n"})
    assert len(list(out.glob("*.safetensors"))) > 1
    mine, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    theirs = AutoModelForCausalLM.from_pretrained(source.folder)
    expected = theirs.state_dict()
    for name, value in mine.state_dict().items():
        assert torch.equal(value, expected[name])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("日本")["input_ids"]) == "日本"
    assert tokenizer.chat_template
    assert (out / "README.md").read_bytes() == "# é\n".encode()
    assert Checkpoint.open(str(out)).fingerprint() == source.fingerprint()


# What commit and write refuse


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    with CheckpointWriter(tmp_path / "out", infos(2, 3)) as writer:
        yield writer


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("t9", torch.zeros(2), "layout has no such tensor"),
        ("t0", torch.zeros(3), r"expected torch.float32 of shape \[2\].*found torch.float32 of shape \[3\]"),
        ("t0", torch.zeros(2, dtype=torch.float16), "found torch.float16"),
    ],
)
def test_a_wrong_tensor_is_refused(writer: CheckpointWriter, name: str, tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        writer.write(name, tensor)


def test_a_tensor_written_twice_is_refused(writer: CheckpointWriter) -> None:
    writer.write("t0", torch.zeros(2))
    with pytest.raises(CheckpointError, match="t0 is written twice"):
        writer.write("t0", torch.zeros(2))


def test_a_tensor_is_written_in_parts_of_any_order(tmp_path: Path) -> None:
    layout = infos(10, 0, 7, dtype=torch.bfloat16)
    with CheckpointWriter(tmp_path / "out", layout, shard_bytes=15) as writer:
        for start, stop in [(6, 10), (0, 1), (1, 6)]:
            writer.write("t0", values_of(layout[0])[start:stop], start)
        with pytest.raises(CheckpointError, match="t0 is written twice"):
            writer.write("t0", values_of(layout[0])[3:4], 3)
        with pytest.raises(CheckpointError, match=r"t2: expected .* \[7\], found .* \[3\] at element 5"):
            writer.write("t2", values_of(layout[0])[:3], 5)
        with pytest.raises(CheckpointError, match=r"t2: expected torch\.bfloat16 .* found torch\.float32"):
            writer.write("t2", torch.zeros(7), 0)
        writer.write("t2", values_of(layout[2])[:3], 0)
        with pytest.raises(CheckpointError, match=r"1 tensors of the layout were not written, e\.g\. t2"):
            writer.commit(config=CONFIG)
        writer.write("t2", values_of(layout[2])[3:], 3)
        writer.commit(config=CONFIG)
    with Checkpoint.open(str(tmp_path / "out")) as checkpoint:
        for info in layout:
            assert bits(checkpoint.read(info.name)) == bits(values_of(info))


def test_a_missing_tensor_is_refused(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.write("t0", torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"1 tensors of the layout were not written, e\.g\. t1"):
        writer.commit(config={})
    assert not (tmp_path / "out").exists()
    # The error can be mended: the writer is still open.
    writer.write("t1", torch.zeros(3))
    writer.commit(config={})
    assert (tmp_path / "out").exists()


def test_texts_win_over_files_and_templates_keep_their_folder(tmp_path: Path) -> None:
    templates = tmp_path / "in" / "additional_chat_templates"
    templates.mkdir(parents=True)
    (templates / "tool.jinja").write_text("tool")
    (tmp_path / "in" / "tokenizer.json").write_text("old")
    files = [templates / "tool.jinja", tmp_path / "in" / "tokenizer.json"]
    with CheckpointWriter(tmp_path / "out", []) as writer:
        writer.commit(config={}, files=files, texts={"tokenizer.json": "new"})
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "new"
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "tool"


# The target


def test_a_target_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    target = written(tmp_path / "out", infos(1))
    with pytest.raises(CheckpointError, match="is not empty"):
        CheckpointWriter(target, infos(1))
    with pytest.raises(CheckpointError, match="is a file"):
        CheckpointWriter(target / "config.json", infos(1), overwrite=True)


def test_an_empty_target_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert Checkpoint.open(str(written(tmp_path / "out", infos(1)))).tensors
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_target_stays_until_the_rename(tmp_path: Path) -> None:
    target = written(tmp_path / "out", infos(1))
    (target / "merges.txt").write_text("old")
    with CheckpointWriter(target, infos(2), overwrite=True) as writer:
        writer.write("t0", torch.zeros(2))
    assert (target / "merges.txt").exists()
    with CheckpointWriter(target, infos(2), overwrite=True) as writer:
        writer.write("t0", torch.zeros(2))
        assert (target / "merges.txt").exists()
        writer.commit(config={})
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_folder_with_anything_beside_a_model_is_not_overwritten(tmp_path: Path, stranger: str) -> None:
    target = written(tmp_path / "out", infos(1))
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tool.jinja").touch()
    make(target / stranger, folder=stranger.endswith("/"))
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=rf"holds more than a model: {re.escape(stranger.rstrip('/'))}; move"):
        written(target, infos(2), overwrite=True)
    assert listing(tmp_path) == before


def test_a_folder_without_a_config_is_no_model_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"has no config\.json, so it is not a model"):
        written(tmp_path / "out", infos(1), overwrite=True)
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_a_model_with_all_that_transformers_writes_is_overwritten(tmp_path: Path) -> None:
    target = tiny_checkpoint(tmp_path / "out", layers=1, chat_template=True, shard_bytes=9000)
    for name in ("README.md", ".gitattributes", "pytorch_model-00001-of-00002.bin", "evomerge_recipe.yaml"):
        (target / name).touch()
    written(target, infos(1), overwrite=True)
    assert listing(target).keys() == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("needed", ["out", "out/config.json", "out/additional_chat_templates", "link", "beside"])
@pytest.mark.parametrize("empty", [False, True])
def test_what_is_needed_is_never_replaced(tmp_path: Path, needed: str, empty: bool) -> None:
    target = tmp_path / "out" if empty else written(tmp_path / "out", infos(1))
    (target / "additional_chat_templates").mkdir(parents=True)
    (target / "additional_chat_templates" / "tool.jinja").touch()
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "model.safetensors").symlink_to(target / "model.safetensors")
    needed_path = tmp_path / needed / ("model.safetensors" if needed == "beside" else "")
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match="a model or the recipe of this merge, the current folder or your home"):
        CheckpointWriter(target, infos(1), overwrite=True, needed=[needed_path])
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["current", "home", "above"])
def test_the_current_and_the_home_folder_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    target = written(tmp_path / "out", infos(1))
    (target / "additional_chat_templates").mkdir()
    if place == "home":
        monkeypatch.setenv("HOME", str(target))
    else:
        monkeypatch.chdir(target / "additional_chat_templates" if place == "above" else target)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=f"{target}: (is|holds .*,) a model or the recipe of this merge, the"):
        CheckpointWriter(Path("..") if place == "above" else target, infos(1), overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("/", "/: is the root of a file system"),
        ("loop", "loop: cannot be written: .*loop"),
        ("loop/out", "loop/out: cannot be written: .*loop"),
        ("a" * 5000, "cannot be written: .*too long"),
        ("b" * 250, "cannot be written: .*too long"),
        ("file/out", "file/out: cannot be written: .*Not a directory"),
    ],
)
def test_a_target_that_cannot_be_is_one_error(tmp_path: Path, folder: str, words: str, overwrite: bool) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        written(tmp_path / folder, infos(1), overwrite=overwrite)
    assert listing(tmp_path) == before


def test_a_target_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", infos(1)) as writer:
        writer.write("t0", torch.zeros(1))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()
        with pytest.raises(CheckpointError, match="is not empty"):
            writer.commit(config={})
    assert (tmp_path / "out" / "precious").exists()


def test_a_target_behind_a_link_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far")
    written(tmp_path / "out", infos(1))
    assert (tmp_path / "out").is_symlink()
    assert Checkpoint.open(str(tmp_path / "far")).tensors


# Ends that nobody planned


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_without_commit_nothing_is_left(tmp_path: Path, error: type[BaseException] | None) -> None:
    def work() -> None:
        with CheckpointWriter(tmp_path / "out", infos(1, 2)) as writer:
            writer.write("t0", torch.zeros(1))
            assert temporary(tmp_path).exists()
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert not list(tmp_path.iterdir())


def in_child(work: Callable[[], object]) -> int:
    """Starts a process that does the work; a fork, as importing torch again takes seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(folder: Path, moment: str) -> None:
    with CheckpointWriter(folder, infos(1, 1), overwrite=True, shard_bytes=4) as writer:
        writer.write("t0", torch.ones(1))
        if moment == "write":
            die()
        writer.write("t1", torch.ones(1))
        rename = Path.rename
        renames = []

        def renamed(path: Path, target: Path) -> Path:
            renames.append(path)
            if len(renames) == {"first rename": 1, "second rename": 2}.get(moment):
                die()
            return rename(path, target)

        Path.rename = renamed  # type: ignore[method-assign]
        if moment == "removal":
            shutil.rmtree = lambda *_: die()  # type: ignore[assignment]
        writer.commit(config={})


@pytest.mark.parametrize("moment", ["write", "first rename", "second rename", "removal"])
def test_a_killed_run_loses_nothing_and_is_cleaned_up(tmp_path: Path, moment: str) -> None:
    target = written(tmp_path / "out", infos(7))
    before = Checkpoint.open(str(target)).fingerprint()
    _, status = os.waitpid(in_child(lambda: write_and_die(target, moment)), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    if moment == "second rename":
        assert left == {temporary(tmp_path).name}
    else:
        assert left == {temporary(tmp_path).name, "out"}
    if moment == "removal":
        assert Checkpoint.open(str(target)).tensors.keys() == {"t0", "t1"}
    elif moment != "second rename":
        assert Checkpoint.open(str(target)).fingerprint() == before

    # The next writer first brings back what there was.
    with CheckpointWriter(target, infos(3), overwrite=True) as writer:
        assert moment == "removal" or Checkpoint.open(str(target)).fingerprint() == before
        writer.write("t0", torch.zeros(3))
        writer.commit(config={})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Checkpoint.open(str(target)).tensors["t0"].shape == (3,)


def test_what_a_killed_run_replaced_is_not_overwritten_unasked(tmp_path: Path) -> None:
    target = written(tmp_path / "out", infos(7))
    os.waitpid(in_child(lambda: write_and_die(target, "second rename")), 0)
    assert not target.exists()
    with pytest.raises(CheckpointError, match="is not empty"), CheckpointWriter(target, infos(1)):
        pass
    assert Checkpoint.open(str(target)).tensors["t0"].shape == (7,)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_the_user_with_names_like_ours_are_left_alone(tmp_path: Path, overwrite: bool) -> None:
    for name in ("out.partial", "out.partial-replaced", ".out.partial1", ".out.tmp"):
        make(tmp_path / name / "precious")
    before = listing(tmp_path)
    for _ in range(1 + overwrite):
        written(tmp_path / "out", infos(1), overwrite=overwrite)
    after = listing(tmp_path)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"out", *(f"out/{name}" for name in OUTPUT)}


@pytest.mark.parametrize("inside", ["precious", "new/precious", "replaced/precious"])
def test_not_even_a_folder_of_our_temporary_name_is_deleted_without_our_mark(tmp_path: Path, inside: str) -> None:
    make(temporary(tmp_path) / inside)
    before = listing(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"cannot be written: .*not empty: '{re.escape(str(temporary(tmp_path)))}'"
    ):
        written(tmp_path / "out", infos(1), overwrite=True)
    assert listing(tmp_path) == before


def test_beside_our_mark_only_our_own_folders_are_deleted(tmp_path: Path) -> None:
    os.waitpid(in_child(lambda: write_and_die(tmp_path / "out", "write")), 0)
    make(temporary(tmp_path) / "precious")
    with pytest.raises(CheckpointError, match="not empty"):
        written(tmp_path / "out", infos(1))
    assert listing(temporary(tmp_path)).keys() == {"precious"}


def test_what_took_the_target_s_name_after_a_kill_is_kept_as_is_what_was_replaced(tmp_path: Path) -> None:
    target = written(tmp_path / "out", infos(7))
    os.waitpid(in_child(lambda: write_and_die(target, "second rename")), 0)
    written(tmp_path / "mine", infos(2)).rename(target)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*not empty"):
        written(target, infos(1), overwrite=True)
    assert listing(tmp_path) == before


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "out"
    reader, sender = os.pipe()

    def work() -> None:
        with CheckpointWriter(target, infos(1)):
            os.write(sender, b"ready")
            signal.pause()

    child = in_child(work)
    try:
        assert os.read(reader, 5) == b"ready"
        with pytest.raises(CheckpointError, match="another process is writing"):
            written(target, infos(1))
        assert (temporary(tmp_path) / "new" / "model.safetensors").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(sender)
    assert Checkpoint.open(str(written(target, infos(1)))).tensors


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command on this system")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    with pytest.raises(CheckpointError, match=r"too full: 4,000,\d+ bytes needed, 1,048,576 free"):
        CheckpointWriter(small_disk / "out", infos(1_000_000))
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("moment", ["write", "commit"])
def test_a_disk_that_fills_up_while_writing(small_disk: Path, tmp_path: Path, moment: str) -> None:
    layout = infos(100_000, 100_000)
    big = tmp_path / "tokenizer.json"
    big.write_bytes(bytes(10**6))
    with CheckpointWriter(small_disk / "out", layout) as writer:
        writer.write("t0", torch.zeros(100_000))
        if moment == "write":
            # Somebody else's file takes the room that was there at the start.
            (small_disk / "other").write_bytes(bytes(500_000))
            with pytest.raises(CheckpointError, match=r"disk is too full: 800,\d+ bytes needed"):
                writer.write("t1", torch.zeros(100_000))
        else:
            writer.write("t1", torch.zeros(100_000))
            with pytest.raises(CheckpointError, match="disk is too full"):
                writer.commit(config={}, files=[big])
    assert {path.name for path in small_disk.iterdir()} <= {"other"}


def test_a_killed_run_s_room_counts_as_free(small_disk: Path) -> None:
    def write_and_die() -> None:
        with CheckpointWriter(small_disk / "out", infos(220_000)) as writer:
            writer.write("t0", torch.zeros(220_000))
            die()

    os.waitpid(in_child(write_and_die), 0)
    assert temporary(small_disk).exists()
    assert Checkpoint.open(str(written(small_disk / "out", infos(200_000)))).nbytes == 800_000


def test_memory_is_bounded_by_a_tensor(tmp_path: Path) -> None:
    # 64 tensors of 4 MiB in one shard, each of which must be copied to be written.
    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    except OSError:
        pytest.skip("this system does not tell a process its peak memory")
    layout = [TensorInfo(str(number), torch.float32, (1024, 1024)) for number in range(64)]
    values = torch.ones(1024, 1024).t()
    before = resident("VmRSS")
    with CheckpointWriter(tmp_path / "out", layout) as writer:
        for info in layout:
            writer.write(info.name, values)
        writer.commit(config={})
    assert resident("VmHWM") - before < 32 * 2**20
