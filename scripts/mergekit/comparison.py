"""How the folders of two merged models differ, and which differences a recipe announces.

Part of scripts/compare_mergekit.py; independent of how the folders were made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoint import Checkpoint

TOLERANCE = 2e-6
"""The largest difference of float32 weights of order 1: some ten roundings."""

_ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""One step of a dtype, relative to the number."""

_IGNORED = ("transformers_version", "_name_or_path", "torch_dtype", "architectures")
_CONVERSATION = [
    {"role": role, "content": content}
    for role, content in (("system", "Be brief."), ("user", "How are you?"), ("assistant", "Well."))
]
_BY_TOKEN = re.compile(r"(embed_tokens|embeddings|wte|lm_head)\.(weight|bias)$")
_SAMPLE = "The 3 things: naïve <both> <base>\n</s>"

KINDS = ("mergekit-fails", "evomerge-refuses", "tensors", "missing", "surplus", "config", "tokenizer", "layout")
_EXPECTED = re.compile(r'# Expected: (?P<kind>[a-z-]+)(?: (?P<what>\S+))?, see "(?P<section>.+)"')


@dataclass(frozen=True)
class Expectation:
    """A difference that is known.

    Attributes:
        kind: one of `KINDS`.
        what: a pattern of tensors' names, or a key of the config; ``*`` for all.
        section: the heading in docs/mergekit-differences.md that explains it.
    """

    kind: str
    what: str
    section: str


@dataclass(frozen=True)
class Finding:
    """One way in which two models differ.

    Attributes:
        kind: one of `KINDS`.
        what: the tensor's name, or the config's key.
        text: the difference in words.
    """

    kind: str
    what: str
    text: str


@dataclass
class Comparison:
    """How two models differ.

    Attributes:
        differences: the largest difference of each tensor that both have.
        findings: what is more than a rounding.
        wide: whether all tensors of numbers are of 32 bits or more.
    """

    differences: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    wide: bool = True

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor of the largest difference; "" where there is none."""
        # A NaN that only one side has is the worst of all.
        return max(self.differences.items(), key=lambda item: (item[1] != item[1], item[1]), default=("", 0.0))


def expectations(text: str, sections: Iterable[str]) -> list[Expectation]:
    """Returns the differences that a recipe's comment announces.

    A line for each, as ``# Expected: tensors model.layers.*.mlp.*, see "Heading of a section"``.

    Args:
        text: the recipe.
        sections: the headings of docs/mergekit-differences.md.

    Raises:
        ValueError: such a line cannot be read, or names a section that is not there.
    """
    known = set(sections)
    found = []
    for line in text.splitlines():
        if not line.startswith("# Expected:"):
            continue
        match = _EXPECTED.fullmatch(line)
        if not match or match["kind"] not in KINDS:
            raise ValueError(
                f'{line}: expected "# Expected: KIND [NAME], see "SECTION"", KIND one of {", ".join(KINDS)}'
            )
        if match["section"] not in known:
            raise ValueError(f'{line}: docs/mergekit-differences.md has no section "{match["section"]}"; add it')
        found.append(Expectation(match["kind"], match["what"] or "*", match["section"]))
    return found


def judged(findings: Iterable[Finding], expected: Iterable[Expectation]) -> tuple[list[str], list[str]]:
    """Returns what was not expected, as lines, and the sections of the expected differences that were found.

    A difference that is expected and did not come is not expected either: its recipe's comment is out of date.
    """
    left = list(expected)
    met: dict[int, None] = {}
    faults = []
    for finding in findings:
        fitting = [
            i for i, one in enumerate(left) if one.kind == finding.kind and fnmatchcase(finding.what or "*", one.what)
        ]
        if fitting:
            met.update(dict.fromkeys(fitting))
        else:
            faults.append(finding.text)
    faults += [
        f"expected, but not found: {one.kind} {one.what} ({one.section}); remove the line from the recipe"
        for i, one in enumerate(left)
        if i not in met
    ]
    return faults, list(dict.fromkeys(left[i].section for i in met))


def allowed(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns how far each element of two tensors of one dtype may lie apart, float64.

    `TOLERANCE`, and in a 16-bit dtype one rounding more: the last one, where it fell to the other side.
    """
    size = torch.maximum(ours.abs(), theirs.abs())
    return TOLERANCE + _ROUNDING.get(ours.dtype, 0.0) * size.double()


def compare_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Comparison:
    """Returns how evomerge's tensors differ from mergekit's, by name."""
    result = Comparison()
    add = result.findings.append
    for name in ours.keys() - theirs.keys():
        add(Finding("missing", name, f"{name}: not written by mergekit"))
    for name in theirs.keys() - ours.keys():
        add(Finding("surplus", name, f"{name}: not written by evomerge"))
    for name in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[name], theirs[name]
        if mine.shape != other.shape:
            add(Finding("tensors", name, f"{name}: shape {list(mine.shape)}, mergekit {list(other.shape)}"))
            continue
        gap = (mine.double() - other.double()).abs()
        both = mine.isnan() & other.isnan() if mine.is_floating_point() else torch.zeros_like(gap, dtype=torch.bool)
        gap = gap.masked_fill(both, 0.0)
        result.wide &= mine.dtype not in _ROUNDING
        result.differences[name] = gap.max().item() if gap.numel() else 0.0
        if mine.dtype != other.dtype:
            add(Finding("tensors", name, f"{name}: dtype {mine.dtype}, mergekit {other.dtype}"))
        # Not `gap > allowed`, which a NaN on one side alone would pass.
        elif not bool((both | (gap <= allowed(mine, other))).all()):
            count = int((~(both | (gap <= allowed(mine, other)))).sum())
            far = f"{count:,} of {gap.numel():,} elements too far apart"
            text = f"{name}: differs by {result.differences[name]:.3g}; {far}"
            add(Finding("tensors", name, text))
    return result


def read_tensors(folder: Path, layout: bool) -> dict[str, Tensor]:
    """Returns all tensors of a model by name.

    Args:
        folder: the model.
        layout: give the names and shapes that transformers gives them once loaded, not those in the files.
    """
    if layout:
        return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())
    with Checkpoint.open(str(folder)) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def compare_configs(ours: Path, theirs: Path) -> Iterator[Finding]:
    """Yields the fields in which two models' configs differ, as transformers reads them."""
    mine, other = (
        {k: v for k, v in AutoConfig.from_pretrained(folder).to_dict().items() if k not in _IGNORED}
        for folder in (ours, theirs)
    )
    for key in sorted(mine.keys() | other.keys()):
        if mine.get(key) != other.get(key):
            yield Finding("config", key, f"config: {key} is {mine.get(key)!r}, mergekit's {other.get(key)!r}")


def compare_tokenizers(ours: Path, theirs: Path, numbers: bool = True) -> Iterator[Finding]:
    """Yields how two models' tokenizers differ.

    Chat templates are compared by what they make of a conversation.

    Args:
        ours: evomerge's model.
        theirs: mergekit's.
        numbers: whether the same tokens must have the same numbers.
    """
    mine, other = (_tokenizer(folder, numbers) for folder in (ours, theirs))
    for key in mine.keys() | other.keys():
        if mine.get(key) != other.get(key):
            text = f"tokenizer: {key} is {_short(mine.get(key))}, mergekit's {_short(other.get(key))}"
            yield Finding("tokenizer", key, text)


def renumbered(ours: Path, theirs: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns mergekit's tensors with the rows of embeddings and heads where evomerge has the same tokens.

    Args:
        ours: evomerge's model.
        theirs: mergekit's.
        tensors: mergekit's, by name.
    """
    mine, other = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (ours, theirs))
    if mine == other or mine.keys() != other.keys():
        return dict(tensors)
    places = torch.tensor([other[token] for token in sorted(mine, key=mine.__getitem__)])
    return {
        # Rows that pad the vocabulary stay behind it.
        name: torch.cat([tensor[places], tensor[len(places) :]]) if _BY_TOKEN.search(name) else tensor
        for name, tensor in tensors.items()
    }


def _tokenizer(folder: Path, numbers: bool) -> dict[str, Any]:
    """What a folder's tokenizer does; nothing where there is none."""
    if not (folder / "tokenizer_config.json").exists():
        return {}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    return {
        "vocabulary": vocabulary if numbers else sorted(vocabulary),
        "special tokens": tokenizer.special_tokens_map,
        "a sample": tokenizer.convert_ids_to_tokens(tokenizer(_SAMPLE)["input_ids"]),
        "a conversation": tokenizer.chat_template and _rendered(tokenizer, prompt=False),
        "a prompt": tokenizer.chat_template and _rendered(tokenizer, prompt=True),
    }


def _rendered(tokenizer: Any, prompt: bool) -> str:
    messages = _CONVERSATION[:-1] if prompt else _CONVERSATION
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."
