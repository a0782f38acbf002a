"""Which row of which model's embeddings each token of the output's vocabulary takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.document import Location
from evomerge.recipe import ModelToken, Recipe, TokenEntry, TokenizerSection, ZeroToken
from evomerge.tokenizer.tokenizer import ModelTokenizer

Row = tuple[str, int]
"""A model and a row of its embeddings."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of the re-indexed embeddings come from.

    Attributes:
        count: how many there are.
        own: for each model, its row for each row of the output, shape (count,), int64; -1 where it takes `others`.
        others: for the rows that some model lacks, or that are forced: the rows whose mean they are; none: zeros.
        filling: the rows that belong to no token; they are the mean of those that do.
    """

    count: int
    own: Mapping[str, np.ndarray]
    others: Mapping[int, tuple[Row, ...]]
    filling: np.ndarray


def rows_of(
    recipe: Recipe,
    section: TokenizerSection,
    output: ModelTokenizer,
    tokenizers: Mapping[str, ModelTokenizer],
    sizes: Mapping[str, int],
) -> tuple[Rows, list[str]]:
    """Returns where every row comes from, and a line for each token whose source cannot give it.

    A token that a model lacks is, where the recipe does not say: the row of the one model that has it; else the
    base's, if it has it; else the mean of all that have it; zeros, if none has.

    Args:
        recipe: gives the base, and the places of faults.
        section: what it says of the vocabulary.
        output: the result's tokenizer.
        tokenizers: each merged model's.
        sizes: the number of rows of each merged model's embeddings.
    """
    faults: list[str] = []
    others: dict[int, tuple[Row, ...]] = {}
    tokens = max(output.vocabulary.values(), default=-1) + 1
    multiple = section.pad_to_multiple_of or 1
    count = -(-tokens // multiple) * multiple
    own = {model: np.full(count, -1, dtype=np.int64) for model in tokenizers}
    base = recipe.base_model
    for token, number in output.vocabulary.items():
        entry = section.tokens.get(token)
        having = [(model, known.vocabulary[token]) for model, known in tokenizers.items() if token in known.vocabulary]
        if not (entry and entry.force):
            for model, row in having:
                own[model][number] = row
            if len(having) == len(tokenizers):
                continue
        if entry is not None and entry.source is not None:
            place: Location = ("tokenizer", "tokens", token, "source")
            found = _sourced(entry, token, tokenizers, sizes)
            if isinstance(found, str):
                faults.append(recipe.fault(place, found))
            else:
                others[number] = found
        else:
            others[number] = _default(having, base)
    filling = np.setdiff1d(np.arange(count), np.fromiter(output.vocabulary.values(), dtype=np.int64))
    return Rows(count, own, others, filling), faults


def _default(having: Sequence[Row], base: str | None) -> tuple[Row, ...]:
    of_base = tuple(row for row in having if row[0] == base)
    return of_base or tuple(having)


def _sourced(
    entry: TokenEntry, token: str, tokenizers: Mapping[str, ModelTokenizer], sizes: Mapping[str, int]
) -> tuple[Row, ...] | str:
    """Returns the row that the recipe names for a token, or what is wrong with it."""
    source = entry.source
    if source is None or isinstance(source, ZeroToken):
        return ()
    model = source.model if isinstance(source, ModelToken) else source
    if model not in tokenizers:
        return f"{model} is not one of the models that are merged; take one of {', '.join(tokenizers)}"
    if isinstance(source, ModelToken) and source.token_id is not None:
        if source.token_id >= sizes[model]:
            return f"token_id is {source.token_id}, but {model} has {sizes[model]} tokens"
        return ((model, source.token_id),)
    wanted = source.token if isinstance(source, ModelToken) and source.token is not None else token
    row = tokenizers[model].vocabulary.get(wanted)
    return f'{model} has no token "{wanted}"; name a model that has it' if row is None else ((model, row),)
