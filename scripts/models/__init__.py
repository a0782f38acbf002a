"""Makers of checkpoints and of their training data."""
