"""The items that a search's winner answers better or worse than the best of the models that were merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import EvomergeError
from evomerge.paths import find
from evomerge.report.findings import shown_name
from evomerge.study import LoadedRun
from evomerge.tasks import Item, Split, is_lm_eval, open_task


@dataclass(frozen=True)
class Change:
    """An item that the winner answers better or worse than the best parent.

    Attributes:
        task: its task.
        index: its index in the split.
        before: the parent's score.
        after: the winner's.
        item: what is asked; None where the task's data is not here or has changed.
        written: what the parent and the winner wrote; None where it is not on record.
    """

    task: str
    index: int
    before: float
    after: float
    item: Item | None
    written: tuple[str, str] | None


@dataclass(frozen=True)
class Changes:
    """The items that tell the winner from the best parent.

    Attributes:
        winner: its name.
        parent: the parent's name.
        split: ``holdout``, or ``search`` where the holdout is not scored yet.
        gained: items with a higher score, the largest difference first.
        lost: items with a lower score, the largest difference first.
        same: how many items have the same score.
        tasks: the tasks.
    """

    winner: str
    parent: str
    split: Split
    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    same: int
    tasks: tuple[str, ...]


def changes(run: LoadedRun) -> Changes | None:
    """Returns the items that tell the winner from the best parent; None where either has not been scored."""
    parent, best = best_parent(run), run.best
    if parent is None or best is None:
        return None
    winner = best.name
    split: Split = "search"
    first, second = run.baselines[parent], best.outcome
    if run.result is not None:
        winner, split = str(run.result["winner"]["trial"]), "holdout"
        if winner not in run.holdout:
            return None
        first, second = run.holdout[parent], run.holdout[winner]
    found, same = [], 0
    for task, after in second.items.items():
        texts = [run.completions.get(name, {}).get(task) for name in (parent, winner)] if split == "holdout" else []
        items = _items(run, task, split)
        for index, (old, new) in enumerate(zip(first.items.get(task, ()), after, strict=False)):
            if old is None or new is None:
                continue
            if old == new:
                same += 1
                continue
            written = [text[index] for text in texts if text and index < len(text)]
            item = items[index] if items else None
            pair = (written[0], written[1]) if len(written) == 2 else None
            found.append(Change(task, index, old, new, item, pair))
    gained = sorted((one for one in found if one.after > one.before), key=lambda one: one.before - one.after)
    lost = sorted((one for one in found if one.after < one.before), key=lambda one: one.after - one.before)
    return Changes(shown_name(winner), shown_name(parent), split, tuple(gained), tuple(lost), same, run.tasks)


def _items(run: LoadedRun, name: str, split: Split) -> Sequence[Item] | None:
    """Returns a task's items; None unless they are here and are those that were scored."""
    digest = run.fingerprints[name][split == "holdout"]
    for entry in run.recipe.tasks:
        try:
            path = Path(entry.task) if is_lm_eval(entry.task) else find(entry.task, run.recipe.folders)
            task = open_task(path, run.recipe.local_files()) if path else None
            if task and task.name == name and task.fingerprint(split) == digest:
                return task.items(split)
        except (EvomergeError, OSError):
            continue
    return None


def best_parent(run: LoadedRun) -> str | None:
    """Returns the parent with the highest score: on the holdout where it is scored, else on the search items."""
    outcomes = run.holdout if run.result is not None else run.baselines
    scored = {
        name: value for name in run.parents if name in outcomes and (value := run.value(outcomes[name])) is not None
    }
    return max(scored, key=lambda name: scored[name], default=None)
