"""Models that answer: a plan's weights in memory, run over token ids."""

from evomerge.runtime.blocks import LayerRuns
from evomerge.runtime.by_reference import StackLayer, by_reference
from evomerge.runtime.fold_check import verify_fold
from evomerge.runtime.language_model import TorchLanguageModel
from evomerge.runtime.live import LiveModel, compute_dtype
from evomerge.runtime.protocol import (
    GenerationRequest,
    Images,
    LanguageModel,
    LikelihoodRequest,
    Runtime,
    TokenCounts,
)
from evomerge.runtime.resident import ResidentRuntime
from evomerge.runtime.stack import StackRuntime

__all__ = [
    "GenerationRequest",
    "Images",
    "LanguageModel",
    "LayerRuns",
    "LikelihoodRequest",
    "LiveModel",
    "ResidentRuntime",
    "Runtime",
    "StackLayer",
    "StackRuntime",
    "TokenCounts",
    "TorchLanguageModel",
    "by_reference",
    "compute_dtype",
    "verify_fold",
]
