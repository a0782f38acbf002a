"""Makers of tiny checkpoints, complete in every file, for all tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Language models, each different from the others in what a merge meets.
KINDS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "phi",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "mamba",
)
IMAGE_KINDS = ("llava", "qwen2_vl", "gemma3")
IMAGE_TOKEN = 3  # A byte's token that stands for a place of the image, as no test's text has it.

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
# A token for each byte and the special ones.
VOCABULARY = 256 + len(SPECIAL_TOKENS)


def tiny_config(kind: str = "llama", layers: int = 4, *, hidden: int = 16, **changes: Any) -> PreTrainedConfig:
    """The config of a model of some ten thousand parameters that any text can be given to.

    `changes` are further fields of the config, such as `tie_word_embeddings` or `vocab_size`.
    """
    if kind in IMAGE_KINDS:
        return _image_config(kind, layers, hidden, **changes)
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if kind == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": layers, "n_head": 2, "n_positions": 512}
    elif kind == "mamba":
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "state_size": 4}
    else:
        sizes = {
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": hidden // 2,
            "max_position_embeddings": 512,
        }
    sizes |= _DIFFERENCES.get(kind, {})
    return CONFIG_MAPPING[kind](**{**common, **sizes, **changes})


_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
# What a config of such a model needs beside the sizes.
_DIFFERENCES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4},
    "deepseek_v3": {
        **_EXPERTS,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "num_key_value_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}


def _image_config(kind: str, layers: int, hidden: int, **changes: Any) -> PreTrainedConfig:
    """The config of a model of text and images of 8 by 8 pixels; `changes` are of its text config."""
    text_kind = {"llava": "llama", "gemma3": "gemma3_text"}.get(kind, kind)
    text = {**tiny_config("llama" if kind == "qwen2_vl" else text_kind, layers, hidden=hidden, **changes).to_dict()}
    whole = {"image_token_id": IMAGE_TOKEN, "tie_word_embeddings": bool(text["tie_word_embeddings"])}
    vision: dict[str, Any] = {
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    if kind == "llava":
        vision |= {"model_type": "clip_vision_model", "projection_dim": 12}
    elif kind == "gemma3":
        vision["model_type"] = "siglip_vision_model"
        whole |= {
            "mm_tokens_per_image": 4,
            "boi_token_index": 4,
            "eoi_token_index": 5,
            "image_token_index": IMAGE_TOKEN,
        }
    else:
        sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
        vision = {**sizes, "hidden_size": hidden, "spatial_merge_size": 2, "temporal_patch_size": 1}
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        text |= {"model_type": "qwen2_vl_text", "rope_parameters": rope}
        text.pop("head_dim", None)
        whole |= {"vision_start_token_id": 4, "vision_end_token_id": 5, "video_token_id": 6}
    return CONFIG_MAPPING[kind](text_config=text, vision_config=vision, **whole)


def tiny_tokenizer(*, extra_tokens: Sequence[str] = (), chat_template: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text encodes, a token a byte; special tokens 0 to 2, then the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    fast.add_tokens(list(extra_tokens))
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def auto_class(kind: str) -> Any:
    """The class that makes and loads a model of this kind."""
    if kind == "bert":
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if kind in IMAGE_KINDS else AutoModelForCausalLM


def tiny_checkpoint(
    folder: Path,
    seed: int = 0,
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
    scale: float = 0.02,
    shard_bytes: int | None = None,
    tokenizer: bool = True,
    chat_template: bool = False,
    extra_tokens: Sequence[str] = (),
    **config: Any,
) -> Path:
    """Writes a complete checkpoint with transformers; returns its folder.

    With `base`, a fine-tune of it: its config, and its weights plus normal noise of deviation `scale`.
    Without, seeded random weights, every one of them: norms and biases too are no constants. `config` goes
    to `tiny_config`. No global generator is touched.
    """
    generator = torch.Generator().manual_seed(seed)
    if base is not None:
        model = auto_class(json.loads((base / "config.json").read_text())["model_type"]).from_pretrained(
            base, dtype=torch.float32
        )
    else:
        if extra_tokens:
            config.setdefault("vocab_size", VOCABULARY + len(extra_tokens))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = auto_class(kind).from_config(tiny_config(kind, **config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    size = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.to(dtype).save_pretrained(folder, **size)
    if tokenizer:
        tiny_tokenizer(extra_tokens=extra_tokens, chat_template=chat_template).save_pretrained(folder)
    return folder


SIGHT = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
"""The tokens of images that `seeing_checkpoint` adds."""

_PLACES = {
    "llava": "<|image_pad|>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<|vision_start|>",
}


def seeing_checkpoint(folder: Path, seed: int = 0, kind: str = "llava", **changes: Any) -> Path:
    """Writes a tiny model of text and images with its image processor and a chat template; returns its folder."""
    from transformers import (
        CLIPImageProcessorPil,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        LlavaProcessor,
        Qwen2VLImageProcessorPil,
    )

    first = VOCABULARY
    tokenizer = tiny_tokenizer(extra_tokens=SIGHT)
    place = _PLACES[kind]
    template = (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{place}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tiny_checkpoint(folder, seed, kind, tokenizer=False, scale=0.2, vocab_size=VOCABULARY + len(SIGHT), **changes)
    config = json.loads((folder / "config.json").read_text())
    ids = {"image_token_id": first, "vision_start_token_id": first + 1, "vision_end_token_id": first + 2}
    ids |= {"image_token_index": first, "boi_token_index": first + 1, "eoi_token_index": first + 2}
    config |= {key: value for key, value in ids.items() if key in config} | {"video_token_id": first + 3}
    (folder / "config.json").write_text(json.dumps(config))
    size = {"size": {"height": 8, "width": 8}, "crop_size": {"height": 8, "width": 8}}
    if kind == "llava":
        part = CLIPImageProcessorPil(**size)
        sizes = {"patch_size": 4, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
        processor = LlavaProcessor(part, tokenizer, image_token=SIGHT[0], **sizes)
    elif kind == "gemma3":
        names = {"image_token": SIGHT[0], "boi_token": SIGHT[1], "eoi_token": SIGHT[2]}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens=names,
        )
        processor = Gemma3Processor(Gemma3ImageProcessorPil(size=size["size"]), tokenizer, image_seq_length=4)
    else:
        part = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=1, min_pixels=64, max_pixels=256
        )
        processor = part  # Its processor's part for videos needs torchvision.
    if kind != "qwen2_vl":
        processor.chat_template = template
    tokenizer.chat_template = template
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
