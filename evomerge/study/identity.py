"""What must not change when a search is resumed, what may, and how changes are reported."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
import transformers

import evomerge
from evomerge.document import Location, spelled
from evomerge.study.search_spec import SearchSpec

_MOST_CHANGES = 4
_MOST_CHARACTERS = 60
_MISSING = object()


def identity(spec: SearchSpec, kept: MutableMapping[str, str]) -> dict[str, Any]:
    """Returns what must not change when a search is resumed, as JSON data; the number of evaluations may grow.

    Args:
        spec: the search.
        kept: digests of models' files, see `Checkpoint.fingerprint`.
    """
    recipe = {key: value for key, value in spec.recipe.as_data().items() if key not in ("search", "data")}
    data = {
        "recipe": recipe,
        "search": spec.settings.model_dump(exclude={"evaluations"}),
        "models": {name: checkpoint.fingerprint(kept) for name, checkpoint in spec.checkpoints.items()},
        "tasks": {task.name: [task.fingerprint("search"), task.fingerprint("holdout")] for task in spec.tasks},
        **({"plugins": spec.plugins} if spec.plugins else {}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns text that lists the differences between two identities."""
    before, after = (dict(_leaves(data, ())) for data in (old, new))
    found = []
    for location in [*before, *(location for location in after if location not in before)]:
        was, now = before.get(location, _MISSING), after.get(location, _MISSING)
        if was == now:
            continue
        if location[0] in ("models", "tasks") and _MISSING not in (was, now):
            found.append(f"{location[0][:-1]} {location[1]}: its files changed")
        else:
            found.append(f"{spelled(location)} was {_short(was)}, is {_short(now)}")
    found = list(dict.fromkeys(found))
    more = [f"and {len(found) - _MOST_CHANGES} more"] if len(found) > _MOST_CHANGES else []
    return ", ".join(found[:_MOST_CHANGES] + more)


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what may change the last bits of a score."""
    return {
        "evomerge": evomerge.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "device": str(device),
        "computes in": str(dtype),
        "threads": torch.get_num_threads(),
    }


def _leaves(data: Any, location: Location) -> Iterator[tuple[Location, Any]]:
    """Yields every leaf of plain data with its location."""
    parts = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    if not parts or not data:
        yield location, data
    for key, part in parts:
        yield from _leaves(part, (*location, key))


def _short(value: object) -> str:
    text = "absent" if value is _MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
