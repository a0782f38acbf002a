"""evomerge: find, by evolution, how to merge fine-tuned models into one that beats them all."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.api import apply as apply
    from evomerge.api import evaluate as evaluate
    from evomerge.api import load_run as load_run
    from evomerge.api import publish as publish
    from evomerge.api import search as search

__version__ = "0.1.0"

_API = ("apply", "evaluate", "load_run", "publish", "search")


class _Package(ModuleType):
    """This package: its functions keep their names where a room has the same, as `evomerge.search` has."""

    def __setattr__(self, name: str, value: object) -> None:
        # Importing a room would set it as an attribute. `from evomerge.search import ...` does not need that.
        if not (name in _API and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Returns a function of `evomerge.api`, which is imported on first use: it needs torch, and --help does not."""
    if name in _API:
        return getattr(importlib.import_module("evomerge.api"), name)
    raise AttributeError(f"module 'evomerge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_API, "__version__"]
