"""Scoring candidates: one resident model, items tokenized once, one number an item."""

from evomerge.evaluation.evaluator import Evaluator, Score, Split, load_tokenizer, task_means

__all__ = ["Evaluator", "Score", "Split", "load_tokenizer", "task_means"]
