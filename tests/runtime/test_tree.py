"""Packs of sequences that begin alike: every token once, and each sees what it would see alone."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from evomerge.runtime import LikelihoodRequest, TorchLanguageModel
from evomerge.runtime.tree import LEAST_SHARED, Pack, packs, tree_size
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


def test_packs_are_cut_between_questions_and_within_their_limits():
    beginning = tuple(range(1000, 1000 + LEAST_SHARED))
    questions = [(*beginning, *(100 * i + j for j in range(LEAST_SHARED + 5))) for i in range(9)]
    sequences = sorted((*one, *[3] * k) for one in questions for k in range(1, 4))
    start, found = packs(sequences, [2] * len(sequences), 99, 60, 14)
    assert start == LEAST_SHARED
    assert sorted(one for pack in found for one in pack.sequences) == sequences
    assert {len(pack.sequences) for pack in found} == {6, 3}
    assert start + sum(len(pack.ids) for pack in found) == tree_size(sequences)
    assert {len(pack.sequences) for pack in packs(sequences, [2] * len(sequences), 99, 60, 5)[1]} == {3}
    assert packs(sequences, [2] * len(sequences), 3, 999, 999)[0] == 0
    # Nothing in common, or too little.
    assert packs([(1, 2), (2, 3)], [1, 1], 1, 99, 99) is None
    assert packs([(1, *range(40)), (1, *range(50, 90))], [1, 1], 1, 99, 99) is None


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
def test_scores_do_not_depend_on_what_else_is_scored(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
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
    tree = tree_size(sorted({one.prompt + one.target[:-1] for one in asked}))
    counted = model.tokens.prompt // 2
    for some_asked in (asked[:5], asked[7:8], asked[3::4]):
        values = dict(zip(asked, together, strict=True))
        expected = [values[one] for one in some_asked]
        assert model.loglikelihoods(some_asked) == pytest.approx(expected, abs=1e-5 * 9)
    if kind == "mamba":
        assert "cannot share it, and are run one by one" in caplog.text
        assert counted > 3 * tree
    else:
        assert not caplog.text
        assert counted <= 1.05 * tree
