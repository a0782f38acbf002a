"""Chat templates: by name, as text, or the one that most models have; in every file where runtimes look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from evomerge.errors import CheckpointError, RecipeError
from evomerge.merge import checked_method, into_directory, open_models, plan
from evomerge.recipe import Recipe
from tests.tiny import CHAT_TEMPLATE, tiny_checkpoint

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "bare", layers=1)
    for name in ("chat", "chat2", "other"):
        tiny_checkpoint(folder / name, layers=1, chat_template=True)
    (folder / "other" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


def made(template: str, models: Path, out: Path, names: str = "bare") -> Path:
    listed = ", ".join(f"{{model: {models / name}}}" for name in names.split())
    recipe = Recipe.parse(f"merge_method: linear\nmodels: [{listed}]\nparameters: {{weight: 1}}\n{template}\n")
    into_directory(plan(recipe, open_models(recipe)), out)
    return out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "<s> [INST] Be kind.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]"),
        (
            "alpaca",
            "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n",
        ),
        (
            "exaone",
            "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]Bye\n[|assistant|]",
        ),
    ],
)
def test_a_template_is_known_by_its_name(name: str, text: str, models: Path, tmp_path: Path):
    out = made(f"chat_template: {name}", models, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == text
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (out / "chat_template.jinja").read_text()


def test_auto_is_what_most_models_have(models: Path, tmp_path: Path):
    out = made("chat_template: auto", models, tmp_path / "out", "bare other chat chat2")
    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE.strip()
    union = "chat_template: auto\ntokenizer_source: union"
    out = made(union, models, tmp_path / "union", "bare other chat chat2")
    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE.strip()
    assert AutoTokenizer.from_pretrained(made("chat_template: auto", models, tmp_path / "none")).chat_template is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff{{ messages }}"),
        ("tokenizer_config.json", b'{"chat_template": "\\ud800"}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": [1]}, {"name": "default", "template": "\\ud800"}]}'),
    ],
)
def test_a_template_that_is_no_text_is_refused_before_anything_is_written(name: str, content: bytes, tmp_path: Path):
    tiny_checkpoint(tmp_path / "bad", layers=1)
    (tmp_path / "bad" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad: its chat template is not UTF-8 text"):
        made("chat_template: auto", tmp_path, tmp_path / "out", "bad")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_text_is_taken_as_it_is_and_nothing_leaves_the_tokenizer_alone(models: Path, tmp_path: Path):
    text = "{{ messages[0]['content'] }}!"
    out = made(f"chat_template: {json.dumps(text)}", models, tmp_path / "out", "chat")
    assert AutoTokenizer.from_pretrained(out).chat_template == text
    assert AutoTokenizer.from_pretrained(made("", models, tmp_path / "kept", "chat")).chat_template == CHAT_TEMPLATE


def test_an_unknown_name_is_refused():
    with pytest.raises(RecipeError, match=r'r\.yaml:3: chat_template: "chatlm" .*did you mean "chatml"'):
        checked_method(
            Recipe.parse("merge_method: passthrough\nmodels: [{model: a}]\nchat_template: chatlm\n", "r.yaml")
        )
