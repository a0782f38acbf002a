"""Scoring candidates: one resident model, items tokenized once, one number an item."""

from evomerge.evaluation.evaluator import Evaluator, Score, load_tokenizer, task_means

__all__ = ["Evaluator", "Score", "load_tokenizer", "task_means"]
