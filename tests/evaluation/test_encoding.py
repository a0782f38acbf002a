"""Items to token ids: where the prompt ends, and what is refused."""

import json
import time
from pathlib import Path

import pytest

from evomerge.errors import TaskError
from evomerge.evaluation.encoding import encode
from evomerge.merge.side_files import CHAT_TEMPLATES
from evomerge.tasks import Task, render_chat
from tests.tiny import CHAT_TEMPLATE, VOCABULARY, tiny_tokenizer


def task(folder: Path, text: str) -> Task:
    rows = [json.dumps({"q": f"one {i}?", "a": " yes"}) for i in range(8)]
    (folder / "d.jsonl").write_text("\n".join(rows))
    path = folder / "t.yaml"
    path.write_text(f'data: d.jsonl\nprompt: "{{{{ q }}}}"\nsplits: {{search: [0, 4], holdout: [4, 8]}}\n{text}')
    return Task.load(path)


def without_prompt(folder: Path) -> Task:
    made = task(folder, 'type: perplexity\ntarget: "{{ a }}"\n')
    made.path.write_text(made.path.read_text().replace('prompt: "{{ q }}"\n', ""))
    return Task.load(made.path)


def encoded(made: Task, limit: int | None = 512, chat_template: bool = True):
    tokenizer = tiny_tokenizer(chat_template=chat_template)
    return tokenizer, encode(made, made.items("search"), tokenizer, limit, VOCABULARY)


def test_prompt_and_target_are_the_whole_text(tmp_path: Path):
    tokenizer, found = encoded(task(tmp_path, 'type: perplexity\ntarget: "{{ a }}"\n'))
    assert len(found) == 4
    for i, one in enumerate(found):
        (request,) = one.requests
        assert tokenizer.decode(request.prompt) == f"one {i}?"
        assert tokenizer.decode(request.target) == " yes"


@pytest.mark.parametrize(("bos", "eos", "first"), [("<s>", "</s>", "<s>"), (None, "</s>", "</s>")])
def test_a_text_without_a_prompt_follows_a_token_that_begins_or_ends_texts(
    tmp_path: Path, bos: str | None, eos: str, first: str
):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    made = without_prompt(tmp_path)
    (request,) = encode(made, made.items("search"), tokenizer, 512, VOCABULARY)[0].requests
    assert tokenizer.decode(request.prompt) == first
    assert tokenizer.decode(request.target) == " yes"


def test_a_text_without_a_prompt_needs_such_a_token(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    made = without_prompt(tmp_path)
    with pytest.raises(TaskError, match=r"item 0 \(' yes'\) has an empty prompt, and the tokenizer adds no first"):
        encode(made, made.items("search"), tokenizer, 512, VOCABULARY)


def test_choices_are_requests_of_their_item(tmp_path: Path):
    made = task(tmp_path, 'type: multiple_choice\nchoices: [" no", " yes"]\nanswer: "1"\nmetric: accuracy\n')
    tokenizer, found = encoded(made)
    for one in found:
        assert [tokenizer.decode(request.target) for request in one.requests] == [" no", " yes"]


def test_a_chat_is_rendered_with_the_template(tmp_path: Path):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nmetric: exact_match\nchat: true\nmax_new_tokens: 4\n')
    tokenizer, found = encoded(made)
    assert tokenizer.decode(found[0].requests[0].prompt) == "<s>user: one 0?\nassistant: "
    assert "assistant" in CHAT_TEMPLATE


def test_a_missing_chat_template_is_told(tmp_path: Path):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nmetric: exact_match\nchat: true\nmax_new_tokens: 4\n')
    with pytest.raises(TaskError, match="has no chat template; set chat: false"):
        encoded(made, chat_template=False)


MADE = "{% set x = 'a' * 900000 %}{% set s = namespace(a=0) %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "runs for more than"),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply"),
        ("{{ 'a' * 3000000000 }}", "takes more than 512 MiB"),
        ("{{ 'a'.ljust(3000000000) }}", "takes more than 512 MiB"),
        ("{{ '%3000000000d' % 1 }}", "takes more than 512 MiB"),
        ("{{ 'a' | indent(3000000000, true) }}", "takes more than 512 MiB"),
        ("{% for i in range(99999) %}{{ messages[0].content * 100000 }}{% endfor %}", "more than"),
        ("{{ messages[0].content * 300000 }}", "makes more than 1,000,000 characters"),
        (MADE + "{% for i in range(99999) %}{% set s.a = [s.a, x | upper] %}{% endfor %}", "more than"),
        (MADE + "{% for i in range(99999) %}{% set s.a = [s.a, x ~ i] %}{% endfor %}", "more than"),
        (MADE + "{% for i in range(99999) %}{% set y %}{{ x }}{% endset %}{% endfor %}", "more than"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].content", "not a valid template (line 1 of it)"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_chat_template_that_loops_or_makes_too_much_or_raises_is_told_at_once(tmp_path: Path, template, words):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nchat: true\n')
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    started = time.thread_time()
    with pytest.raises(TaskError) as error:
        encode(made, made.items("search"), tokenizer, 512, VOCABULARY)
    assert time.thread_time() - started < 5
    for part in (f"{made.path}: chat is true, but the chat template", words, "the item 'one 0?'", "chat: false"):
        assert part in str(error.value)


# The tags, filters, methods and globals that checkpoints' templates use, and the white space around blocks.
USED = """\
{%- macro text(content) -%}
    {% if content is string %}{{ content | trim }}{% else %}\
{% for part in content %}{{ part.text }}{% endfor %}{% endif %}
{%- endmacro -%}
{{ bos_token }}
{%- set ns = namespace(count=0, turns=[]) %}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- set ns.turns = ns.turns + [message.role] %}
<|{{ message.role.upper() }}|> {{ text(message['content'].split('</think>')[-1]) }} {{ {'n': ns.count} | tojson }}
    {%- if message.role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}
{{ ns.turns[::-1] | join(', ') }}{{ missing }}{{ missing is defined }}{{ tools is none }}{{ dict(a=1)['a'] }}
{{ {'b': [1, 'é'], 'a': none} | tojson(indent=2) }}{{ '<&>' | e ~ 'x' }}{{ 7 // 2 * 3 % 5 }}
{{ 'a\nb' | indent(2) }}{{ '%03d' % 7 }}{{ '{:>4}'.format('x') }}{{ 'x'.ljust(3) }}|
{% set shown %}{% for k, v in {'x': 1, 'y': 2} | items %}{{ k }}={{ v }}{{ ',' if not loop.last }}\
{% endfor %}{% endset %}
{{ shown }}{{ strftime_now('%Y') | length }}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES.values(), CHAT_TEMPLATE, USED])
def test_a_conversation_is_written_as_transformers_writes_it(template: str):
    turns = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "1 < 2 & 'é'?\n"},
        {"role": "assistant", "content": "<think>hm</think>yes"},
        {"role": "user", "content": "{{ why }}"},
    ]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    for messages in (turns, turns[1:2]):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render_chat(template, messages, tokenizer.special_tokens_map) == expected


def test_a_chat_template_that_writes_the_date_writes_the_same_every_day():
    assert render_chat("{{ strftime_now('%d %b %Y') }}", [], {}) == "01 Jan 2026"


def test_an_item_that_is_too_long_is_told(tmp_path: Path):
    made = task(tmp_path, 'type: generate\ntarget: "{{ a }}"\nmetric: exact_match\nmax_new_tokens: 40\n')
    with pytest.raises(TaskError, match=r"item 0 \('one 0\?'\) has 46 tokens, but the model takes at most 45"):
        encoded(made, limit=45)
    encoded(made, limit=46)
