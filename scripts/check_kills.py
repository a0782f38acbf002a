"""Kills a search again and again, and shows that nothing was lost.

    python scripts/check_kills.py recipes/quickstart.yaml --kills 10

Runs the search once undisturbed. Then runs it again, killing it (SIGKILL, with no chance to tidy up) at random
moments: while it builds, evaluates or writes. At the end the two runs must hold the same record, the same winner
and the same files. Exits with 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evomerge.study import Record


def search_command(recipe: Path, folder: Path, options: list[str]) -> list[str]:
    """Returns the command that starts the search in `folder`, or goes on with it."""
    return [sys.executable, "-m", "evomerge", "search", str(recipe), "--run-dir", str(folder), *options]


def killed_search(command: list[str], folder: Path, kills: int, spread: float, rng: random.Random) -> list[int]:
    """Runs the search to its end, killing it on the way; returns how many trials were on record at each kill.

    Args:
        command: starts the search, and goes on with it.
        folder: its run's folder.
        kills: how many times.
        spread: each kill comes within this many seconds of the search's next sign of life.
        rng: chooses the moments.
    """
    seen = []
    while len(seen) < kills:
        before = database_state(folder)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # Moments before the search has begun to write are dull: the clock starts with its first write.
        while process.poll() is None and database_state(folder) == before:
            time.sleep(0.01)
        try:
            process.wait(timeout=rng.uniform(0, spread))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode != -signal.SIGKILL:
            if process.returncode:
                raise SystemExit(f"the search failed:\n{errors.decode()}")
            break
        with Record(folder) as record:
            seen.append(len(record.trials))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return seen


def database_state(folder: Path) -> tuple[float, int]:
    """Returns something that changes with every write to the record."""
    path = folder / "study.db"
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)


def run_state(folder: Path) -> dict[str, Any]:
    """Returns all that a run holds but the time that it took."""
    with Record(folder) as record:
        trials = [
            [trial.number, trial.kind, trial.genome, trial.recipe, trial.objective, trial.outcome.items]
            for trial in record.trials
        ]
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    # The comment in best.yaml names the run's folder.
    best = [line for line in (folder / "best.yaml").read_text().splitlines() if not line.startswith("#")]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {"trials": trials, "result": result, "best.yaml": best, "files": files}


def main() -> None:
    """Runs both searches and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/check-kills"), help="holds both runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, not of the search")
    parser.add_argument("--options", nargs="*", default=[], help="for evomerge search, such as --options=--device=cpu")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.run_dir, ignore_errors=True)
    whole, killed = arguments.run_dir / "whole", arguments.run_dir / "killed"
    command = search_command(arguments.recipe, whole, arguments.options)
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - started
    print(f"undisturbed: {took:.0f} s", flush=True)
    seen = killed_search(
        search_command(arguments.recipe, killed, arguments.options),
        killed,
        arguments.kills,
        # Half of that on average, and starting takes no part in it: the search outlasts all kills.
        took / arguments.kills / 2,
        random.Random(arguments.seed),
    )
    print(f"killed {len(seen)} times, with {seen} merges on record")
    left, right = run_state(whole), run_state(killed)
    same = {part: left[part] == right[part] for part in left}
    for part, equal in same.items():
        print(f"{part}: {'the same' if equal else 'DIFFERENT'}")
    print(f"files: {', '.join(right['files'])}")
    if not all(same.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
