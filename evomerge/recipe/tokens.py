"""The `tokenizer` section: which vocabulary the result has, and where its tokens' embeddings come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from evomerge.document import Strict
from evomerge.recipe.sources import ModelName, TokensName


class ModelToken(Strict):
    """The embedding of one token of a model: of `token`, or of the one with the number `token_id`."""

    kind: Literal["model_token"]
    model: ModelName
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_of(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            found = "neither" if self.token is None else "both"
            raise ValueError(f'exactly one of "token" and "token_id" says which token, found {found}')
        return self


class ZeroToken(Strict):
    """An embedding of zeros."""

    kind: Literal["zero"]


def _kind(raw: Any) -> str:
    kind = raw.get("kind") if isinstance(raw, dict) else getattr(raw, "kind", None)
    if isinstance(raw, ModelToken | ZeroToken) or kind is not None:
        return "zero" if kind == "zero" else "model_token"
    return "model"


TokenSource = Annotated[
    Annotated[ModelName, Tag("model")] | Annotated[ModelToken, Tag("model_token")] | Annotated[ZeroToken, Tag("zero")],
    Discriminator(_kind),
]


class TokenEntry(Strict):
    """Where one token's embedding comes from.

    Attributes:
        source: a model, whose embedding of this token it is; a token of a model; or zeros. Without one, the rule
            for tokens that are not listed.
        force: whether it is every model's, and not only of those that lack the token.
    """

    source: TokenSource | None = None
    force: bool = False

    @model_validator(mode="after")
    def _sourced(self) -> TokenEntry:
        if self.force and self.source is None:
            raise ValueError('force needs a "source" that is forced on all models')
        return self


def _tokens(raw: Any) -> Any:
    return {} if raw is None else raw


class TokenizerSection(Strict):
    """Which vocabulary the result has.

    Attributes:
        source: ``base``, ``union``, or a model.
        tokens: where the embeddings of single tokens come from; one that is in no vocabulary is added.
        pad_to_multiple_of: the number of rows of the embeddings is rounded up to a multiple of it.
    """

    source: TokensName = "union"
    tokens: Annotated[dict[str, TokenEntry], BeforeValidator(_tokens)] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)
