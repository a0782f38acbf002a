"""Items to token ids: where the prompt ends, and what is refused."""

import json
from pathlib import Path

import pytest

from evomerge.errors import TaskError
from evomerge.evaluator.encoding import encode
from evomerge.tasks import Task
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer


def task(folder: Path, text: str) -> Task:
    rows = [json.dumps({"q": f"one {i}?", "a": " yes"}) for i in range(8)]
    (folder / "d.jsonl").write_text("\n".join(rows))
    path = folder / "t.yaml"
    path.write_text(f'data: d.jsonl\nprompt: "{{{{ q }}}}"\nsplits: {{search: [0, 4], holdout: [4, 8]}}\n{text}')
    return Task.load(path)


def encoded(made: Task, limit: int | None = 512, chat_template: bool = True):
    tokenizer = tiny_tokenizer(chat_template=chat_template)
    return tokenizer, encode(made, made.items("search"), tokenizer, limit)


def test_prompt_and_target_are_the_whole_text(tmp_path: Path):
    tokenizer, found = encoded(task(tmp_path, 'type: perplexity\ntarget: "{{ a }}"\n'))
    assert len(found.rows) == 4
    for i, row in enumerate(found.rows):
        assert tokenizer.decode(row.prompt) == f"one {i}?"
        assert tokenizer.decode(row.target) == " yes"


def test_text_without_a_prompt_has_a_target_alone(tmp_path: Path):
    made = task(tmp_path, 'type: perplexity\ntarget: "{{ a }}"\n')
    made.path.write_text(made.path.read_text().replace('prompt: "{{ q }}"\n', ""))
    with pytest.raises(
        TaskError, match=r"item 0 \(' yes'\) has an empty prompt, and the tokenizer adds no first token"
    ):
        encoded(Task.load(made.path))


def test_choices_are_rows_of_their_item(tmp_path: Path):
    made = task(tmp_path, 'type: multiple_choice\nchoices: [" no", " yes"]\nanswer: "1"\nmetric: accuracy\n')
    tokenizer, found = encoded(made)
    assert [(row.item, row.choice) for row in found.rows] == [(i, j) for i in range(4) for j in range(2)]
    assert tokenizer.decode(found.rows[1].target) == " yes"


def test_a_chat_is_rendered_with_the_template(tmp_path: Path):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nmetric: exact_match\nchat: true\nmax_new_tokens: 4\n')
    tokenizer, found = encoded(made)
    assert tokenizer.decode(found.rows[0].prompt) == "<s>user: one 0?\nassistant: "
    assert "assistant" in CHAT_TEMPLATE


def test_a_missing_chat_template_is_told(tmp_path: Path):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nmetric: exact_match\nchat: true\nmax_new_tokens: 4\n')
    with pytest.raises(TaskError, match="has no chat template; set chat: false"):
        encoded(made, chat_template=False)


def test_an_item_that_is_too_long_is_told(tmp_path: Path):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nmetric: exact_match\nmax_new_tokens: 40\n')
    with pytest.raises(TaskError, match=r"item 0 \('one 0\?'\) takes 46 tokens, but the model takes 45"):
        encoded(made, limit=45)
    encoded(made, limit=46)
