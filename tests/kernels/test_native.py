"""The C compiler: found or not, at work or broken; what it made is kept, and made again where it is damaged."""

import ctypes
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from evomerge.kernels import native

SOURCE = "int answer(void) { return 41 + 1; }\n"
INSTALLED = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
needs_a_compiler = pytest.mark.skipif(INSTALLED is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "evomerge" / "native"


def answer(library: ctypes.CDLL | None) -> int:
    assert library is not None
    return library.answer()


@pytest.fixture
def counting(tmp_path: Path) -> tuple[Path, Path]:
    """A compiler that leaves a line for each time it is run, and where it does."""
    script, runs = tmp_path / "counting", tmp_path / "runs"
    script.write_text(f'#!/bin/sh\necho run >> {runs}\nexec {INSTALLED} "$@"\n')
    script.chmod(0o755)
    return script, runs


@needs_a_compiler
def test_what_was_compiled_is_kept(counting, cache, use_compiler):
    script, runs = counting
    for _ in range(3):
        use_compiler(str(script))  # as in a new process
        assert answer(native.library(SOURCE)) == answer(native.library(SOURCE)) == 42
    assert runs.read_text() == "run\n"
    assert len(list(cache.iterdir())) == 1
    assert answer(native.library(SOURCE.replace("1;", "2;"))) == 43


@needs_a_compiler
def test_what_is_damaged_is_made_again(counting, cache, use_compiler):
    script, runs = counting
    use_compiler(str(script))
    # By another process: the system does not look again at a library that this one has.
    program = f"from evomerge.kernels import native; print(native.library({SOURCE!r}).answer())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"42\n"
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert answer(native.library(SOURCE)) == 42
    assert runs.read_text() == "run\nrun\n"
    assert kept.stat().st_size > 100


@needs_a_compiler
def test_a_cache_that_others_can_write_is_not_used(cache, use_compiler):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    use_compiler(INSTALLED)
    assert answer(native.library(SOURCE)) == 42
    assert list(cache.iterdir()) == []


@needs_a_compiler
def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, use_compiler, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compiler(INSTALLED)
    assert answer(native.library(SOURCE)) == 42


@needs_a_compiler
def test_there_need_be_no_home(use_compiler, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    use_compiler(INSTALLED)
    assert answer(native.library(SOURCE)) == 42


@needs_a_compiler
def test_the_cache_is_the_users_own(cache, use_compiler):
    use_compiler(INSTALLED)
    native.library(SOURCE)
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("command", ["", "no-such-compiler", "'"])
def test_there_need_be_none(command, use_compiler, monkeypatch):
    if command == "'":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.delenv("EVOMERGE_CC", raising=False)
        native.compiler.cache_clear()
    else:
        use_compiler(command)
    assert native.compiler() is None
    assert native.library(SOURCE) is None


def test_one_that_fails_is_told_once_with_what_to_do(use_compiler):
    use_compiler("false")
    with pytest.warns(UserWarning, match=r"false: cannot compile C, so merging is several times slower.*EVOMERGE_CC"):
        assert native.library(SOURCE) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library(SOURCE + "\n") is None


@needs_a_compiler
def test_what_the_compiler_says_is_told(use_compiler):
    use_compiler(INSTALLED)
    with pytest.warns(UserWarning, match=r"error.*EVOMERGE_CC"):
        assert native.library("int answer(void) { return; + }") is None


@needs_a_compiler
def test_a_command_may_have_arguments(use_compiler):
    use_compiler(f"{INSTALLED} -DUNUSED=1")
    assert answer(native.library(SOURCE)) == 42
