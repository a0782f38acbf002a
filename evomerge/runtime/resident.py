"""`ResidentRuntime`: one model in memory, filled again for every plan."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.architecture import LanguagePart
from evomerge.checkpoint import read_object
from evomerge.errors import CheckpointError
from evomerge.merge import Plan, WeightStore, chat_template
from evomerge.runtime.images import load_processor
from evomerge.runtime.language_model import TorchLanguageModel
from evomerge.runtime.live import LiveModel
from evomerge.runtime.protocol import LanguageModel

_Shape = tuple[tuple[str, tuple[int, ...]], ...]


class ResidentRuntime:
    """A `Runtime` that merges each plan into the weights of one resident model.

    A plan whose tensors have other names or shapes gets a new model, in the place of the last one.

    Args:
        first: any plan; it gives the tokenizer and the limits.
        store: where weights are read.
        device: see `LiveModel`; with ``meta`` nothing can be loaded, but every fault of the model is found.
        dtype: the dtype in which models run, see `compute_dtype`.

    Raises:
        ArchitectureError: transformers cannot run such a model.
        CheckpointError: the tokenizer or the generation settings cannot be read.
    """

    def __init__(self, first: Plan, store: WeightStore, device: str, dtype: torch.dtype) -> None:
        self._store = store
        self._device = device
        self._dtype = dtype
        self._resident: dict[_Shape, tuple[LiveModel, TorchLanguageModel]] = {}
        self._first = first
        self.tokenizer: Any = None
        model: Any = self._made(first)[0].model
        self.max_length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.vocabulary_size = len(model.get_input_embeddings().weight)

    def processor(self) -> Any:
        """See `Runtime`."""
        return load_processor(self._first, self.tokenizer)

    def load(self, plan: Plan) -> LanguageModel:
        """Returns the plan's model, see `Runtime`."""
        live, model = self._made(plan)
        live.fill(plan, self._store)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return model

    def _made(self, plan: Plan) -> tuple[LiveModel, TorchLanguageModel]:
        shape = tuple((info.name, info.shape) for info in plan.layout.tensors)
        if shape not in self._resident:
            self._resident.clear()  # First, as two models may not fit in memory.
            live = LiveModel(plan, self._device, self._dtype)
            # After the model, which has the better message about a config that both read.
            self.tokenizer = self.tokenizer or load_tokenizer(plan)
            model = TorchLanguageModel(live.model, self.tokenizer, stop_ids(plan, self.tokenizer))
            self._resident[shape] = live, model
        return self._resident[shape]


def load_tokenizer(plan: Plan) -> Any:
    """Returns the plan's tokenizer, with the recipe's chat template if it has one.

    Raises:
        CheckpointError: the folder has no tokenizer that transformers can load.
    """
    from transformers import AutoTokenizer

    donor = plan.layout.donor
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(donor.folder), trust_remote_code=False)
    # The tokenizers library raises plain Exceptions, and a damaged file can lead to any error.
    except Exception as fault:
        settings = donor.folder / "tokenizer_config.json"
        if settings.is_file() and read_object(settings).get("auto_map"):
            raise CheckpointError(
                f"{donor.reference}: its tokenizer needs custom code, which evomerge never runs; if tokenizer.json is"
                f" complete, remove auto_map and tokenizer_class from {settings}"
            ) from None
        raise CheckpointError(
            f"{donor.reference}: its tokenizer cannot be loaded"
            f" ({(str(fault).splitlines() or [type(fault).__name__])[0]});"
            " the folder needs tokenizer.json or the files that its tokenizer's class reads"
        ) from None
    template = chat_template(plan)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def stop_ids(plan: Plan, tokenizer: Any) -> list[int]:
    """Returns all token ids that end a completion, from the generation settings, the config and the tokenizer."""
    text = LanguagePart.of(plan.layout.config, (info.name for info in plan.layout.tensors)).config
    settings = plan.layout.donor.folder / "generation_config.json"
    parts = [plan.layout.config, text, read_object(settings) if settings.is_file() else {}]
    named = [*(part.get("eos_token_id") for part in parts), tokenizer.eos_token_id]
    found = [one for value in named if value is not None for one in (value if isinstance(value, list) else [value])]
    wrong = [one for one in found if type(one) is not int]
    if wrong:
        raise CheckpointError(
            f"{plan.layout.donor.reference}: eos_token_id is {wrong[0]!r} in its config.json or generation_config.json;"
            " expected a token id, or a list of them"
        )
    return found
