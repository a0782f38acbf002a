"""Searches: checked before they begin, on record as they go, concluded on the holdout."""

from evomerge.study.conclusion import Conclusion, Standing, conclude
from evomerge.study.intervals import interval
from evomerge.study.preparation import Preparation, prepare
from evomerge.study.record import Outcome, Record, Trial
from evomerge.study.runs import Run, runs
from evomerge.study.study import Objective, Observer, Study

__all__ = [
    "Conclusion",
    "Objective",
    "Observer",
    "Outcome",
    "Preparation",
    "Record",
    "Run",
    "Standing",
    "Study",
    "Trial",
    "conclude",
    "interval",
    "prepare",
    "runs",
]
