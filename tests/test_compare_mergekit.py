"""The comparison with mergekit tells right merges from wrong ones; mergekit itself is not needed here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from scripts.mergekit.comparison import (
    Expectation,
    Finding,
    compare_configs,
    compare_tensors,
    compare_tokenizers,
    expectations,
    judged,
    renumbered,
)
from scripts.mergekit.masks import Masked, examine, fusion_faults
from scripts.models.make_tiny_models import ADAPTERS, MODELS, write_model
from tests.tiny import tiny_config, tiny_tokenizer

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes" / "mergekit").glob("**/*.yaml"))
SECTIONS = [
    line[3:] for line in (ROOT / "docs" / "mergekit-differences.md").read_text().splitlines() if line.startswith("## ")
]


class Draw:
    """A merge with random masks, made here in a few plain lines, rightly or wrongly."""

    def __init__(self, method: str, shape: tuple[int, ...] = (128, 128), **shared: float) -> None:
        self.method = method
        self.generator = torch.Generator().manual_seed(7)
        self.base = torch.randn(shape, generator=self.generator) * 0.05
        self.models = [self.base + torch.randn(shape, generator=self.generator) * 0.02 for _ in range(2)]
        self.own: list[dict[str, float]] = [
            {"weight": 0.6, "density": 0.5, "epsilon": 0.3},
            {"weight": -0.9, "density": 0.7, "epsilon": 0.2},
        ]
        self.shared = {"normalize": False, "rescale": True, "lambda": 1.3, **shared}

    def merged(self, **wrong: Any) -> Tensor:
        """The merge; `wrong` are values that its masks and sums take in place of the right ones."""
        consensus = wrong.get("consensus", self.method in ("dare_ties", "della"))
        parts, weights = [], []
        for model, own in zip(self.models, self.own, strict=True):
            delta = (model - self.base).double()
            density = wrong.get("density", own["density"])
            chance = torch.full_like(delta, density)
            if self.method.startswith("della"):
                sign = wrong.get("rank_sign", 1)
                ranks = (sign * delta.abs()).argsort(dim=-1).argsort(dim=-1)
                chance = density + own["epsilon"] * (2 * ranks / (delta.shape[-1] - 1) - 1)
            kept = delta * (torch.rand(delta.shape, generator=self.generator) < chance)
            if self.shared["rescale"] and bool(kept.any()):
                kept *= wrong.get("scale", delta.abs().sum() / kept.abs().sum())
            parts.append(kept * own["weight"])
            weights.append(own["weight"])
        stack, column = torch.stack(parts), torch.tensor(weights).view(-1, *[1] * self.base.ndim)
        counted = torch.ones_like(stack)
        if consensus:
            counted = (stack.sign() == torch.where(stack.sum(dim=0) >= 0, 1, -1)).double()
        total = (stack * counted).sum(dim=0)
        if self.shared["normalize"]:
            divisor = (column * counted).sum(dim=0)
            total /= divisor.masked_fill(divisor == 0, 1)
        return (self.base + self.shared["lambda"] * total).float()

    def faults(self, merged: Tensor) -> tuple[str, ...]:
        case = Masked.of(self.method, self.base, self.models, self.shared, self.own)
        return examine(merged, self.base, case).faults


METHODS = ("dare_linear", "dare_ties", "della_linear", "della")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shared", [{}, {"rescale": False}, {"normalize": True}], ids=["", "not rescaled", "normalized"]
)
def test_a_right_merge_passes(method: str, shared: dict[str, float]):
    draw = Draw(method, **shared)
    assert draw.faults(draw.merged()) == ()


@pytest.mark.parametrize("method", METHODS)
def test_a_short_tensor_passes(method: str):
    draw = Draw(method, (256,))
    assert draw.faults(draw.merged()) == ()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_changed_nothing_passes(method: str):
    draw = Draw(method)
    draw.models[1] = draw.base
    assert draw.faults(draw.merged()) == ()


@pytest.mark.parametrize("method", METHODS)
def test_masks_of_another_density_do_not_pass(method: str):
    draw = Draw(method, rescale=False)
    assert any("elements as if kept" in fault for fault in draw.faults(draw.merged(density=0.62)))


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_rescaling_that_does_not_restore_the_norm_does_not_pass(method: str):
    draw = Draw(method)
    assert any("does not restore its L1 norm" in fault for fault in draw.faults(draw.merged(scale=1.9)))


@pytest.mark.parametrize("method", METHODS)
def test_rescaling_by_far_too_much_does_not_pass(method: str):
    draw = Draw(method)
    assert any("rescaled by" in fault for fault in draw.faults(draw.merged(scale=2.3)))


@pytest.mark.parametrize("method", METHODS)
def test_election_where_there_is_none_and_none_where_there_is_do_not_pass(method: str):
    draw = Draw(method)
    assert draw.faults(draw.merged(consensus=method.endswith("linear")))


@pytest.mark.parametrize("method", ["della_linear", "della"])
def test_the_largest_dropped_most_often_does_not_pass(method: str):
    draw = Draw(method, rescale=False)
    assert any("L1" in fault or "L2" in fault for fault in draw.faults(draw.merged(rank_sign=-1)))


def test_one_wrong_element_does_not_pass():
    draw = Draw("dare_linear")
    merged = draw.merged()
    merged[3, 5] += 0.001
    assert any("1 elements have none of their values" in fault for fault in draw.faults(merged))


def test_fusion_passes_and_one_element_on_the_wrong_side_does_not():
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(64, 64, generator=generator) * 0.05
    other = base + torch.randn(64, 64, generator=generator) * 0.02
    p, q = other.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    importance = (other - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    lower, median, upper = (importance.flatten().sort().values[int(q * 4095)] for q in (0.25, 0.5, 0.75))
    fused = torch.where(importance >= median + 1.5 * (upper - lower), other, base)
    faults, undecided = fusion_faults(fused, base, other)
    assert faults == ()
    assert undecided < 40
    wrong = fused.clone()
    wrong.view(-1)[importance.argmax()] = base.view(-1)[importance.argmax()]
    assert fusion_faults(wrong, base, other)[0] == ("1 elements on the wrong side of the threshold",)
    assert fusion_faults((fused + other) / 2, base, other)[0][0].endswith("elements are neither model's")


def test_tensors_that_differ_are_found():
    one = torch.ones(4)
    nan = torch.tensor([1, float("nan"), 1, 1])
    ours = {"same": one, "near": one, "far": one, "nan": nan, "one nan": nan, "ours": one, "shape": one, "dtype": one}
    theirs = {
        "same": one,
        "near": one + 1.5e-6,
        "far": one + 3e-6,
        "nan": nan,
        "one nan": one,
        "theirs": one,
        "shape": one[:2],
        "dtype": one.bfloat16(),
    }
    found = compare_tensors(ours, theirs)
    assert {(finding.kind, finding.what) for finding in found.findings} == {
        ("tensors", "far"),
        ("tensors", "one nan"),
        ("tensors", "shape"),
        ("tensors", "dtype"),
        ("missing", "ours"),
        ("surplus", "theirs"),
    }
    assert found.worst[0] == "one nan"
    assert found.differences["far"] == pytest.approx(3e-6, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_number_may_be_off_by_one_rounding_and_no_more(dtype: torch.dtype):
    step = torch.finfo(dtype).eps
    ours = torch.tensor([1.0, 1.0]).to(dtype)
    assert not compare_tensors({"x": ours}, {"x": torch.tensor([1.0, 1 + step]).to(dtype)}).findings
    assert compare_tensors({"x": ours}, {"x": torch.tensor([1.0, 1 + 3 * step]).to(dtype)}).findings


def test_configs_and_tokenizers_that_differ_are_found(tmp_path: Path):
    for name, layers, tokens in (("a", 2, ()), ("b", 3, ("<x>",))):
        config = tiny_config(layers=layers)
        config.save_pretrained(tmp_path / name)
        tiny_tokenizer(extra_tokens=tokens, chat_template=bool(tokens)).save_pretrained(tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert [finding.what for finding in compare_configs(a, b)] == ["num_hidden_layers"]
    assert {finding.what for finding in compare_tokenizers(a, b)} == {"vocabulary", "a conversation", "a prompt"}
    assert not [*compare_configs(a, a), *compare_tokenizers(b, b)]


def test_tokens_of_a_union_may_be_numbered_in_another_way(tmp_path: Path):
    for name, tokens in (("a", ("<x>", "<y>")), ("b", ("<y>", "<x>"))):
        tiny_config(layers=2).save_pretrained(tmp_path / name)
        tiny_tokenizer(extra_tokens=tokens).save_pretrained(tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert [finding.what for finding in compare_tokenizers(a, b)] == ["vocabulary"]
    assert not [*compare_tokenizers(a, b, numbers=False)]
    rows = torch.arange(264.0)[:, None]
    theirs = renumbered(a, b, {"model.embed_tokens.weight": rows, "model.norm.weight": rows})
    assert theirs["model.embed_tokens.weight"][257:, 0].tolist() == [257, 258, 260, 259, 261, 262, 263]
    assert theirs["model.norm.weight"] is rows


def test_expected_differences_are_read():
    text = '# Expected: tensors lm_head.*, see "A head"\n# Expected: mergekit-fails, see "It fails"\nmerge_method: x\n'
    assert expectations(text, ["A head", "It fails"]) == [
        Expectation("tensors", "lm_head.*", "A head"),
        Expectation("mergekit-fails", "*", "It fails"),
    ]
    with pytest.raises(ValueError, match='has no section "A head"'):
        expectations(text, ["It fails"])
    with pytest.raises(ValueError, match="KIND one of"):
        expectations('# Expected: weather, see "A head"', ["A head"])


def test_only_what_is_expected_passes_and_what_is_expected_must_come():
    head, norm = Finding("tensors", "lm_head.weight", "head"), Finding("tensors", "norm", "norm")
    expected = [Expectation("tensors", "lm_head.*", "A head")]
    assert judged([head], expected) == ([], ["A head"])
    assert judged([head, norm], expected) == (["norm"], ["A head"])
    assert judged([], expected)[0][0].startswith("expected, but not found: tensors lm_head.*")
    assert judged([Finding("missing", "lm_head.weight", "gone")], expected)[0][0] == "gone"


def test_without_mergekit_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from scripts.compare_mergekit import main

    (tmp_path / "a.yaml").write_text("merge_method: linear\n")
    # No Python has it that cannot even see its own packages.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    for python in (bare, tmp_path / "nowhere"):
        monkeypatch.setattr(sys, "argv", ["compare_mergekit.py", str(tmp_path), "--mergekit", str(python)])
        assert main() == 2
        assert "--mergekit PYTHON" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["compare_mergekit.py", str(tmp_path), "--only", "nothing"])
    with pytest.raises(SystemExit):
        main()


def test_there_are_enough_recipes():
    assert len([path for path in RECIPES if path.parent.name == "mergekit"]) >= 60


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_how_it_is_run_and_names_models_that_are_made(path: Path):
    text = path.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ")
    assert head[1] == f"# Command: python scripts/compare_mergekit.py recipes/mergekit --only '^{path.stem}$'"
    assert [line.split(":")[0] for line in head[2:4]] == ["# Needs", "# Takes"]
    expectations(text, SECTIONS)
    named = {
        part.removeprefix("models/tiny/")
        for word in _words(yaml.safe_load(text))
        for part in word.split("+")
        if part.startswith("models/")
    }
    assert named <= {*MODELS, *ADAPTERS}
    if not {"base_model", "chat_template"} & yaml.safe_load(text).keys():
        # mergekit takes the tokenizer of any of them.
        assert len({MODELS[name].words for name in named & MODELS.keys()}) == 1
    if path.parent.name == "instead":
        assert path.parent.parent / path.name in RECIPES


def _words(data: Any) -> list[str]:
    """Every text in a document, keys not."""
    if isinstance(data, dict | list):
        return [word for part in (data.values() if isinstance(data, dict) else data) for word in _words(part)]
    return [data] if isinstance(data, str) else []


def test_the_tiny_models_come_out_the_same_every_time(tmp_path: Path):
    for run in ("a", "b"):
        torch.rand(3)  # Whatever others drew before.
        (tmp_path / run).mkdir()
        for name in ("qwen2", "qwen2-a"):
            write_model(tmp_path / run / name, name)
    for name in ("qwen2", "qwen2-a"):
        one, other = ((tmp_path / run / name / "model.safetensors").read_bytes() for run in ("a", "b"))
        assert one == other
