"""Models with one common vocabulary: the output's tokenizer, and embeddings and heads re-indexed to it."""

from evomerge.tokenizer.alignment import aligned
from evomerge.tokenizer.tokenizer import ModelTokenizer

__all__ = ["ModelTokenizer", "aligned"]
