"""Output heads that are tied to the embedding, by the config or in fact.

A config may tie the head to the embedding (``tie_word_embeddings``) while the file holds a different head;
transformers then keeps both, and so must a merge. And where one model has a head of its own, those that have none
take part with their embedding: that is their head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from evomerge.architecture import Architecture
from evomerge.checkpoint import Checkpoint
from evomerge.merge.renamed import RenamedCheckpoint

_ROWS = 4096  # Compared at a time: most heads that differ do so at once.


def with_own_heads(opened: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Returns the models of a recipe, each with a head of its own where one of them has one.

    Args:
        opened: the models by their names.

    Raises:
        ArchitectureError: a model's layers cannot be found.
        CheckpointError: a head cannot be read.
    """
    architectures = {name: Architecture.of(one.config, one.tensors) for name, one in opened.items()}
    pairs = {name: _own_heads(checkpoint, architectures[name]) for name, checkpoint in opened.items()}
    heads = {head: embedding for own in pairs.values() for head, embedding in own.items()}
    seen = dict(opened)
    for name, checkpoint in opened.items():
        architecture, own = architectures[name], pairs[name]
        repeated = {
            head: embedding
            for head, embedding in heads.items()
            if architecture.ties and head not in own and embedding in architecture.embeddings
        }
        if repeated or own.keys() & architecture.tied:
            names = {tensor: tensor for tensor in checkpoint.tensors} | repeated
            seen[name] = RenamedCheckpoint(checkpoint, names, _untied(checkpoint.config), "untied")
    return seen


def _own_heads(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, str]:
    """Returns the heads that do not repeat an embedding, each with the embedding of its shape."""
    found = {}
    for head in architecture.heads:
        shape = checkpoint.tensors[head].shape
        alike = [name for name in architecture.embeddings if checkpoint.tensors[name].shape == shape]
        if alike and not (head in architecture.tied and any(_equal(checkpoint, head, name) for name in alike)):
            found[head] = min(alike)
    return found


def _equal(checkpoint: Checkpoint, head: str, embedding: str) -> bool:
    one, other = checkpoint.read(head), checkpoint.read(embedding)
    blocks = (slice(start, start + _ROWS) for start in range(0, len(one), _ROWS))
    return all(torch.equal(one[rows], other[rows]) for rows in blocks)


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    result = {**copy.deepcopy(dict(config)), "tie_word_embeddings": False}
    for part in result.values():
        if isinstance(part, dict) and "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False
    return result
