"""Building candidates: one plan, two sinks, the same bits in both."""

from evomerge.build.live import LiveModel, compute_dtype, empty_model
from evomerge.build.opening import open_models, open_recipe
from evomerge.build.parameters import hole_starts, parameter_faults
from evomerge.build.parts import checked_method, parents
from evomerge.build.plan import DTYPES, Job, Layout, Plan
from evomerge.build.planner import Planner, plan
from evomerge.build.remarks import remarks
from evomerge.build.residence import Place, Sources, compute_device, free_bytes, residence
from evomerge.build.side_files import chat_template
from evomerge.build.sinks import into_directory, into_model, into_tensors

__all__ = [
    "DTYPES",
    "Job",
    "Layout",
    "LiveModel",
    "Place",
    "Plan",
    "Planner",
    "Sources",
    "chat_template",
    "checked_method",
    "compute_device",
    "compute_dtype",
    "empty_model",
    "free_bytes",
    "hole_starts",
    "into_directory",
    "into_model",
    "into_tensors",
    "open_models",
    "open_recipe",
    "parameter_faults",
    "parents",
    "plan",
    "remarks",
    "residence",
]
