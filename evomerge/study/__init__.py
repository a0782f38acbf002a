"""Searches: checked before they start, recorded as they run, and reported on the holdout."""

from evomerge.study.comparison import Comparison, compare
from evomerge.study.intervals import interval
from evomerge.study.loaded_run import LoadedRun, load_run
from evomerge.study.objective import Objective
from evomerge.study.observer import Observer
from evomerge.study.record import Record
from evomerge.study.report_data import ModelResult, ReportData, conclude
from evomerge.study.runs import Run, runs
from evomerge.study.search_spec import SearchSpec, prepare
from evomerge.study.stages import Stages
from evomerge.study.study import Study
from evomerge.study.trial import Trial

__all__ = [
    "Comparison",
    "LoadedRun",
    "ModelResult",
    "Objective",
    "Observer",
    "Record",
    "ReportData",
    "Run",
    "SearchSpec",
    "Stages",
    "Study",
    "Trial",
    "compare",
    "conclude",
    "interval",
    "load_run",
    "prepare",
    "runs",
]
