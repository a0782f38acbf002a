"""Models that may not be read are refused when they are opened, in one line that names what may not be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evomerge.checkpoint import open_checkpoint
from evomerge.errors import CheckpointError
from tests.tiny import tiny_checkpoint

NOBODY = 65534


@contextmanager
def not_as_root() -> Iterator[None]:
    """Runs as a user for whom permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (".", 0o000),
        (".", 0o311),
        ("config.json", 0o200),
        ("model.safetensors", 0o200),
        ("tokenizer.json", 0o200),
        ("generation_config.json", 0o200),
    ],
)
def test_a_model_that_may_not_be_read(name: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # From here, as the folders above are for the tests' user alone.
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    tiny_checkpoint(tmp_path / "locked", layers=1)
    open_checkpoint("locked").close()
    locked = tmp_path / "locked" / name
    locked.chmod(mode)
    try:
        with not_as_root(), pytest.raises(CheckpointError) as caught:
            open_checkpoint("locked")
    finally:
        locked.chmod(0o755)
    named = re.escape("locked" if name == "." else f"locked/{name}")
    assert re.fullmatch(f"{named}: cannot be read: Permission denied", str(caught.value))
