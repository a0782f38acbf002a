"""Makes the tiny models and adapters that recipes/mergekit/ merges: random weights, half a minute, 70 MB.

    python scripts/models/make_tiny_models.py [OUT_DIR]

OUT_DIR is models/tiny by default. The same bytes come out every time. Existing models are kept. Needs evomerge's
own Python environment; nothing is downloaded.

A family is a base and models that differ from it as fine-tunes do: by normal noise on every weight, norms and biases
included, or on some of them. "wide" has tensors of 256 x 256, so that the share of elements that a random method keeps
means something; "huge" an embedding of more than a million elements, from where arcee_fusion samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.logging import disable_progress_bar

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = len(SPECIAL_TOKENS) + len(BYTES)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level tokenizer.

    Attributes:
        reverse: number the bytes from the last to the first.
        merges: pairs that make a token of their own.
        added: tokens added behind the vocabulary.
        template: a chat template.
    """

    reverse: bool = False
    merges: tuple[tuple[str, str], ...] = ()
    added: tuple[str, ...] = ()
    template: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the tokenizer."""
        tokens = [*SPECIAL_TOKENS, *(reversed(BYTES) if self.reverse else BYTES), *("".join(m) for m in self.merges)]
        model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(self.merges))
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        pad, bos, eos = SPECIAL_TOKENS
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
        fast.add_tokens([AddedToken(token, normalized=False) for token in self.added])
        if self.template:
            fast.chat_template = self.template
        return fast


@dataclass(frozen=True)
class Model:
    """One tiny model.

    Attributes:
        kind: a model type of transformers.
        base: the model that it differs from; None for one with weights of its own.
        scale: the standard deviation of the difference.
        share: the share of elements that differ.
        only: differ in tensors with this in their name alone.
        like: the model whose random numbers to use, its own by default.
        dtype: what the weights are stored in.
        shard: the most bytes of a weights file; None for one file.
        words: its tokenizer; None for none.
        config: further fields of its config.
    """

    kind: str
    base: str | None = None
    scale: float = 0.02
    share: float = 1.0
    only: str = ""
    like: str | None = None
    dtype: torch.dtype = torch.float32
    shard: int | None = None
    words: Vocabulary | None = field(default_factory=Vocabulary)
    config: dict[str, Any] = field(default_factory=dict)


CLASSES = {"bert": AutoModelForMaskedLM, "gemma3": AutoModelForImageTextToText}
"""The classes that load models other than plain language models."""

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
HUGE = {"vocab_size": 4200, "hidden_size": 256, "intermediate_size": 32, "num_hidden_layers": 1}
BF16, FP16 = torch.bfloat16, torch.float16

MODELS = {
    "llama": Model("llama", words=Vocabulary(template=TEMPLATE)),
    "llama-a": Model("llama", "llama", shard=200_000),
    "llama-b": Model("llama", "llama", scale=0.03),
    "llama-chat": Model("llama", "llama", words=Vocabulary(template="{{ messages[0]['content'] }}")),
    "llama-chat-b": Model("llama", "llama", words=Vocabulary(template="{{ messages[0]['content'] }}")),
    "llama-c": Model("llama", "llama", scale=0.01),
    "llama-near": Model("llama", "llama", scale=0.0003),
    "llama-tiny-step": Model("llama", "llama", scale=0.0002),
    "llama-part-a": Model("llama", "llama", share=0.3),
    "llama-part-b": Model("llama", "llama", share=0.5),
    "llama-part-c": Model("llama", "llama", share=0.1, scale=0.05),
    "llama-mlp": Model("llama", "llama", only="mlp"),
    "llama-attention": Model("llama", "llama", only="self_attn"),
    "llama-mirror": Model("llama", "llama", scale=-0.02, like="llama-a"),
    "llama-deep": Model("llama", config={"num_hidden_layers": 6}),
    "llama-biases": Model("llama", config={"attention_bias": True}),
    "llama-biases-a": Model("llama", "llama-biases", config={"attention_bias": True}),
    "bf16": Model("llama", dtype=BF16),
    "bf16-a": Model("llama", "bf16", dtype=BF16),
    "bf16-b": Model("llama", "bf16", dtype=BF16, scale=0.03),
    "fp16": Model("llama", dtype=FP16),
    "fp16-a": Model("llama", "fp16", dtype=FP16),
    "fp16-b": Model("llama", "fp16", dtype=FP16, scale=0.03),
    "wide": Model("llama", config=WIDE),
    "wide-a": Model("llama", "wide", config=WIDE),
    "wide-b": Model("llama", "wide", config=WIDE, scale=0.03),
    "wide-c": Model("llama", "wide", config=WIDE, scale=0.01),
    "huge": Model("llama", config=HUGE, words=None),
    "huge-a": Model("llama", "huge", config=HUGE, words=None),
    "tied": Model("llama", config={"tie_word_embeddings": True}),
    "tied-a": Model("llama", "tied", config={"tie_word_embeddings": True}),
    "tied-b": Model("llama", "tied", config={"tie_word_embeddings": True}),
    "untied-a": Model("llama", "tied", config={"tie_word_embeddings": False}),
    "words": Model("llama", config={"vocab_size": VOCABULARY + 1}, words=Vocabulary(added=("<base>",))),
    "words-a": Model(
        "llama",
        config={"vocab_size": VOCABULARY + 2},
        words=Vocabulary(reverse=True, added=("<both>", "<only-a>"), template=TEMPLATE),
    ),
    "words-b": Model(
        "llama",
        config={"vocab_size": VOCABULARY + 3},
        words=Vocabulary(merges=(("t", "h"), ("i", "n")), added=("<both>",)),
    ),
    "words-padded": Model("llama", config={"vocab_size": 272}, words=Vocabulary(added=("<base>",))),
    "words-tied": Model(
        "llama",
        config={"vocab_size": VOCABULARY + 2, "tie_word_embeddings": True},
        words=Vocabulary(reverse=True, added=("<both>", "<only-a>")),
    ),
    "words-tied-b": Model(
        "llama",
        config={"vocab_size": VOCABULARY + 1, "tie_word_embeddings": True},
        words=Vocabulary(added=("<base>",)),
    ),
    "gpt2-words": Model("gpt2", config={"vocab_size": VOCABULARY + 1}, words=Vocabulary(added=("<base>",))),
    "gpt2-words-a": Model(
        "gpt2", config={"vocab_size": VOCABULARY + 1}, words=Vocabulary(reverse=True, added=("<a>",))
    ),
    **{
        f"{kind}{suffix}": Model(kind, base and kind, config=config)
        for kind, config in {
            "mistral": {},
            "qwen2": {},
            "qwen3": {},
            "gemma2": {},
            "gpt2": {},
            "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 1},
            "phi": {},
            "phi3": {},
            "mamba": {},
            "bert": {},
            "gemma3": {},
        }.items()
        for suffix, base in (("", False), ("-a", True), ("-b", True))
    },
}

ADAPTERS: dict[str, dict[str, Any]] = {
    "adapter-a": {"base": "llama", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "adapter-b": {
        "base": "llama",
        "r": 8,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"],
        "rank_pattern": {"o_proj": 2},
        "alpha_pattern": {"down_proj": 32},
    },
    "adapter-dora": {
        "base": "llama",
        "r": 3,
        "lora_alpha": 6,
        "use_dora": True,
        "target_modules": ["k_proj", "down_proj"],
        "modules_to_save": ["lm_head"],
    },
    "adapter-embedding": {"base": "llama", "r": 4, "lora_alpha": 2, "target_modules": ["embed_tokens", "q_proj"]},
    "adapter-gpt2": {"base": "gpt2", "r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": ["c_attn"]},
}


def config_of(model: Model) -> Any:
    """Returns the config of a tiny model."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if model.kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    elif model.kind == "mamba":
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}
    else:
        hidden = 64 if model.kind == "llama" else 32
        sizes = {
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 4 if model.kind == "llama" else 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "max_position_embeddings": 64,
        }
        if model.kind in ("phi", "bert"):
            del sizes["head_dim"]
    if model.kind == "gemma3":
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        vision |= {"image_size": 28, "patch_size": 14}
        return CONFIG_MAPPING["gemma3"](text_config={**common, **sizes}, vision_config=vision, mm_tokens_per_image=4)
    head_dim = {"head_dim": model.config["hidden_size"] // 4} if "hidden_size" in model.config else {}
    return CONFIG_MAPPING[model.kind](**{**common, **sizes, **head_dim, **model.config})


def write_model(folder: Path, name: str) -> None:
    """Writes the tiny model `name`; its base lies beside it."""
    model = MODELS[name]
    generator = torch.Generator().manual_seed(zlib.crc32((model.like or name).encode()))
    config = config_of(model)
    config.architectures = None
    loader = CLASSES.get(model.kind, AutoModelForCausalLM)
    with torch.random.fork_rng(devices=[]):
        fresh = loader.from_config(config, dtype=torch.float32)
    before = {}
    if model.base:
        parent = loader.from_pretrained(folder.parent / model.base, dtype=torch.float32)
        before = dict(parent.named_parameters())
    with torch.no_grad():
        for key, parameter in fresh.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if model.base:
                chosen = torch.rand(parameter.shape, generator=generator) < model.share * (model.only in key)
                start = before[key] if key in before else before["model.embed_tokens.weight"]
                parameter.copy_(start + model.scale * noise * chosen)
            else:
                centre = 1.0 if parameter.ndim == 1 and key.endswith("weight") and model.kind != "gemma2" else 0.0
                parameter.copy_(centre + 0.05 * noise)
    size = {} if model.shard is None else {"max_shard_size": model.shard}
    fresh.to(model.dtype).save_pretrained(folder, **size)
    if model.words:
        model.words.tokenizer().save_pretrained(folder)


def write_adapter(folder: Path, name: str) -> None:
    """Writes the LoRA adapter `name`."""
    settings = dict(ADAPTERS[name])
    base = settings.pop("base")
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors: dict[str, torch.Tensor] = {}
    for key, module in AutoModelForCausalLM.from_pretrained(folder.parent / base).named_modules():
        kind = key.rpartition(".")[2]
        if kind in settings.get("modules_to_save", ()):
            tensors[f"base_model.model.{key}.weight"] = module.weight + 0.1
        if kind not in settings["target_modules"]:
            continue
        rank = settings.get("rank_pattern", {}).get(kind, settings["r"])
        inputs, outputs = module.weight.shape if settings.get("fan_in_fan_out") else module.weight.shape[::-1]
        parts = {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)}
        if kind == "embed_tokens":
            parts = {"lora_embedding_A": (rank, outputs), "lora_embedding_B": (inputs, rank)}
        for part, shape in parts.items():
            tensors[f"base_model.model.{key}.{part}"] = 0.1 * torch.randn(shape, generator=generator)
        if settings.get("use_dora"):
            lengths = module.weight.norm(dim=1) * (1 + 0.1 * torch.randn(outputs, generator=generator))
            tensors[f"base_model.model.{key}.lora_magnitude_vector"] = lengths
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.detach() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}, indent=1) + "\n")


def main() -> None:
    """Makes what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, nargs="?", default=Path("models/tiny"))
    folder = parser.parse_args().out_dir
    disable_progress_bar()
    for name in [*MODELS, *ADAPTERS]:
        if (folder / name).exists():
            continue
        # Under another name until complete: a killed run leaves nothing that looks finished.
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        (write_model if name in MODELS else write_adapter)(part, name)
        part.rename(folder / name)
    print(f"{folder}: {len(MODELS)} models, {len(ADAPTERS)} adapters")


if __name__ == "__main__":
    main()
