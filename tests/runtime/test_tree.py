"""Packs of sequences that begin alike: every token once, and each sees what it would see alone."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from evomerge.runtime import LikelihoodRequest, TorchLanguageModel, tree
from evomerge.runtime.tree import Pack, cut, tree_size
from tests.tiny import VOCABULARY, tiny_checkpoint, tiny_tokenizer

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=8, unique=True
)


@given(SEQUENCES, st.integers(0, 40))
def test_a_pack_has_every_beginning_once_and_each_token_sees_its_own(found: list[tuple[int, ...]], shared: int):
    sequences = sorted((7,) * shared + one for one in found)
    pack = Pack.of(sequences, shared)
    beginnings = {one[:end] for one in sequences for end in range(shared + 1, len(one) + 1)}
    assert len(pack.ids) == len(beginnings)
    assert tree_size(sequences) == len(beginnings) + shared
    for sequence, positions in zip(sequences, pack.positions(), strict=True):
        assert tuple(pack.ids[positions]) == sequence[shared:]
        assert pack.depths[positions].tolist() == list(range(shared, len(sequence)))
        for count, position in enumerate(positions, start=1):
            seen = pack.visible()[position]
            assert seen[:shared].all()
            assert np.flatnonzero(seen[shared:]).tolist() == sorted(positions[:count])
            windowed = pack.visible(3)[position]
            assert windowed.sum() == min(3, shared + count)
            assert windowed[shared:].sum() == min(3, count)


def test_packs_are_cut_between_questions_and_filled_to_half_the_beginning():
    beginning = tuple(range(1000, 1200))
    questions = [(*beginning, *(100 * i + j for j in range(41))) for i in range(9)]
    sequences = sorted((*one, *[3] * k) for one in questions for k in range(1, 4))
    found = cut(sequences, [2] * len(sequences), 0, 999, 16_384, 999)
    assert found.start == 200
    assert not found.long
    assert sorted(one for pack in found.packs for one in pack.sequences) == sequences
    # Of 44 tokens each, at most 100 together.
    assert [(len(pack.ids), pack.logits) for pack in found.packs] == [(88, 12)] * 4 + [(44, 6)]
    assert found.start + sum(len(pack.ids) for pack in found.packs) == tree_size(sequences)
    # Predictions within the beginning need it in the packs.
    assert cut(sequences, [2] * len(sequences), 0, 3, 16_384, 999).start == 3
    limited = cut(sequences, [2] * len(sequences), 0, 999, 16_384, 7)
    assert {pack.logits for pack in limited.packs} == {6}
    # Nothing in common, or too little.
    assert cut([(1, 2), (2, 3)], [1, 1], 0, 1, 99, 99) is None
    assert cut([(1, *range(40)), (1, *range(50, 90))], [1, 1], 0, 1, 99, 99) is None


def test_what_is_too_long_for_a_pack_is_a_tree_of_its_own():
    question = tuple(range(100))
    sequences = sorted((9, *one, *[k] * 3) for one in (question, question[::-1]) for k in range(4))
    found = cut(sequences, [3] * 8, 0, 101, 50, 99)
    assert (found.start, found.packs) == (0, [])
    assert sorted(found.long) == [sequences[:4], sequences[4:]]
    inner = cut(sequences[:4], [3] * 4, 0, 101, 120, 99)
    assert (inner.start, [len(pack.ids) for pack in inner.packs], inner.long) == (101, [12], [])


KINDS = {
    "llama": {},
    "gpt2": {},
    "qwen2": {},
    "gemma2": {"layers": 2},
    "gemma3_text": {"layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 8},
    "phi": {},
    "mixtral": {},
    "gpt_oss": {"layers": 2},
}


@pytest.mark.parametrize("kind", [*KINDS, "mamba", "deepseek_v3"])
def test_scores_do_not_depend_on_what_else_is_scored(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO, "evomerge")
    folder = tiny_checkpoint(tmp_path / "m", kind=kind, scale=0.3, **KINDS.get(kind, {}))
    module = AutoModelForCausalLM.from_pretrained(folder)
    model = TorchLanguageModel(module, tiny_tokenizer(), ())
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    shots = some(40)
    asked = [
        LikelihoodRequest(prompt, some(size))
        for prompt in [(*shots, *some(6 + 7 * i)) for i in range(9)]
        for size in (1, 4, 9)
    ]
    together = model.loglikelihoods(asked)
    alone = []
    for request in asked:
        with torch.no_grad():
            logs = module(torch.tensor([request.prompt + request.target])).logits[0].double().log_softmax(-1)
        first = len(request.prompt) - 1
        alone.append(sum(float(logs[first + i, token]) for i, token in enumerate(request.target)))
    assert together == pytest.approx(alone, abs=2e-5 * 9)
    assert model.loglikelihoods(asked[::-1]) == together[::-1]
    least = tree_size(sorted({one.prompt + one.target[:-1] for one in asked}))
    counted = model.tokens.prompt // 2
    for some_asked in (asked[:5], asked[7:8], asked[3::4]):
        values = dict(zip(asked, together, strict=True))
        expected = [values[one] for one in some_asked]
        assert model.loglikelihoods(some_asked) == pytest.approx(expected, abs=1e-5 * 9)
    # Long questions are run once too, after what all begin with.
    with monkeypatch.context() as patch:
        patch.setattr(tree, "LONGEST", 40)
        before = model.tokens.prompt
        assert model.loglikelihoods(asked) == pytest.approx(together, abs=1e-5 * 9)
        assert model.tokens.prompt - before <= 1.05 * counted
    if kind == "mamba":
        assert "cannot share it, and are run one by one" in caplog.text
        assert counted > 3 * least
    else:
        assert not caplog.text
        assert counted <= 1.05 * least
