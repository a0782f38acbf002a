"""`aligned`: the models of a recipe, each seen with the output's vocabulary."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.architecture import Architecture, LanguagePart
from evomerge.checkpoint import TEMPLATES, Checkpoint, CheckpointView, TensorInfo, files_beside, tokenizer_folder
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe, TokenizerSection
from evomerge.tokenizer.rows import Row, Rows, rows_of
from evomerge.tokenizer.tokenizer import ModelTokenizer, has_tokenizer, plain_token

_TOKENS = re.compile(r"emb|wte|tok|head|output|decoder|predictions|logits", re.IGNORECASE)
_NO_TOKENS = re.compile(r"pos|wpe|type|norm|vis|image|audio", re.IGNORECASE)
_SPECIAL = re.compile(r"(.+_token)_(id|ids|index)")


class _Aligned(CheckpointView):
    """A model with the rows of its embeddings and head in the order of the output's vocabulary.

    Rows that come from other models are copied, their means computed in float32. A tensor has the widest dtype of
    the models that give it rows.
    """

    def __init__(self, model: str, opened: Mapping[str, Checkpoint], rows: Rows, files: _Files) -> None:
        inner = opened[model]
        self._model = model
        self._opened = opened
        self._rows = rows
        self._own = torch.from_numpy(rows.own[model])
        self._needed = {number: sources for number, sources in rows.others.items() if rows.own[model][number] < 0}
        self._given = _tokens_of(inner)
        givers = sorted({model, *(giver for sources in self._needed.values() for giver, _ in sources)})
        tensors = dict(inner.tensors)
        for name in self._given:
            info = inner.tensors[name]
            dtype = info.dtype
            for giver in givers:
                dtype = torch.promote_types(dtype, opened[giver].tensors[_like(opened[giver], name)].dtype)
            tensors[name] = TensorInfo(name, dtype, (rows.count, *info.shape[1:]))
        self._source = files.source
        self._folder = files.folder(inner, rows.count)
        # By their places: a model's name may be its path, which says nothing of it.
        places = [(n, [(list(opened).index(giver), row) for giver, row in need]) for n, need in self._needed.items()]
        digest = hashlib.sha256(rows.own[model].tobytes() + repr((rows.count, places)).encode())
        super().__init__(
            inner,
            difference=digest.hexdigest(),
            folder=Path(self._folder.name),
            config=files.config(inner.config, inner, rows.count),
            tensors=tensors,
        )

    def fingerprint(self, kept: MutableMapping[str, str] | None = None) -> str:
        """A hex digest that changes with every model that gives it rows, and with the vocabulary."""
        givers = sorted({giver for sources in self._needed.values() for giver, _ in sources})
        text = " ".join([super().fingerprint(kept), *(self._opened[giver].fingerprint(kept) for giver in givers)])
        return hashlib.sha256(text.encode()).hexdigest()

    def paths(self) -> frozenset[Path]:
        """See `Checkpoint.paths`."""
        return super().paths() | {self._source.resolve()}

    def made(self, name: str) -> Tensor:
        """See `CheckpointView.made`."""
        own = self.inner.read(name)
        if name not in self._given:
            return own
        info = self.tensors[name]
        if own.dtype == info.dtype and torch.equal(self._own, torch.arange(self._rows.count)):
            return own[: self._rows.count]
        made = torch.zeros(info.shape, dtype=info.dtype)
        kept = self._own >= 0
        made[kept] = own[self._own[kept]].to(info.dtype)
        sources = {self._model: own}
        for number, rows in self._needed.items():
            if rows:
                made[number] = self._mean(name, rows, sources).to(info.dtype)
        if len(self._rows.filling):
            made[torch.from_numpy(self._rows.filling)] = _mean_row(made, self._rows).to(info.dtype)
        return made

    def _mean(self, name: str, rows: tuple[Row, ...], sources: dict[str, Tensor]) -> Tensor:
        """Returns the mean of some rows, in float32; a single one as it is."""
        for model, _ in rows:
            if model not in sources:
                other = self._opened[model]
                sources[model] = other.read(_like(other, name))
        total = sources[rows[0][0]][rows[0][1]].float()
        for model, row in rows[1:]:
            total = total + sources[model][row].float()
        return total / len(rows)


class _Files:
    """Makes the folder of each aligned model: its own small files, with the output's tokenizer.

    Args:
        output: the result's tokenizer.
        tokenizers: each model's own, by the folder that it lies in.
    """

    def __init__(self, output: ModelTokenizer, tokenizers: Mapping[Path, ModelTokenizer]) -> None:
        self._output = output
        self._tokenizers = tokenizers

    @property
    def source(self) -> Path:
        """The folder that the tokenizer comes from."""
        return self._output.folder

    def folder(self, inner: Checkpoint, count: int) -> TemporaryDirectory[str]:
        """Returns a folder that goes with the object: config, generation config, processors, tokenizer."""
        made = TemporaryDirectory(prefix="evomerge-tokenizer-")
        target = Path(made.name)
        own = [path for path in inner.side_files() if not _is_tokenizers(path)]
        theirs = [path for path in files_beside(self._output.folder) if _is_tokenizers(path)]
        for path in [*own, *(path for path in theirs if path.name not in self._output.dropped())]:
            place = target / (f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
        for name, text in self._output.texts().items():
            (target / name).write_text(text, encoding="utf-8")
        objects = {"config.json": self.config(inner.config, inner, count)}
        generation = inner.folder / "generation_config.json"
        if generation.is_file():
            said = json.loads(generation.read_text(encoding="utf-8"))
            objects["generation_config.json"] = self._renumbered(said, inner)
        for name, content in objects.items():
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return made

    def config(self, config: Mapping[str, Any], inner: Checkpoint, count: int) -> dict[str, Any]:
        """Returns a model's config with the output's number of rows and the numbers of its special tokens."""
        old = _rows(inner)

        def followed(part: Mapping[str, Any]) -> dict[str, Any]:
            said = {key: followed(value) if isinstance(value, dict) else value for key, value in part.items()}
            if said.get("vocab_size") == old:
                said["vocab_size"] = count
            return self._renumbered(said, inner)

        return followed(copy.deepcopy(dict(config)))

    def _renumbered(self, said: dict[str, Any], inner: Checkpoint) -> dict[str, Any]:
        """Returns settings with each special token's number in the output's vocabulary."""
        own = {number: token for token, number in self._tokenizers[inner.folder].vocabulary.items()}

        def number(value: Any) -> int | None:
            return self._output.vocabulary.get(own.get(value, "")) if isinstance(value, int) else None

        result = dict(said)
        for key, value in said.items():
            match = _SPECIAL.fullmatch(key)
            if match is None or value is None or isinstance(value, bool) or not isinstance(value, int | list):
                continue
            if isinstance(value, list):
                kept = [found for found in map(number, value) if found is not None]
                result[key] = kept or [found for found in (self._output.special(match[1]),) if found is not None]
            elif value in own:
                found = number(value)
                result[key] = self._output.special(match[1]) if found is None else found
        return result


def aligned(recipe: Recipe, opened: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Returns the models that a recipe merges, each with the vocabulary that the recipe asks for.

    Embeddings and heads are re-indexed, configs follow, and each has the output's tokenizer beside it. No weights
    are read before a tensor is.

    Args:
        recipe: a recipe with a tokenizer section, or `tokenizer_source`.
        opened: every model that it merges.

    Raises:
        RecipeError: with a line for every fault: a tokenizer that cannot be had, a token without its source.
    """
    section = recipe.vocabulary() or TokenizerSection()
    place = ("tokenizer_source",) if recipe.tokenizer_source is not None else ("tokenizer", "source")
    faults: list[str] = []
    tokenizers: dict[str, ModelTokenizer] = {}
    sizes: dict[str, int] = {}
    base = recipe.base_model or recipe.references()[0]
    for model, checkpoint in opened.items():
        # One that is stored without a tokenizer has the base's, as in mergekit.
        folder = checkpoint.folder if has_tokenizer(checkpoint.folder) else opened[base].folder
        try:
            sizes[model] = _rows(checkpoint)
            tokenizers[model] = ModelTokenizer.read(folder, model, sizes[model])
        except CheckpointError as fault:
            faults += recipe.model_faults(model, fault)
    if faults:
        raise RecipeError(faults)
    try:
        output = _output(recipe, section, tokenizers)
    except CheckpointError as fault:
        raise RecipeError([recipe.fault(place, line) for line in str(fault).splitlines()]) from None
    output = output.with_tokens(plain_token(token) for token in section.tokens if token not in output.vocabulary)
    rows, faults = rows_of(recipe, section, output, tokenizers, sizes)
    if faults:
        raise RecipeError(faults)
    files = _Files(output, {checkpoint.folder: tokenizers[model] for model, checkpoint in opened.items()})
    return {model: _Aligned(model, opened, rows, files) for model in opened}


def _output(recipe: Recipe, section: TokenizerSection, tokenizers: Mapping[str, ModelTokenizer]) -> ModelTokenizer:
    """Returns the result's tokenizer, before tokens that the recipe adds."""
    first = recipe.base_model or recipe.references()[0]
    if section.source == "base":
        return tokenizers[first]
    if section.source == "union":
        return _union([tokenizers[first], *(known for model, known in tokenizers.items() if model != first)])
    if section.source in tokenizers:
        return tokenizers[section.source]
    # A model that is not merged gives its tokenizer alone.
    return ModelTokenizer.read(tokenizer_folder(section.source, recipe.folders), section.source, None)


def _union(tokenizers: list[ModelTokenizer]) -> ModelTokenizer:
    """Returns the first tokenizer with the tokens of the others: plain ones in their order, then added ones."""
    first, *others = tokenizers
    entries: dict[str, dict[str, Any]] = {}
    for known in tokenizers:
        for entry in known.added:
            entries.setdefault(entry["content"], entry)
    plain: dict[str, None] = {}
    for known in others:
        for token in sorted(known.vocabulary, key=known.vocabulary.__getitem__):
            if token not in first.vocabulary and token not in entries:
                plain[token] = None
    return first.with_tokens([*map(plain_token, plain), *entries.values()])


def _rows(checkpoint: Checkpoint) -> int:
    """Returns the number of rows of a model's embeddings."""
    size = LanguagePart.of(checkpoint.config, checkpoint.tensors).config.get("vocab_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{checkpoint.reference}: its config has no vocab_size; no vocabulary can be merged")
    if not _tokens_of(checkpoint, size):
        raise CheckpointError(
            f"{checkpoint.reference}: its config says vocab_size {size:,}, but no embedding has so many rows; is the"
            " config its own?"
        )
    return size


def _tokens_of(checkpoint: Checkpoint, rows: int | None = None) -> tuple[str, ...]:
    """Returns the names of the tensors with a row for each token: embeddings, the head, its bias."""
    rows = _rows(checkpoint) if rows is None else rows
    architecture = Architecture.of(checkpoint.config, checkpoint.tensors)
    return tuple(
        name
        for name, info in checkpoint.tensors.items()
        if info.shape[:1] == (rows,)
        and architecture.layer_of(name) is None
        and _TOKENS.search(name)
        and not _NO_TOKENS.search(name)
    )


def _like(checkpoint: Checkpoint, name: str) -> str:
    """Returns the model's own tensor of that name; its embedding, where it has no head of its own."""
    if name in checkpoint.tensors:
        return name
    return next(own for own in _tokens_of(checkpoint) if len(checkpoint.tensors[own].shape) == 2)


def _mean_row(made: Tensor, rows: Rows) -> Tensor:
    """Returns the mean of the tokens' rows; NumPy adds row by row, on one thread."""
    total = np.zeros(made.shape[1:], dtype=np.float64)
    filling = set(rows.filling.tolist())
    tokens = np.array([row for row in range(rows.count) if row not in filling])
    for start in range(0, len(tokens), 1024):
        part = made[torch.from_numpy(tokens[start : start + 1024])].double().numpy()
        total += np.add.reduce(part, axis=0)
    return torch.from_numpy(np.asarray(total / max(1, len(tokens))))


def _is_tokenizers(path: Path) -> bool:
    """Whether a small file belongs to the tokenizer, and not to generation or to processors."""
    return path.name != "generation_config.json" and not path.name.endswith("processor_config.json")
