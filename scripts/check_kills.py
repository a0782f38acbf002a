"""Kills a search, or an apply, again and again, and shows that nothing was lost.

    python scripts/check_kills.py recipes/quickstart.yaml --kills 10
    python scripts/check_kills.py recipes/quickstart-stack.yaml --kills 10
    python scripts/check_kills.py recipes/quickstart.yaml --kills 10 --apply
    python scripts/check_kills.py recipes/quickstart.yaml --kills 10 --storage postgresql://USER@HOST/DATABASE

Runs the search once undisturbed, then again, killing it (SIGKILL, with no chance to clean up) at random moments:
while it builds, evaluates or writes. At the end the two runs must hold the same record, the same winner and the same
files. With --apply, does the same to the writing of the search's first candidate, to a new folder and over an old
model: after each kill the folder must be unchanged or hold the new model, at the end it must hold the new model, byte
for byte, and the files beside it must be untouched. Exits with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from sqlalchemy import column, func, or_, select, table

from evomerge.checkpoint import UNFINISHED
from evomerge.study import Record, Trial, prepare
from evomerge.study.stages import stage_names, study_name
from evomerge.study.storage import Storage


class Process(Protocol):
    """A process of `subprocess`, or one that is used like it."""

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status; raises `subprocess.TimeoutExpired` if it still runs after `timeout` seconds."""

    def kill(self) -> None:
        """Sends SIGKILL."""


def search_command(recipe: Path, folder: Path, options: list[str]) -> list[str]:
    """Returns the command that starts the search in `folder`, or resumes it."""
    return [sys.executable, "-m", "evomerge", "search", str(recipe), "--run-dir", str(folder), *options]


def killed_search(
    start: Callable[[], Process],
    folder: Path,
    kills: int,
    spread: float,
    rng: random.Random,
    storage: str | None = None,
) -> list[int]:
    """Runs the search to its end, killing it several times; returns the number of recorded trials at each kill.

    Args:
        start: starts the search, or resumes it.
        folder: its run's folder.
        kills: how many times.
        spread: each kill comes within this many seconds of the search's next score.
        rng: chooses the moments.
        storage: the URL of the record's database; study.db in the folder by default.
    """
    seen = []
    while len(seen) < kills:
        before = scored(folder, storage)
        process = start()
        # A kill before the first score tests little: the clock starts with the next score.
        while process.poll() is None and scored(folder, storage) <= before:
            time.sleep(0.02)
        try:
            process.wait(timeout=rng.uniform(0, spread))
        except subprocess.TimeoutExpired:
            process.kill()
        ended = process.wait()
        if ended != -signal.SIGKILL:
            if ended:
                raise SystemExit("the search failed, see above")
            break
        seen.append(sum(len(trials) for trials in recorded(folder, storage).values()))
    if start().wait():
        raise SystemExit("the search failed, see above")
    return seen


@functools.cache
def engine(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    """Returns a database's engine: a connection for each look would slow down the search that is looked at."""
    return sqlalchemy.create_engine(url)


def places(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """Returns where the records of a run are: of each stage its folder, and its study's name in a shared database."""
    stages = stage_names(folder)
    if stages is None:
        return {"": (folder, None)}
    return {name: (folder / name, study_name(folder, name)) for name in stages if (folder / name).is_dir()}


def recorded(folder: Path, storage: str | None = None) -> dict[str, tuple[Trial, ...]]:
    """Returns the trials on record, by stage."""
    found = {}
    for stage, (path, name) in places(folder).items():
        with Record(path, storage, name) as record:
            found[stage] = record.trials
    return found


def scored(folder: Path, storage: str | None = None) -> int:
    """Returns how many scores are on record, of models and merges; 0 where there is no record that can be read."""
    return sum(scored_in(Storage(path, storage, name)) for path, name in places(folder).values())


def scored_in(place: Storage) -> int:
    """Returns how many scores one record holds."""
    if place.path and not place.path.exists():
        return 0
    id, key = column("study_id"), column("key")
    own = id.in_(select(id).select_from(table("studies")).where(column("study_name") == place.study))
    trials = select(func.count()).select_from(table("trials")).where(own)
    scores = select(func.count()).select_from(table("study_user_attributes")).where(own)
    try:
        with engine(place.url).connect() as connection:
            scores = scores.where(or_(key.like("baseline:%"), key.like("holdout%")))
            return sum(connection.execute(query).scalar_one() for query in (trials, scores))
    except sqlalchemy.exc.SQLAlchemyError:  # no tables yet
        return 0


def run_state(folder: Path, storage: str | None = None) -> dict[str, Any]:
    """Returns everything that a run holds except its timings."""
    trials = {
        stage: [[one.number, one.proposal, one.recipe, one.objective, one.outcome.items] for one in found]
        for stage, found in recorded(folder, storage).items()
    }
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    best = [line for line in (folder / "best.yaml").read_text().splitlines() if not line.startswith("#")]
    # Comments, and models that the run itself has made, are named by the run's folder.
    best = [line.replace(str(folder.resolve()), "RUN") for line in best]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
    return {"trials": trials, "result": result, "best.yaml": best, "files": files, "weights": weights}


def check_search(
    recipe: Path, folder: Path, kills: int, rng: random.Random, options: list[str], storage: str | None
) -> dict[str, bool]:
    """Runs both searches; returns which parts of the two runs are the same."""
    # With the folder's unique name: in a shared database, runs go by the names of their folders.
    whole, killed = folder / f"{folder.name}-whole", folder / f"{folder.name}-killed"
    options = [*options, "--storage", storage] if storage else options
    started = time.monotonic()
    subprocess.run(search_command(recipe, whole, options), check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - started
    print(f"undisturbed: {took:.0f} s", flush=True)
    # Half of that on average, start-up not counted, so that the search outlasts all kills.
    command = search_command(recipe, killed, options)
    start = functools.partial(subprocess.Popen, command, stdout=subprocess.DEVNULL)
    seen = killed_search(start, killed, kills, took / kills / 2, rng, storage)
    print(f"killed {len(seen)} times, with {seen} trials recorded")
    left, right = run_state(whole, storage), run_state(killed, storage)
    print(f"files: {', '.join(right['files'])}")
    return {part: left[part] == right[part] for part in left}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns a folder's contents: the bytes of each file by its path; None for a folder."""
    paths = folder.rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def killed_apply(command: list[str], work: Path, moment: float | None) -> float | None:
    """Runs an apply and kills it some seconds after its first write.

    Args:
        command: the apply.
        work: the hidden folder in which it writes.
        moment: seconds from its first write to the kill; None for no kill.

    Returns:
        The seconds from its first write to its end; None where it was killed.
    """
    left = changed(work)  # by the kill before
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and changed(work) in (0, left):
        time.sleep(0.0005)
    started = time.monotonic()
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
    took = time.monotonic() - started
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"apply failed:\n{errors.decode()}")
    return None if process.returncode else took


def changed(path: Path) -> int:
    """Returns when a folder was last changed; 0 where there is none."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0


def check_apply(recipe: Path, folder: Path, kills: int, rng: random.Random) -> dict[str, bool]:
    """Applies the first candidate of a search, undisturbed and killed; returns which checks passed."""
    first, parent = prepare(recipe).first, folder / "parent"
    merge, out = folder / "merge.yaml", parent / "OUT"
    work = parent / f".OUT.{UNFINISHED}"
    merge.write_text(first.recipe.to_yaml("The first candidate of the search."))
    for name in ("OUT.partial", "OUT.partial-replaced", ".OUT.partial", ".x.partial1", "models"):
        (parent / name).mkdir(parents=True)
        (parent / name / "precious.txt").write_text(name)
    for place in (parent, folder):
        (place / ".best.yaml.partial").write_text("precious")
    command = [sys.executable, "-m", "evomerge", "apply", str(merge), str(out), "--shard-size", "0.00002"]
    untouched = contents(folder)
    took = killed_apply(command, work, None)
    assert took is not None
    new = contents(out)
    print(f"undisturbed: {took:.2f} s of writing {len(new)} files", flush=True)
    shutil.rmtree(out)
    good = {}
    for mode, options in (("apply", []), ("apply --overwrite", ["--overwrite"])):
        states: list[str] = []
        old = contents(first.layout.donor.folder) if options else {}
        while len(states) < kills:
            if not options:
                shutil.rmtree(out, ignore_errors=True)
            elif not work.exists():
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(first.layout.donor.folder, out)
            if killed_apply([*command, *options], work, rng.uniform(0, took)) is None:
                # Between two renames the old model is in the work folder, from where the next run brings it back.
                found = contents(out if out.exists() else work / "replaced")
                states.append("the new model" if found == new else "as before" if found == old else "BROKEN")
        if not options:
            shutil.rmtree(out, ignore_errors=True)
        killed_apply([*command, *options], work, None)
        counts = ", ".join(f"{states.count(state)} times {state}" for state in sorted(set(states)))
        print(f"{mode}: killed {len(states)} times; the folder was then {counts}", flush=True)
        good[f"{mode}: the folder after each kill"] = "BROKEN" not in states
        good[f"{mode}: the folder at the end"] = contents(out) == new
        shutil.rmtree(out)
        good[f"{mode}: what lies beside it"] = contents(folder) == untouched
    return good


def main() -> None:
    """Runs the search or the apply undisturbed and killed, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a search recipe")
    parser.add_argument("--kills", type=int, default=10, help="how many times to kill it (default: 10)")
    parser.add_argument("--apply", action="store_true", help="kill evomerge apply, not evomerge search")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills, not of the search")
    parser.add_argument("--storage", help="the URL of a database for the search's record")
    parser.add_argument("--options", nargs="*", default=[], help="for evomerge search, such as --options=--device=cpu")
    arguments = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp(prefix="check-kills-")), random.Random(arguments.seed)
    if arguments.apply:
        good = check_apply(arguments.recipe, folder, arguments.kills, rng)
    else:
        good = check_search(arguments.recipe, folder, arguments.kills, rng, arguments.options, arguments.storage)
    for part, equal in good.items():
        print(f"{part}: {'OK' if equal else 'DIFFERENT'}")
    if not all(good.values()):
        raise SystemExit(f"the files are kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
