"""Models that answer: a plan's weights in memory, run over token ids."""

from evomerge.runtime.live import LiveModel, compute_dtype, empty_model

__all__ = ["LiveModel", "compute_dtype", "empty_model"]
