"""A Hub for each test, and the real client set to it; its waits between attempts take no time."""

from __future__ import annotations

import time
import types
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.utils._http as http
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.hub import TOKEN, Hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have waited."""
    waited: list[float] = []
    monkeypatch.setattr(http, "time", types.SimpleNamespace(**{**vars(time), "sleep": waited.append}))
    return waited


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[Hub]:  # noqa: ARG001
    # The variables of the environment, as they are after the client was imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
    close_session()
