"""`rows_of`: the row of a model's embeddings that each token of the output's vocabulary takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.errors import RecipeError
from evomerge.recipe import ModelToken, Recipe, TokenEntry, TokenizerSection, ZeroToken
from evomerge.tokenizer.tokenizer import ModelTokenizer

Row = tuple[str, int]
"""A model and a row of its embeddings."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of the re-indexed embeddings come from.

    Attributes:
        count: the number of rows.
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
) -> Rows:
    """Returns where every row comes from.

    A token that a model lacks takes, unless the recipe names a source: the base's row, if the base has the token; else
    the mean of the rows of all models that have it; else zeros.

    Args:
        recipe: gives the base, and the lines of faults.
        section: its settings of the vocabulary.
        output: the output's tokenizer.
        tokenizers: each merged model's.

    Raises:
        RecipeError: with a line for each token whose source does not have it.
    """
    faults: list[str] = []
    others: dict[int, tuple[Row, ...]] = {}
    tokens = max(output.vocabulary.values(), default=-1) + 1
    multiple = section.pad_to_multiple_of or 1
    count = -(-tokens // multiple) * multiple
    own = {model: np.full(count, -1, dtype=np.int64) for model in tokenizers}
    for token, number in output.vocabulary.items():
        entry = section.tokens.get(token)
        having = [(model, known.vocabulary[token]) for model, known in tokenizers.items() if token in known.vocabulary]
        if not (entry and entry.force):
            for model, row in having:
                own[model][number] = row
            if len(having) == len(tokenizers):
                continue
        if entry is not None and entry.source is not None:
            try:
                others[number] = _sourced(entry, token, tokenizers)
            except RecipeError as fault:
                faults.append(recipe.fault(("tokenizer", "tokens", token, "source"), str(fault)))
        else:
            others[number] = tuple(row for row in having if row[0] == recipe.base_model) or tuple(having)
    if faults:
        raise RecipeError(faults)
    filling = np.setdiff1d(np.arange(count), np.fromiter(output.vocabulary.values(), dtype=np.int64))
    return Rows(count, own, others, filling)


def _sourced(entry: TokenEntry, token: str, tokenizers: Mapping[str, ModelTokenizer]) -> tuple[Row, ...]:
    """Returns the row that the recipe names for a token; none for zeros.

    Raises:
        RecipeError: there is no such row.
    """
    source = entry.source
    if source is None or isinstance(source, ZeroToken):
        return ()
    if isinstance(source, str):
        source = ModelToken(kind="model_token", model=source, token=token)
    model, row = source.model, source.token_id
    if model not in tokenizers:
        raise RecipeError([f"{model} is not one of the models that are merged; take one of {', '.join(tokenizers)}"])
    if row is None:
        row = tokenizers[model].vocabulary.get(source.token or "")
        if row is None:
            raise RecipeError([f'{model} has no token "{source.token}"; name a model that has it'])
    elif row >= (tokenizers[model].rows or 0):
        raise RecipeError([f"token_id is {row}, but {model} has {tokenizers[model].rows} tokens"])
    return ((model, row),)
