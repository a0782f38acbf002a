"""`AdaptedCheckpoint`: a model with a LoRA adapter merged into it, tensor by tensor, as they are read.

Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685; rank-stabilised scaling, https://arxiv.org/abs/2312.03732;
DoRA, https://arxiv.org/abs/2402.09353. The files are those that PEFT saves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoint.adapter_config import ADAPTER_CONFIG, AdapterConfig
from evomerge.checkpoint.header import TensorInfo, reading
from evomerge.checkpoint.reading import Checkpoint
from evomerge.checkpoint.view import CheckpointView
from evomerge.checkpoint.weight_file import WeightFile
from evomerge.errors import CheckpointError

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Elements that are computed together: a few float64 temporaries of this size are small beside a tensor.
_BLOCK = 1 << 18
_MOST_FAULTS = 5

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.weight)?"
)
_WHOLE = re.compile(r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.default)?)?\.(?P<part>weight|bias)")
_OTHER_MODALITY = re.compile(r"vis|image|audio|speech")
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|head)\.weight")


@dataclass(frozen=True)
class _Update:
    """What an adapter does to one tensor of the model.

    Attributes:
        whole: the adapter's tensor that replaces it, or None.
        factors: the names of A, shape (rank, in), and of B, (out, rank); None where there are none.
        scale: the factor of B A.
        transposed: whether the model's tensor is (in, out).
        embedding: whether A is (rank, rows) and B is (columns, rank).
        magnitude: DoRA's length of each row of (out, in), or None.
    """

    whole: str | None = None
    factors: tuple[str, str] | None = None
    scale: float = 1.0
    transposed: bool = False
    embedding: bool = False
    magnitude: str | None = None


class AdaptedCheckpoint(CheckpointView):
    """A model with a LoRA adapter merged into it.

    The sum is computed in float64, and rounded to float32 and the dtype of the model's own tensor. Opening reads the
    headers alone.

    Args:
        inner: the model.
        reference: how messages call it.
        folder: the adapter's: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        CheckpointError: the adapter is of a kind that cannot be merged, or does not fit the model; one line for
            each fault.
    """

    def __init__(self, inner: Checkpoint, reference: str, folder: Path) -> None:
        self._settings = AdapterConfig.read(folder / ADAPTER_CONFIG, reference)
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise CheckpointError(_no_weights(reference, folder))
        self._weights = WeightFile(folder / ADAPTER_WEIGHTS)
        self._updates, tensors, faults = _updates(inner, self._settings, self._weights.tensors)
        if faults:
            more = [f"... and {len(faults) - _MOST_FAULTS} more like these"] if len(faults) > _MOST_FAULTS else []
            raise CheckpointError("\n".join(f"{reference}: {fault}" for fault in faults[:_MOST_FAULTS] + more))
        config = dict(inner.config)
        if any(name not in inner.tensors for name in tensors):
            # The adapter has a head, where the model repeats its embedding.
            config["tie_word_embeddings"] = False
        super().__init__(inner, difference="", reference=reference, config=config, tensors=tensors)

    def made(self, name: str) -> Tensor:
        """See `CheckpointView.made`."""
        update = self._updates.get(name)
        if update is None:
            return self.inner.read(name)
        stored = self.tensors[name].dtype
        own = self.inner.read(name) if update.whole is None else self._weights.read(update.whole)
        if update.factors is None:
            return own.to(stored)
        a, b = (self._weights.read(factor).float() for factor in update.factors)
        if update.embedding:
            a, b = b.T.contiguous(), a.T.contiguous()
        magnitude = None if update.magnitude is None else self._weights.read(update.magnitude).float().reshape(-1)
        weight = own.T if update.transposed else own
        merged = _merged(weight, a, b, update.scale, magnitude)
        return (merged.T.contiguous() if update.transposed else merged).to(stored)

    def fingerprint(self, kept: MutableMapping[str, str] | None = None) -> str:
        """A hex digest that changes with the model's and with any byte of the adapter."""
        digest = hashlib.sha256(f"{self.inner.fingerprint(kept)} {self._settings!r}".encode())
        with reading(self._weights.path), self._weights.path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()

    def paths(self) -> frozenset[Path]:
        """See `Checkpoint.paths`."""
        return self.inner.paths() | {self._weights.path.resolve(), self._weights.path.parent.resolve()}


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None) -> Tensor:
    """Returns ``weight + scale * b @ a``, with rows scaled to the lengths in DoRA's `magnitude`.

    Args:
        weight: shape (out, in), of any float dtype.
        a: shape (rank, in), float32.
        b: shape (out, rank), float32.
        scale: the factor of the product.
        magnitude: shape (out,), float32.

    Returns:
        A float32 tensor of `weight`'s shape.
    """
    out, a = torch.empty(weight.shape, dtype=torch.float32), a.double()
    rows = max(1, _BLOCK // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        here = slice(start, start + rows)
        # In float64: the order in which a product is summed depends on the library; rounding to float32 hides it.
        block = weight[here].double() + scale * (b[here].double() @ a)
        if magnitude is not None:
            # Liu et al. 2024, equation 5
            block *= (magnitude[here] / block.norm(dim=1))[:, None]
        out[here] = block
    return out


def _updates(
    inner: Checkpoint, settings: AdapterConfig, found: Mapping[str, TensorInfo]
) -> tuple[dict[str, _Update], dict[str, TensorInfo], list[str]]:
    """Returns what happens to each tensor, all tensors of the adapted model, and every fault."""
    faults: list[str] = []
    factors: dict[str, dict[str, str]] = {}
    wholes: dict[str, str] = {}
    for name, info in found.items():
        if not info.dtype.is_floating_point:
            faults.append(f"{name} is {info.dtype}; expected floating-point numbers, as PEFT saves them")
        plain = name.removeprefix("base_model.model.")
        if match := _FACTOR.fullmatch(plain):
            factors.setdefault(match["module"].removesuffix(".base_layer"), {})[match["part"]] = name
        elif "lora_" not in plain and (match := _WHOLE.fullmatch(plain)):
            wholes[f"{match['module']}.{match['part']}"] = name
        else:
            faults.append(f"{name} is not part of a plain LoRA; merge it with peft, and name the result")
    updates: dict[str, _Update] = {}
    tensors = dict(inner.tensors)
    for target, name in wholes.items():
        own = _own_name(inner, target)
        if own is None and _HEAD.fullmatch(target):
            own, tensors[target] = target, replace(found[name], name=target)
        if own is None:
            faults.append(f"{name} replaces a tensor that {inner.reference} does not have")
        elif tensors[own].shape != found[name].shape:
            faults.append(
                f"{name} has shape {list(found[name].shape)}, but {own} has {list(tensors[own].shape)} in"
                f" {inner.reference}; resize the model's embeddings and save it, if the adapter comes with more tokens"
            )
        else:
            updates[own] = _Update(whole=name)
    for module, parts in factors.items():
        made = _factored(inner, settings, found, module, parts)
        if isinstance(made, str):
            faults.append(made)
            continue
        own, update = made
        updates[own] = replace(update, whole=wholes.get(f"{module}.weight"))
    if not updates and not faults:
        faults.append("the adapter has no tensors")
    return updates, tensors, faults


def _own_name(inner: Checkpoint, target: str) -> str | None:
    """Returns the model's name for a tensor of the adapter, which has its name in memory; in files, prefixes differ.

    It is the only tensor of the same modality whose name ends the same from the list of layers on.
    """
    if target in inner.tensors:
        return target
    parts = target.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    ending = "." + ".".join(parts[max(0, numbered - 1) :])
    visual = bool(_OTHER_MODALITY.search(target))
    found = [name for name in inner.tensors if f".{name}".endswith(ending)]
    matching = [name for name in found if bool(_OTHER_MODALITY.search(name)) == visual]
    return matching[0] if len(matching) == 1 else None


def _factored(
    inner: Checkpoint, settings: AdapterConfig, found: Mapping[str, TensorInfo], module: str, parts: Mapping[str, str]
) -> tuple[str, _Update] | str:
    """Returns the tensor that a module's factors are for, and the update; or what is wrong with them."""
    embedding = any(part.startswith("lora_embedding") for part in parts)
    first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [part for part in (first, second) if part not in parts]
    if missing:
        return f"{module} has no {missing[0]}, only {', '.join(sorted(parts))}; is the adapter's file complete?"
    own = _own_name(inner, f"{module}.weight")
    if own is None:
        return f"it adapts {module}.weight, but {inner.reference} has no such tensor; is it an adapter of this model?"
    a, b, weight = found[parts[first]].shape, found[parts[second]].shape, inner.tensors[own]
    rank = settings.rank(module)
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        return f"{module}: A has shape {list(a)} and B {list(b)}, but its rank is {rank} in {ADAPTER_CONFIG}"
    # PEFT sets the flag for the whole adapter, and ignores it where a module's class says otherwise.
    straight, turned = (b[0], a[1]), (a[1], b[0])
    transposed = not embedding and weight.shape == turned and (settings.fan_in_fan_out or turned != straight)
    made = turned if embedding or transposed else straight
    if not weight.dtype.is_floating_point or made != weight.shape:
        return (
            f"{module}: the product of its factors has shape {list(made)}, but {own} is {weight.dtype} of shape"
            f" {list(weight.shape)} in {inner.reference}"
        )
    magnitude = parts.get("lora_magnitude_vector")
    if settings.use_dora != (magnitude is not None):
        return f"{module}: use_dora is {settings.use_dora}, but it has {'a' if magnitude else 'no'} magnitude vector"
    if magnitude is not None and (embedding or found[magnitude].numel != b[0]):
        return f"{module}: DoRA of an embedding, or of another size than the tensor, is not supported"
    factors = (parts[first], parts[second])
    return own, _Update(None, factors, settings.scale(module), transposed, embedding, magnitude)


def _no_weights(reference: str, folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return (
            f"{reference}: the adapter's weights are a pickle (adapter_model.bin), which can run any code when"
            f" opened; expected {ADAPTER_WEIGHTS}. Convert it, if you trust it: load it with peft and save it again"
        )
    return f"{reference}: {folder} has no {ADAPTER_WEIGHTS}; expected the folder of an adapter that PEFT saved"
