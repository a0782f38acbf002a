"""Models seen in one common vocabulary: the output's tokenizer, and embeddings and heads re-indexed to it."""

from evomerge.vocabulary.alignment import aligned
from evomerge.vocabulary.tokenizer import ModelTokenizer

__all__ = ["ModelTokenizer", "aligned"]
