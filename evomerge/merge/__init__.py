"""Building candidates: one plan, two sinks, the same bits in both."""

from evomerge.merge.opening import open_models, open_recipe
from evomerge.merge.parameters import hole_starts, parameter_faults
from evomerge.merge.parts import checked_method, parents
from evomerge.merge.plan import DTYPES, Job, Layout, Plan
from evomerge.merge.planner import Planner, plan
from evomerge.merge.side_files import chat_template
from evomerge.merge.sinks import into_directory, into_tensors
from evomerge.merge.warnings import plan_warnings
from evomerge.merge.weight_store import Tier, WeightStore, choose_tier, compute_device, free_bytes

__all__ = [
    "DTYPES",
    "Job",
    "Layout",
    "Plan",
    "Planner",
    "Tier",
    "WeightStore",
    "chat_template",
    "checked_method",
    "choose_tier",
    "compute_device",
    "free_bytes",
    "hole_starts",
    "into_directory",
    "into_tensors",
    "open_models",
    "open_recipe",
    "parameter_faults",
    "parents",
    "plan",
    "plan_warnings",
]
