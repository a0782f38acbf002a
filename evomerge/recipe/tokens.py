"""The `tokenizer` section: which vocabulary the result has, and where its tokens' embeddings come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from evomerge.document import Strict
from evomerge.recipe.sources import ModelName, TokensName, exactly_one, none_is_empty


class ModelToken(Strict):
    """The embedding of one token of a model.

    Attributes:
        kind: ``model_token``.
        model: the model.
        token: the token's text. One of `token` and `token_id` is given.
        token_id: its number in the model's vocabulary.
    """

    kind: Literal["model_token"]
    model: ModelName
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_of(self) -> ModelToken:
        exactly_one(self, "token", "token_id")
        return self


class ZeroToken(Strict):
    """An embedding of zeros.

    Attributes:
        kind: ``zero``.
    """

    kind: Literal["zero"]


def _kind(raw: Any) -> str:
    kind = raw.get("kind") if isinstance(raw, dict) else getattr(raw, "kind", None)
    if kind is None:
        return "model"
    return "zero" if kind == "zero" else "model_token"


TokenSource = Annotated[
    Annotated[ModelName, Tag("model")] | Annotated[ModelToken, Tag("model_token")] | Annotated[ZeroToken, Tag("zero")],
    Discriminator(_kind),
]


class TokenEntry(Strict):
    """Where one token's embedding comes from.

    Attributes:
        source: a model, which gives its embedding of this token; a token of a model; or zeros. By default, as for
            tokens that are not listed.
        force: whether all models take it, not only those that lack the token.
    """

    source: TokenSource | None = None
    force: bool = False

    @model_validator(mode="after")
    def _sourced(self) -> TokenEntry:
        if self.force and self.source is None:
            raise ValueError('force needs a "source", which all models then use')
        return self


class TokenizerSection(Strict):
    """Which vocabulary the result has.

    Attributes:
        source: ``base``, ``union``, or a model.
        tokens: where the embeddings of single tokens come from; a token that no vocabulary has is added.
        pad_to_multiple_of: the embeddings' number of rows is rounded up to a multiple of it.
    """

    source: TokensName = "union"
    tokens: Annotated[
        dict[str, TokenEntry], BeforeValidator(none_is_empty, json_schema_input_type=dict[str, TokenEntry] | None)
    ] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
