"""Scoring a language model on any items of tasks: items are tokenized once, and each gets one number."""

from evomerge.evaluation.evaluator import Cost, Evaluator, ItemId, Scores

__all__ = ["Cost", "Evaluator", "ItemId", "Scores"]
