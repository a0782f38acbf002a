"""What a search shows while it runs, and what it took."""

from __future__ import annotations

import time
from collections import deque
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal as size
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.cli.tables import MEAN_LABEL
from evomerge.search import Outcome
from evomerge.study import Observer, ReportData, SearchSpec, Trial
from evomerge.study.trial import MEAN

LINE_SECONDS = 10.0
"""The least time between two lines, if the output is not a terminal."""


class SearchDisplay(Observer):
    """The observer of a search that shows its progress: in a live panel on a terminal, else in a line now and then.

    Args:
        console: prints it.
        spec: the search.

    Attributes:
        live: the panel, a context manager; it shows nothing if the console is not a terminal.
    """

    def __init__(self, console: Console, spec: SearchSpec) -> None:
        self._on_terminal = console.is_terminal
        self._width = min(40, console.width)
        self._say = partial(console.print, soft_wrap=True)
        self._total = spec.settings.evaluations
        self._baselines: dict[str, float | None] = {}
        self._candidates: list[Trial] = []
        self._best: Trial | None = None
        self._read_back = 0
        self._failures = 0
        self._spent: deque[float] = deque(maxlen=50)
        self._now = "opening the models"
        self._fraction: float | None = None
        self._last_line = 0.0
        self.live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def loading(self, done: int, total: int) -> None:
        """Shows how many bytes of the models are read."""
        self._now = f"reading the models, {size(done)} of {size(total)}"
        self._fraction = done / max(total, 1)
        self._line(self._now, at_once=done >= total)

    def evaluating(self, what: str, stage: str) -> None:
        """Shows what is being evaluated."""
        self._now = f"{what}: {'building' if stage == 'build' else stage}"
        self._fraction = None

    def baseline(self, name: str, outcome: Outcome, objective: float | None) -> None:
        """Shows a parent's score, or why it has none."""
        self._baselines[name] = objective
        if objective is not None:
            self._line(f"{name}: {objective:.3f}", at_once=True)
        elif outcome.error:
            self.note(f"{name} failed: {outcome.error}")

    def trial(self, trial: Trial, fresh: bool) -> None:
        """Shows the score of one more merge."""
        if trial.proposal is None:
            self._baselines[MEAN_LABEL] = trial.objective
        elif not trial.final:
            self._candidates.append(trial)
            self._read_back += not fresh
            if fresh:
                self._spent.append(sum(trial.outcome.seconds.values()))
        if trial.objective is None:
            self._failures += 1
            if fresh:
                self.note(f"trial {trial.number} failed: {trial.outcome.error}")
        self._line(self._status(), at_once=fresh and len(self._candidates) == self._total)

    def best(self, trial: Trial) -> None:
        """Shows the best merge so far."""
        self._best = trial

    def holdout(self, name: str, done: int, total: int) -> None:
        """Shows the holdout's progress."""
        self._now = f"holdout: {MEAN_LABEL if name == MEAN else name}, {done + 1} of {total}"
        self._fraction = done / total
        self._line(self._now, at_once=True)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._say(Text.assemble(("note ", "yellow"), text))

    def _status(self) -> str:
        done = len(self._candidates)
        parts = [f"{done} of {self._total} evaluations"]
        if self._read_back:
            parts.append(f"{self._read_back} of them from the record")
        if self._best is not None:
            parts.append(f"best {self._best.objective:.3f} (trial {self._best.number})")
        if self._failures:
            parts.append(f"{self._failures} failed")
        if self._spent and done < self._total:
            parts.append(f"{duration(sum(self._spent) / len(self._spent) * (self._total - done))} left")
        return ", ".join(parts)

    def _line(self, text: str, at_once: bool) -> None:
        """Prints a line if there is no terminal to keep the panel on, but only now and then unless `at_once`."""
        now = time.monotonic()
        if not self._on_terminal and (at_once or now - self._last_line > LINE_SECONDS):
            self._last_line = now
            self._say(text)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for name, score in self._baselines.items():
            table.add_row(name, "" if score is None else f"{score:.3f}", style="dim")
        if self._best is not None:
            table.add_row(f"best, trial {self._best.number}", f"{self._best.objective:.3f}", style="bold green")
        lines: list[RenderableType] = [table, Text(self._status())]
        generation = _generation(self._candidates[-1]) if self._candidates else 0
        scores = [
            trial.objective
            for trial in self._candidates
            if trial.objective is not None and _generation(trial) == generation
        ]
        if len(scores) > 1:
            text = f"generation {generation + 1}: best {max(scores):.3f}, mean {sum(scores) / len(scores):.3f}"
            lines.append(Text(text, style="dim"))
        fraction = len(self._candidates) / self._total if self._fraction is None else self._fraction
        bar = ProgressBar(total=1.0, completed=fraction, width=self._width)
        return Group(*lines, Padding(bar), Text(self._now, style="dim"))


def _generation(trial: Trial) -> int:
    return trial.proposal.generation if trial.proposal else 0


def duration(seconds: float) -> str:
    """Returns seconds as people read them: ``42 s``, ``3 min 10 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def spent(report: ReportData) -> str:
    """Returns the line that says how many candidates a search evaluated, and in what time."""
    failed = f", {report.failures} failed" if report.failures else ""
    build, evaluate, other = (duration(report.seconds[part]) for part in ("build", "evaluate", "other"))
    return (
        f"{report.evaluations} evaluations{failed}, {report.items_scored:,} items scored: {build} building,"
        f" {evaluate} evaluating, {other} other."
    )
