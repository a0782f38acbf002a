"""Settings for every test: no network, one small thread pool, quiet libraries."""

import os
from collections.abc import Callable, Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture
def use_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Names the C compiler to use from then on; an empty name is none."""
    from evomerge.kernels import loops, native

    def forget() -> None:
        native.compiler.cache_clear()
        native._broken.clear()
        native._libraries.clear()
        loops.loop.cache_clear()

    def use(command: str) -> None:
        monkeypatch.setenv("EVOMERGE_CC", command)
        forget()

    yield use
    monkeypatch.undo()
    forget()
