"""Merge methods: pure functions of tensors that declare their parameters once.

To add a method, write its file and add it to `METHODS`; recipes, checks, search, docs and the contract tests of all
methods follow from its declaration.
"""

from __future__ import annotations

from evomerge.methods.arcee_fusion import ARCEE_FUSION
from evomerge.methods.iso_c import ISO_C
from evomerge.methods.karcher import KARCHER
from evomerge.methods.linear import LINEAR
from evomerge.methods.method import MergeMethod, Parameter, Parameters, Value
from evomerge.methods.model_stock import MODEL_STOCK
from evomerge.methods.multislerp import MULTISLERP
from evomerge.methods.nearswap import NEARSWAP
from evomerge.methods.nuslerp import NUSLERP
from evomerge.methods.passthrough import PASSTHROUGH
from evomerge.methods.ram import RAM, RAMPLUS_TL
from evomerge.methods.sce import SCE
from evomerge.methods.slerp import SLERP
from evomerge.methods.task_arithmetic import (
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    DARE_LINEAR,
    DARE_TIES,
    DELLA,
    DELLA_LINEAR,
    TASK_ARITHMETIC,
    TIES,
)
from evomerge.methods.tsv import TSV
from evomerge.methods.wudi import WUDI
from evomerge.plugins import Table

__all__ = [
    "KNOWN_PARAMETERS",
    "METHODS",
    "MergeMethod",
    "Parameter",
    "Parameters",
    "Value",
]

_MEANS = (LINEAR, SLERP, NUSLERP, MULTISLERP, KARCHER)
_TASK_VECTORS = (TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES, DELLA, DELLA_LINEAR, BREADCRUMBS, BREADCRUMBS_TIES)
_ELEMENTS = (MODEL_STOCK, SCE, RAM, RAMPLUS_TL, NEARSWAP, ARCEE_FUSION)
_MATRICES = (TSV, ISO_C, WUDI)

METHODS: Table[MergeMethod] = Table(
    "evomerge.methods",
    "merge method",
    {method.name: method for method in (*_MEANS, *_TASK_VECTORS, *_ELEMENTS, *_MATRICES, PASSTHROUGH)},
    valid=lambda found: isinstance(found, MergeMethod),
)
"""Every merge method by the name that recipes use: evomerge's own, and those of other packages."""

KNOWN_PARAMETERS: frozenset[str] = frozenset(
    # In mergekit int8_mask makes masks smaller and changes no number; recipes have it with any method.
    {"int8_mask"} | {parameter.name for known in METHODS.own.values() for parameter in known.parameters}
)
"""The names of all parameters of evomerge's methods, which any recipe may have."""
