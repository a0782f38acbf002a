"""Models that answer: a plan's weights in memory, run over token ids."""

from evomerge.runtime.language_model import TorchLanguageModel
from evomerge.runtime.live import LiveModel, compute_dtype
from evomerge.runtime.protocol import GenerationRequest, LanguageModel, LikelihoodRequest, Runtime, TokenCounts
from evomerge.runtime.resident import ResidentRuntime

__all__ = [
    "GenerationRequest",
    "LanguageModel",
    "LikelihoodRequest",
    "LiveModel",
    "ResidentRuntime",
    "Runtime",
    "TokenCounts",
    "TorchLanguageModel",
    "compute_dtype",
]
