"""The scripts that set evomerge beside lm-eval, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from scripts import bench_eval, compare_lm_eval
from scripts.lm_eval_cases import CASES
from tests.tiny import tiny_checkpoint, tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose tokenizer adds a first token."""
    path = tiny_checkpoint(tmp_path / "model", scale=0.3, max_position_embeddings=4096)
    tokenizer = tiny_tokenizer()
    first = TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = first
    tokenizer.save_pretrained(path)
    return path


def test_all_cases_agree_with_lm_eval(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    options = ["--items", "2", "--new-tokens", "6", "--json"]
    monkeypatch.setattr(sys, "argv", ["compare_lm_eval", str(model), *options])
    assert compare_lm_eval.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["case"] for one in found] == list(CASES)
    assert all(one["different_completions"] == 0 for one in found if "generation" in one["case"])
    assert max(one["nats_a_token"] for one in found if "nats_a_token" in one) <= 1e-4
    assert ["<s>" in one["note"] for one in found] == [case == "perplexity" for case in CASES]


def test_shared_beginnings_run_once_and_lm_eval_runs_every_request(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cases = ("5-shot choices", "5-shot generation")
    options = ["--items", "3", "--rounds", "1", "--new-tokens", "6", "--batch-size", "1", "--json"]
    options += [word for case in cases for word in ("--case", case)]
    monkeypatch.setattr(sys, "argv", ["bench_eval", str(model), *options])
    bench_eval.main()
    found = json.loads(capsys.readouterr().out)["cases"]
    assert tuple(found) == cases
    for one in found.values():
        # A few tokens try out how the model can be run.
        assert one["least_tokens"] <= one["evomerge"]["tokens"] <= 1.05 * one["least_tokens"] + 40
    assert found["5-shot choices"]["lm_eval"]["tokens"] > 7 * found["5-shot choices"]["least_tokens"]
    assert found["5-shot generation"]["lm_eval"]["tokens"] > 2 * found["5-shot generation"]["least_tokens"]
