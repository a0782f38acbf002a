"""Task files: what they give, and what each wrong one is told."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evomerge.errors import EvaluationError, TaskError
from evomerge.tasks import Item, Task, check_used, templates
from evomerge.tasks.data import read_rows, shuffled
from evomerge.tasks.pictures import pictures_in
from evomerge.tasks.templates import Template, TemplateError

GENERATE = """\
type: generate
data: rows.jsonl
prompt: "Q: {{ question }}\\nA: "
target: "{{ answer }}"
metric: last_number
splits:
  search: [2, 6]
  holdout: [6, 10]
"""

CHOICE = """\
type: multiple_choice
data: rows.jsonl
prompt: "Q: {{ question }}\\nA:"
choices: "{{ options }}"
answer: "{{ label }}"
splits: {search: [0, 1], holdout: [1, 2]}
"""

ROWS = [{"question": f"{i} + {i}?", "answer": f"It is {2 * i}", "n": i} for i in range(10)]


def write(folder: Path, text: str, rows: object = None) -> Path:
    lines = ROWS if rows is None else rows
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return folder / "task.yaml"


def task(folder: Path, text: str = GENERATE, rows: object = None) -> Task:
    return Task.load(write(folder, text, rows))


def faults(folder: Path, text: str, rows: object = None) -> tuple[str, ...]:
    """Returns the faults of a task file: those of loading it, or else those of its data."""
    path = write(folder, text, rows)
    with pytest.raises(TaskError) as error:
        Task.load(path).check()
    return tuple(fault.removeprefix(f"{folder}/") for fault in error.value.faults)


def one_fault(folder: Path, text: str, rows: object = None) -> str:
    found = faults(folder, text, rows)
    assert len(found) == 1, found
    return found[0]


# What a task gives


def test_generate_items_hold_prompt_and_target_of_the_rows_asked_for(tmp_path):
    one = task(tmp_path)
    one.check()
    items = one.items("search")
    assert [item.prompt for item in items] == [f"Q: {i} + {i}?\nA:" for i in range(2, 6)]
    assert [item.target for item in items] == [f"It is {2 * i}" for i in range(2, 6)]
    assert [item.prompt for item in one.items("holdout")] == [f"Q: {i} + {i}?\nA:" for i in range(6, 10)]
    assert {(item.messages, item.choices, item.answer) for item in items} == {((), (), -1)}
    assert (one.name, one.type, one.metric, one.option, one.chat) == ("task", "generate", "last_number", None, False)


def test_few_shot_examples_stand_before_each_prompt(tmp_path):
    one = task(tmp_path, GENERATE + "few_shot: {rows: [0, 2]}\n")
    assert one.items("search")[0].prompt == "Q: 0 + 0?\nA: It is 0\n\nQ: 1 + 1?\nA: It is 2\n\nQ: 2 + 2?\nA:"
    two = task(tmp_path, GENERATE + 'few_shot: {rows: [0, 1], separator: "|", target: "{{ 2 * n }}!"}\n')
    assert two.items("search")[0].prompt == "Q: 0 + 0?\nA: 0!|Q: 2 + 2?\nA:"
    two.check()


def test_chat_gives_turns_and_no_prompt(tmp_path):
    one = task(tmp_path, GENERATE + "few_shot: {rows: [0, 1]}\nchat: true\nsystem: Be brief\n")
    item = one.items("search")[0]
    assert item.prompt == ""
    assert [(turn["role"], turn["content"]) for turn in item.messages] == [
        ("system", "Be brief"),
        ("user", "Q: 0 + 0?\nA: "),
        ("assistant", "It is 0"),
        ("user", "Q: 2 + 2?\nA: "),
    ]


@pytest.mark.parametrize(
    ("label", "index"), [(0, 0), (1, 1), (1.0, 1), ("1", 1), ("B", 1), ("b", 1), ("red", 0), (" blue ", 1)]
)
def test_the_answer_is_an_index_a_letter_or_the_text(tmp_path, label, index):
    rows = [{"question": q, "options": ["red", "blue"], "label": label} for q in ("x", "y")]
    item = task(tmp_path, CHOICE, rows).items("search")[0]
    assert (item.choices, item.answer, item.target) == (("red", "blue"), index, "")


@pytest.mark.parametrize(
    "choices",
    [
        "'{{ options }}'",
        "options",
        "['{{ options[0] }}', '{{ options[1] }}']",
        "'{{ row[\"options\"] }}'",
        "'{{ options | list }}'",
    ],
)
def test_choices_are_a_list_of_templates_or_one_that_gives_a_list(tmp_path, choices):
    rows = [{"question": q, "options": ["red", 7], "label": 1} for q in ("x", "y")]
    one = task(tmp_path, CHOICE.replace('"{{ options }}"', choices), rows)
    assert one.items("search")[0].choices == ("red", "7")
    assert one.metric == "accuracy"


@pytest.mark.parametrize(
    ("end", "blanks"), [(" ", " "), (" \u3000\t", " \u3000\t"), ("\n", ""), (" \n ", " "), ("", "")]
)
def test_blanks_at_a_prompts_end_belong_to_what_follows_in_every_type(tmp_path, end, blanks):
    rows = [{"question": q, "options": ["red", "blue"], "label": 0} for q in ("x", "y")]
    scored = "choices: '{{ options }}'\nanswer: '{{ label }}'\n", "target: '{{ options[0] }}'\n"
    found = []
    for kind, right in zip(
        ("multiple_choice", "generate", "perplexity"), (scored[0], scored[1], scored[1]), strict=True
    ):
        text = f"type: {kind}\ndata: rows.jsonl\nprompt: {json.dumps('{{ question }}:' + end)}\n{right}"
        found.append(task(tmp_path, text + "splits: {search: [0, 1], holdout: [1, 2]}\n", rows).items("search")[0])
    assert {item.prompt for item in found} == {f"x:{end.removesuffix(blanks)}"}
    assert found[0].choices == (blanks + "red", blanks + "blue")
    assert [item.target for item in found[1:]] == ["red", blanks + "red"]


def test_perplexity_needs_no_prompt(tmp_path):
    text = "type: perplexity\ndata: rows.jsonl\ntarget: '{{ question }}'\nmetric: bits_per_byte\n"
    one = task(tmp_path, text + "splits: {search: [0, 2], holdout: [2, 4]}\n")
    one.check()
    assert [(item.prompt, item.target) for item in one.items("search")] == [("", "0 + 0?"), ("", "1 + 1?")]
    with pytest.raises(TaskError, match="log-likelihoods"):
        one.score_completion(one.items("search")[0], "x")


def test_splits_may_have_data_of_their_own(tmp_path):
    (tmp_path / "other.csv").write_text('question,answer,n\n"a, b?",7,1\n', encoding="utf-8")
    one = task(tmp_path, GENERATE.replace("[6, 10]", "{data: other.csv}"))
    one.check()
    assert [(item.prompt, item.target) for item in one.items("holdout")] == [("Q: a, b?\nA:", "7")]


def test_shuffle_is_fixed_by_its_seed_and_keeps_splits_apart(tmp_path):
    def prompts(seed):
        one = task(tmp_path, GENERATE + f"shuffle: {seed}\n")
        one.check()
        return [item.prompt for split in ("search", "holdout") for item in one.items(split)]

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)
    assert shuffled(6, 0) == [4, 3, 2, 0, 5, 1]  # pinned: another order is another split
    assert shuffled(3, None) == [0, 1, 2]


def test_completions_end_at_the_first_stop_and_are_scored_by_the_metric(tmp_path):
    one = task(tmp_path, GENERATE + 'stop: ["\\nQ:", "END"]\n')
    item = one.items("search")[0]
    assert item.target == "It is 4"
    assert one.score_completion(item, "2 + 2 is 4.0.\nQ: 5 + 5?\nA: 10") == 1.0
    assert one.score_completion(item, "4 END 5\nQ: 6") == 1.0
    assert one.score_completion(item, "5") == 0.0
    exact = task(tmp_path, GENERATE.replace("metric: last_number\n", "stop: X\n"))
    assert exact.metric == "exact_match"
    assert exact.score_completion(item, " It is 4\nX and more") == 1.0
    pattern = task(tmp_path, GENERATE.replace("last_number", r"{regex: '(It is \d+)'}"))
    assert (pattern.metric, pattern.option) == ("regex", r"(It is \d+)")
    assert pattern.score_completion(item, "I say: It is 4!") == 1.0


def test_a_right_answer_in_another_language_than_required_scores_nothing(tmp_path):
    one = task(tmp_path, GENERATE + "require_language: ja\nstop: 'Q:'\n")
    item = one.items("search")[0]
    assert one.language == "ja"
    assert one.score_completion(item, "2と2を足すと4です。") == 1.0
    assert one.score_completion(item, "2と2を足すと5です。") == 0.0
    assert one.score_completion(item, "If we add two and two, we get 4.") == 0.0
    assert one.score_completion(item, "4") == 0.0
    assert one.score_completion(item, "4\nQ: 2と2を足すと4です。") == 0.0  # what follows the stop does not count


def test_a_pattern_that_backtracks_is_a_fault_with_its_line_and_the_item(tmp_path):
    pattern = "(a|aa)+$"
    one = task(tmp_path, GENERATE.replace("last_number", f"{{regex: '{pattern}'}}"))
    with pytest.raises(EvaluationError) as error:
        one.score_completion(one.items("search")[1], "a" * 300 + "!")
    for words in (
        "task.yaml:5: metric.regex: the pattern",
        pattern,
        "more than 1 s",
        r"'Q: 3 + 3?\nA:'",
        "write it so",
    ):
        assert words in str(error.value)


def test_keys_tell_items_apart_and_stay_the_same(tmp_path):
    rows = [*ROWS[:2], ROWS[1], *ROWS[3:]]
    text = GENERATE.replace("[2, 6]", "[0, 6]")
    keys = [item.key for item in task(tmp_path, text, rows).items("search")]
    assert keys == [item.key for item in task(tmp_path, text, rows).items("search")]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 5
    assert all(len(key) == 64 and int(key, 16) for key in keys)
    # Pinned: a change means that a run cannot go on with its record.
    assert keys[0].startswith("936102b7b3d862d8")


@pytest.mark.parametrize(
    "change",
    [
        ("last_number", "exact_match"),
        ("[2, 6]", "[1, 6]"),
        ("Q: ", "Question: "),
        ("{{ answer }}", "{{ 2 * n }}"),
        ("metric", "chat: true\nmetric"),
        ("metric", "max_new_tokens: 9\nmetric"),
        ("metric", "stop: X\nmetric"),
        ("metric: last_number", "metric: {regex: x}"),
        ("metric: last_number", "metric: {last_number: sakana}"),
        ("metric", "require_language: ja\nmetric"),
    ],
)
def test_the_fingerprint_changes_with_all_that_a_score_depends_on(tmp_path, change):
    first = task(tmp_path, GENERATE).fingerprint("search")
    assert first == task(tmp_path, "name: other\n" + GENERATE).fingerprint("search")
    assert first != task(tmp_path, GENERATE.replace(*change)).fingerprint("search")
    # Pinned: a change means that no search can be resumed.
    assert first.startswith("28fc3564fd35c8f9")


def test_our_own_task_files_load():
    files = sorted((Path(__file__).parent.parent / "eval_tasks").glob("*.yaml"))
    assert {"gsm8k.yaml", "gsm8k_ja.yaml", "arc_challenge.yaml"} <= {file.name for file in files}
    for file in files:
        Task.load(file)
        head = file.read_text(encoding="utf-8").split("\ntype:")[0]
        assert head.startswith("#")
        assert "evomerge" in head


@pytest.mark.parametrize("name", ["gsm8k_ja", "gsm8k_ja_1069"])
def test_the_tasks_of_the_papers_recipes_count_japanese_answers_alone(name):
    one = Task.load(Path(__file__).parent.parent / "eval_tasks" / f"{name}.yaml")
    item = Item("", "", (), "18", (), -1)
    assert one.score_completion(item, "残りは9個なので、9 × 2 = 18ドルです。\n答え: 18") == 1.0
    assert one.score_completion(item, "She sells the other 9 eggs, which gives 9 * 2 = 18 dollars.") == 0.0


def test_arc_rows_render_as_our_task_file_says(tmp_path):
    text = (Path(__file__).parent.parent / "eval_tasks" / "arc_challenge.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("data:", "splits:", "  "))]
    rows = [
        {"question": "q", "choices": {"text": ["sun", "moon"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "r", "choices": {"text": ["1", "2", "3"], "label": ["1", "2", "3"]}, "answerKey": "3"},
    ]
    lines += ["data: rows.jsonl", "splits: {search: [0, 1], holdout: [1, 2]}"]
    one = task(tmp_path, "\n".join(lines), rows)
    one.check()
    assert [(i.choices, i.answer) for i in one.items("search")] == [((" sun", " moon"), 1)]
    assert [(i.choices, i.answer) for i in one.items("holdout")] == [((" 1", " 2", " 3"), 2)]


# What is wrong with a task file


def test_all_faults_of_a_file_are_told_at_once_with_their_lines(tmp_path):
    text = """\
type: generate
data: rows.txt
promt: "{{ question }}"
target: "{{ answer"
metric: last_nmber
chat: yes please
max_new_tokens: 0
choices: [a, b]
shuffle: -1
splits:
  search: [0, 5]
  holdout: [5, 5]
  test: [1, 2]
few_shot: {}
system: x
"""
    found = faults(tmp_path, text)
    for key_words in [
        ("task.yaml:2:", "rows.txt", "not a data file (.jsonl,", "a Hub data set"),
        ("task.yaml:3:", 'unknown key "promt"', 'did you mean "prompt"'),
        ("task.yaml:1:", '"prompt" is missing'),
        ("task.yaml:4:", "target", "not a valid template"),
        ("task.yaml:5:", "last_nmber", 'did you mean "last_number"'),
        ("task.yaml:6:", "chat", "true or false"),
        ("task.yaml:7:", "max_new_tokens", "1 or more"),
        ("task.yaml:8:", "choices", "multiple_choice", "this is generate"),
        ("task.yaml:9:", "shuffle"),
        ("task.yaml:12:", "splits.holdout", "rows [5, 5] are empty"),
        ("task.yaml:13:", 'unknown key "test"'),
        ("task.yaml:14:", "few_shot", '"rows" is missing'),
        ("task.yaml:15:", "system", "chat: true"),
    ]:
        assert any(all(word in fault for word in key_words) for fault in found), (key_words, found)
    assert len(found) == 13, found
    lines = [int(fault.split(":")[1]) for fault in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("change", "key_words"),
    [
        (("type: generate", "type: generat"), (":1: type: ", "'generat'", 'did you mean "generate"')),
        (("type: generate", "type: [generate]"), (":1: type: unknown type ['generate']", 'did you mean "generate"')),
        (("type: generate\n", ""), ('"type" is missing', "perplexity")),
        (("[6, 10]", "[5, 10]"), (":8: splits.holdout", "[5, 10] overlap splits.search", "[2, 6]")),
        (("[6, 10]", "{data: rows.jsonl}"), (":8: splits.holdout", "all rows overlap splits.search")),
        (("[6, 10]", "[-1, 10]"), (":8: splits.holdout", "0 or more")),
        (("[6, 10]", "[6]"), (":8: splits.holdout",)),
        (("[6, 10]", "['6', 10]"), (":8: splits.holdout", "whole number")),
        (("[6, 10]", "[6, 10]\nfew_shot: {rows: [1, 3]}"), (":9: few_shot", "overlap splits.search")),
        (("  holdout: [6, 10]\n", ""), ('"holdout" is missing',)),
        (("data: rows.jsonl\n", ""), ("splits.search", "has no data")),
        (("rows.jsonl", "../some/where"), ("neither a data file", "Hub id")),
        (("rows.jsonl", "openai/gsm8k"), ("not a data file", "a Hub data set needs its split", "split: test")),
        (("rows.jsonl", "{path: rows.jsonl, split: test}"), ('"split" is for data sets on the Hub',)),
        (("rows.jsonl", "{path: rows.jsonl, columns: [a]}"), ('"columns" is for CSV and TSV',)),
        (("rows.jsonl", "{pth: rows.jsonl}"), ('unknown key "pth"', 'did you mean "path"')),
        (("last_number", "{regex: '(a'}"), (":5: metric", "not a regular expression", "position 0")),
        (("last_number", "{regex: '(a)(b)'}"), (":5: metric", "2 groups")),
        (("last_number", "{regex: '(?R)'}"), (":5: metric", "not a regular expression")),
        (("last_number", "{regx: 'a'}"), (':5: metric: there is no metric of completions "regx"', 'mean "regex"')),
        (("last_number", "{regex: [a]}"), (":5: metric: regex: ", "needs a pattern, as text")),
        (("last_number", "{regex:}"), (":5: metric: regex: ", "needs a pattern, as text")),
        (("last_number", "{last_number: strict}"), (":5: metric: last_number: ", "no rule 'strict'; expected sakana")),
        (("last_number", "{exact_match: true}"), (":5: metric: exact_match: ", "takes no option")),
        (("last_number", "{f1: ja, json: a}"), (":5: metric: expected a name, or {NAME: OPTION}",)),
        (("last_number", "3"), (":5: metric: expected a name, or {NAME: OPTION}, found 3",)),
        (("last_number", "{json: name}"), (":5: metric: json: expected a list of keys",)),
        (("last_number", "{rouge_l: [ja]}"), (":5: metric: rouge_l: words cannot be divided for ['ja']",)),
        (("last_number", "accuracy"), ('metric: there is no metric of completions "accuracy"', "one of contains,")),
        (("last_number", "json"), (":4: target: row 2 (from 0)", "'It is 4' is not JSON", "| tojson")),
        (("{{ answer }}", "{{ answer | uper }}"), (":4: target", "No filter named 'uper'", 'did you mean "upper"')),
        (("{{ answer }}", "{% include 'x' %}"), (":4: target", "may not use include")),
        (("{{ answer }}", ""), (":4: target: is empty; write a template",)),
        (("Q: {{ question }}\\nA: ", " {{ '' }}"), (":3: prompt", "is empty")),
        (("metric", "require_language: jp\nmetric"), (":5: require_language: ", '"jp" is not the', 'mean "ja"')),
        (("metric", "require_language: no\nmetric"), (":5: require_language: ", "put it in quotes")),
        (("metric", "require_language: 7\nmetric"), (":5: require_language: expected text, found 7",)),
        (("metric", "name: a/b\nmetric"), (":5: name",)),
        (("metric", "stop: ['']\nmetric"), (":5: stop",)),
    ],
)
def test_each_fault_of_a_file_names_its_place_and_what_to_do(tmp_path, change, key_words):
    found = faults(tmp_path, GENERATE.replace(*change))
    assert any(all(word in fault for word in key_words) for fault in found), found
    assert all("task.yaml" in fault for fault in found)


@pytest.mark.parametrize(
    ("change", "key_words"),
    [
        (('"{{ options }}"', "[one]"), (":4: choices", "a list of at least 2, found ['one']")),
        (('"{{ options }}"', "[yes, no]"), (":4: choices[0]", "expected text, found true; put it in quotes")),
        (('"{{ options }}"', '["{{ a", b]'), (":4: choices[0]", "not a valid template")),
        (('"{{ options }}"', "question"), ("choices", "row 0", "expected a list", "fromjson")),
        (('"{{ options }}"', "optoins"), ("choices", "row 0", "optoins")),
        (("{{ label }}", "{{ 5 }}"), (":5: answer", "is 5", "from 0 to 1")),
        (("splits", "require_language: ja\nsplits"), ("require_language", "of type generate", "multiple_choice")),
        (("{{ label }}", "green"), (":5: answer", "'green'", "a letter from A to B", "'red'")),
        (("{{ label }}", "{{ none }}"), (":5: answer", "is nothing; expected an index")),
        (("splits", "few_shot: {rows: [2, 3], target: x}\nsplits"), ("few_shot.target", "multiple_choice")),
        (("splits", "target: x\nsplits"), ("target", "generate or perplexity", "this is multiple_choice")),
    ],
)
def test_each_fault_of_multiple_choice_names_its_place(tmp_path, change, key_words):
    rows = [{"question": q, "options": ["red", "blue"], "label": 0} for q in ("x", "y", "z")]
    found = faults(tmp_path, CHOICE.replace(*change), rows)
    assert any(all(word in fault for word in key_words) for fault in found), found


@pytest.mark.parametrize("label", ["1", "B"])
def test_an_answer_with_two_meanings_is_refused(tmp_path, label):
    rows = [{"question": q, "options": ["1", "B", "A"], "label": label} for q in ("x", "y")]
    rows = [row | {"options": ["1", "2"] if label == "1" else ["B", "C"]} for row in rows]
    found = faults(tmp_path, CHOICE, rows)
    assert len(found) == 2  # one a split
    assert "the text of choice 0" in found[0]
    assert "1; make it a number" in found[0]


@pytest.mark.parametrize(
    ("options", "key_words"),
    [
        (["red", " "], "choice 1 is empty"),
        (["red"], "two or more texts"),
        ([["a"], "b"], "two or more texts"),
        (["red", "blue", " red"], "row 0 (from 0) of rows.jsonl: choices 0 and 2 are both 'red'"),
    ],
)
def test_choices_that_cannot_be_chosen_from_are_refused(tmp_path, options, key_words):
    rows = [{"question": q, "options": options, "label": 0} for q in ("x", "y")]
    assert key_words in " ".join(faults(tmp_path, CHOICE, rows))


# What is wrong with the data


def test_a_missing_field_is_named_with_the_nearest_once_for_all_rows(tmp_path):
    found = faults(tmp_path, GENERATE.replace("{{ question }}", "{{ questoin }}"))
    assert len(found) == 2  # one a split
    assert found[0].startswith("task.yaml:3: prompt: row 2 (from 0) of rows.jsonl: ")
    for word in ('"questoin" is not a field', 'did you mean "question"', "question, answer, n", "and 3 more rows"):
        assert word in found[0]


def test_nulls_empty_targets_and_targets_without_a_number_are_faults(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[3]["answer"] = None
    rows[4]["answer"] = "  "
    rows[5]["answer"] = "none"
    found = faults(tmp_path, GENERATE, rows)
    assert len(found) == 3
    assert "row 3" in found[0]
    assert 'null would be printed as "None"' in found[0]
    assert "row 4" in found[1]
    assert "is empty" in found[1]
    assert "row 5" in found[2]
    assert "'none' has no number" in found[2]


def test_half_a_character_is_a_fault(tmp_path):
    rows = [row | {"question": f"\ud83d {row['n']}"} for row in ROWS]
    assert "half a character" in faults(tmp_path, GENERATE, rows)[0]


def test_a_question_in_both_splits_is_a_fault_that_shows_the_first(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[7]["question"] = rows[3]["question"] + "  "  # white space does not make another question
    rows[9]["question"] = rows[2]["question"]
    rows[9]["answer"] = "It is 5"
    found = one_fault(tmp_path, GENERATE, rows)
    assert found.startswith("task.yaml:8: splits.holdout: 2 of its questions are in splits.search too")
    for word in ("'Q: 3 + 3? A:'", "row 7 (from 0) of rows.jsonl here", "row 3 of rows.jsonl there"):
        assert word in found


def test_a_question_in_a_split_and_the_examples_is_a_fault(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[0]["question"] = rows[8]["question"]
    found = one_fault(tmp_path, GENERATE + "few_shot: {rows: [0, 2]}\nchat: true\n", rows)
    assert "splits.holdout" in found
    assert "few_shot too" in found


def test_a_question_twice_in_one_split_is_allowed(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[4] = rows[3]
    task(tmp_path, GENERATE, rows).check()


def test_choices_in_another_order_are_the_same_question(tmp_path):
    rows = [{"question": "x", "options": options, "label": 0} for options in (["a", "b"], ["b", "a"])]
    assert "1 of its questions" in one_fault(tmp_path, CHOICE, rows)
    rows[1]["options"] = ["c", "b"]
    task(tmp_path, CHOICE, rows).check()


def test_ranges_past_the_end_and_empty_data_are_faults_told_together(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    text = GENERATE.replace("[2, 6]", "{data: empty.jsonl}").replace("[6, 10]", "[5, 12]")
    found = faults(tmp_path, text + "few_shot: {rows: [20, 21]}\n")
    assert len(found) == 3
    assert "task.yaml:8: splits.holdout: rows [5, 12], but rows.jsonl has 10 rows; end at 10 or less" in found
    assert any("task.yaml:7: splits.search: is empty: empty.jsonl has no rows" in fault for fault in found)
    assert any("few_shot.rows: rows [20, 21], but" in fault for fault in found)
    with pytest.raises(TaskError, match="end at 10 or less"):
        task(tmp_path, text).items("holdout")


def test_bad_json_lines_are_named_by_line(tmp_path):
    path = write(tmp_path, GENERATE)
    good = json.dumps({"question": "a\u2028b", "answer": "1"}, ensure_ascii=False)
    lines = [good, "", "{bad", "[1]", "null", '{"n": ' + "9" * 5000 + "}", "[" * 100_000]
    (tmp_path / "rows.jsonl").write_bytes(("\n".join(lines) + "\n").encode() + b'{"a": "\xff"}\n')
    with pytest.raises(TaskError) as error:
        Task.load(path).items("search")
    data = tmp_path / "rows.jsonl"
    assert [fault.split(":")[1] for fault in error.value.faults] == ["3", "4", "5", "6", "7", "8"]
    assert all(fault.startswith(f"{data}:") for fault in error.value.faults)
    for fault, word in zip(
        error.value.faults, ["not JSON", "found a list", "found null", "digits", "nested", "UTF-8"], strict=True
    ):
        assert word in fault


def test_many_faults_of_a_file_are_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("bad\n" * 1000, encoding="utf-8")
    with pytest.raises(TaskError) as error:
        read_rows(path)
    assert len(error.value.faults) == 11
    assert "990 more faults" in error.value.faults[-1]


@pytest.mark.parametrize(
    ("name", "content", "key_words"),
    [
        ("x.csv", b"a,b\n1,2\n3\n", ":3: too few columns: 1 of 2 columns (a, b)"),
        ("x.csv", b"a,b\n1,2,3\n", ":2: too many columns: 3 of 2"),
        ("x.csv", b"a,a\n1,2\n", ':1: column "a" is repeated'),
        ("x.csv", b"a,\n1,2\n", ":1: a column without a name"),
        ("x.csv", b'a,b\n"1,2\n', "unexpected end of data"),
        ("x.csv", b"a,b\n1,\xff\n", ":2: not UTF-8"),
        ("x.csv", b"a\n" + b"x" * 200_000 + b"\n", "field larger"),
        ("x.tsv", b"a\tb\n1\n", ":2: too few columns"),
        ("x.json", b'{"a": 1}', ":1: expected a list of mappings, found a mapping"),
        ("x.json", b'[{"a": 1}, 2]', "row 1: expected a mapping of fields, found a number"),
        ("x.json", b'[\n{"a" 1}]', ":2: not JSON"),
        ("x.parquet", b"PAR1 no", "not a Parquet file"),
        ("x.parquet", b"", "not a Parquet file"),
    ],
)
def test_unreadable_data_names_file_and_line(tmp_path, name, content, key_words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError) as error:
        read_rows(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert key_words in str(error.value)


def test_a_missing_data_file_is_told_with_the_line_that_names_it(tmp_path):
    found = faults(tmp_path, GENERATE.replace("[6, 10]", "{data: gone.csv}"))
    assert len(found) == 1
    for word in ("task.yaml:8: splits.holdout.data", "gone.csv", "No such file"):
        assert word in found[0]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_data_that_is_no_regular_file_is_refused_at_once(tmp_path, name, make):
    make(tmp_path / name)
    found = faults(tmp_path, GENERATE.replace("[6, 10]", f"{{data: {name}}}"))
    assert len(found) == 1
    for word in ("task.yaml:8: splits.holdout.data", name, "expected a regular file"):
        assert word in found[0]


@pytest.mark.parametrize("name", ["x\\0.jsonl", "x" * 5000 + ".jsonl"])
def test_a_path_that_cannot_be_is_told_with_its_line(tmp_path, name):
    found = one_fault(tmp_path, GENERATE.replace("[6, 10]", f'{{data: "{name}"}}'))
    assert "task.yaml:8: splits.holdout.data" in found
    assert "cannot be read" in found


def test_all_formats_give_the_same_rows(tmp_path):
    rows = [{"question": 'a, "b"', "answer": "é"}, {"question": "two\nlines", "answer": "1"}]
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "x.json").write_text(json.dumps(rows), encoding="utf-8")
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        found = read_rows(tmp_path / f"x.{suffix}")
        assert [{key: value.replace("\r\n", "\n") for key, value in row.items()} for row in found] == rows


def test_tsv_has_no_quoting_and_files_without_header_get_names(tmp_path):
    (tmp_path / "x.tsv").write_text('"Hi," he said\t5\nan "odd quote\t6\n', encoding="utf-8")
    assert read_rows(tmp_path / "x.tsv", ["question", "answer"]) == [
        {"question": '"Hi," he said', "answer": "5"},
        {"question": 'an "odd quote', "answer": "6"},
    ]


def test_numbers_of_json_stay_numbers_and_those_of_csv_stay_text(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1, "b": 0.5, "c": "01"}', encoding="utf-8")
    assert read_rows(tmp_path / "x.jsonl") == [{"a": 1, "b": 0.5, "c": "01"}]
    (tmp_path / "x.csv").write_text("a,b\n1,01\n", encoding="utf-8")
    assert read_rows(tmp_path / "x.csv") == [{"a": "1", "b": "01"}]


def test_hub_data_that_cannot_be_had_is_one_clear_fault(tmp_path):
    # conftest.py keeps the Hub out of reach, as a machine without a network does.
    text = GENERATE.replace("rows.jsonl", "{path: nobody-evomerge/no-such-data, split: test}")
    found = one_fault(tmp_path, text)
    for word in ("task.yaml:2: data", "data set nobody-evomerge/no-such-data, test", "cannot be loaded"):
        assert word in found


def test_a_folder_with_a_loading_script_is_not_taken_for_a_hub_data_set(tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text("raise SystemExit('code was run')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = one_fault(tmp_path, GENERATE.replace("rows.jsonl", "{path: evil, split: test}"))
    assert "local file or folder has the same name" in found


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3), max_size=5))
def test_json_lines_come_back_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_rows(path) == rows


# Templates

ROW = {"question": "Q?", "n": 3, "null": None, "options": ["a", "b"], "a b": 5}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{ question }}\n", "Q?\n"),
        ("{{ n }}{{ row['a b'] }}", "35"),
        ("{% for o in options %}{{ loop.index }}{{ o }}{% if not loop.last %}, {% endif %}{% endfor %}", "1a, 2b"),
        ("{{ options | join('/') }}{{ question ~ n }}", "a/bQ?3"),
        ("{{ question.replace('?', '!').split('!')[0] }}", "Q"),
        ("{{ null | default('none', true) }}", "none"),
        ("{{ options | tojson }}", '["a", "b"]'),
        ("{{ ('[1]' | fromjson)[0] + 1 }}", "2"),
        ("{% set s = namespace(t=0) %}{% for i in range(4) %}{% set s.t = s.t + i %}{% endfor %}{{ s.t }}", "6"),
        ("{{ '<' }}", "<"),
        ("no template", "no template"),
    ],
)
def test_templates_shape_text(text, rendered):
    assert Template(text).render(ROW) == rendered


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ question|attr('__class__') }}",
        "{{ options|map(attribute='__class__')|list }}",
        "{{ row.__class__ }}",
        "{{ range.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self }}",
        "{{ range }}",
        "{{ options | map('upper') }}",
        "{{ options.append('c') }}",
        "{{ row.update(a=1) }}",
        "{{ lipsum(n=10**9) }}",
        "{{ options | random }}",
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [1] * 10**9 }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ ('a'*1000).replace('a', 'b'*100000) }}",
        "{{ ('a'*1000)|replace('a', 'b'*100000) }}",
        "{{ ('a'*100000).join(range(1000)|list) }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{{ 9**(9**9) }}",
        "{{ options|batch(100000000, 'x')|list }}",
        "{{ ([[1]*1000]*1000)|sum(start=[]) }}",
        "{{ [[[1]*1000]*1000]*1000 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
        "{% for i in range(10000) %}{{ range(100000) | map('string') | list | length }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
        "{% macro m() %}{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endmacro %}{{ m() }}",
        "{% set x = 'a' * 900000 %}{% set s = namespace(a=[]) %}{% for i in range(9999) %}"
        "{% set s.a = [s.a, x.upper()] %}{% endfor %}",
        "{% set x = 'a' * 900000 %}{% set s = namespace(a=1) %}{% for i in range(9999) %}"
        "{% set s.a = [s.a, x[1:]] %}{% endfor %}",
        "{% set a = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set a.x = [a.x, a.x] %}"
        "{% set a.y = [a.y, a.y] %}{% endfor %}{{ a.x == a.y }}",
        "{{ range(100000) | list | tojson }}{{ ([[1] * 1000] * 100) | tojson(indent=1000) }}",
        "{{ [1, 2] | tojson(separators=('a' * 999999, 'b')) }}",
        "{{ 0.5 | round(10**9, 'ceil') }}",
        "{% for i in range(5000) %}{{ 'a' * 1000000 }}{% endfor %}",
        "{% set s=namespace(a='x') %}{% for i in range(60) %}{% set s.a = s.a ~ s.a %}{% endfor %}{{ s.a }}",
        "{% set s=namespace(a='x') %}{% for i in range(60) %}{% set s.a = s.a + s.a %}{% endfor %}{{ s.a }}",
        "{% set s=namespace(a=[1]) %}{% for i in range(60) %}{% set s.a=[s.a,s.a] %}{% endfor %}{{ s.a }}",
        "{% set s=namespace(a=9) %}{% for i in range(60) %}{% set s.a = s.a * s.a %}{% endfor %}{{ s.a }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ ('[' * 100000) | fromjson }}",
        "x" * 100_001,
        "{{ 1 / 0 }}",
        "{{ question.missing }}",
        "{{ null }}",
        "{{ question ~ null }}",
        "{{ question",
    ],
)
def test_hostile_and_wrong_templates_are_refused_quickly(text):
    start = time.perf_counter()
    with pytest.raises(TemplateError):
        Template(text).render(ROW)
    # Far more than it takes, as processes are started for it, and far less than the loops would.
    assert time.perf_counter() - start < 60


def test_after_a_template_that_was_stopped_the_next_ones_are_rendered():
    for stopped in (
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
    ):
        with pytest.raises(TemplateError, match="more than"):
            Template(stopped).render(ROW)
        assert Template("{{ n }}").render(ROW) == "3"


def test_an_interrupted_rendering_does_not_answer_for_the_next():
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        slow = Template("{% for i in range(99999) %}{% for j in range(9) %}{% endfor %}{% endfor %}slow")
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            slow.render(ROW)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert Template("{{ n }}").render(ROW) == "3"


def test_templates_are_rendered_from_several_threads():
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: Template("{{ n }}").render({"n": n}), range(200))
    assert list(found) == [str(n) for n in range(200)]


def test_rows_hold_any_data_that_can_be_copied():
    row = {"day": datetime.date(2020, 2, 3), "price": Decimal("1.50"), "bytes": b"x"}
    assert Template("{{ day }} {{ price }} {{ bytes.decode() }}").render(row) == "2020-02-03 1.50 x"
    with pytest.raises(TemplateError, match="not plain data"):
        Template("{{ day }}").render({"day": lambda: None})


def test_of_an_object_that_is_no_data_only_the_name_of_its_type_is_sent():
    class Picture:
        def __reduce__(self):
            raise AssertionError("it is sent")

    row = {"question": "Q?", "picture": Picture(), "all": [Picture()], "at": datetime.datetime.now(ZoneInfo("UTC"))}
    assert Template("{{ question }} {{ at.year }}").render(row).startswith("Q? 2")
    for text in ("{{ picture }}", "{{ all }}"):
        with pytest.raises(TemplateError, match="Picture"):
            Template(text).render(row)


@pytest.fixture
def worker():
    one = templates._Worker()
    yield one
    if one._process is not None:
        one._process.kill()
        one._process.communicate()


def test_a_signal_that_the_parent_ignores_still_stops_a_template(worker):
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        worker.ask("", "text", None)
        threading.Timer(5, worker._process.kill).start()
        with pytest.raises(TemplateError, match="more than"):
            worker.ask("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "text", {})
    finally:
        signal.signal(signal.SIGPROF, before)


def test_an_interrupt_of_the_whole_group_does_not_reach_the_worker(worker):
    worker.ask("", "text", None)
    assert os.getpgid(worker._process.pid) != os.getpgrp()


def test_a_process_that_cannot_be_started_is_a_fault(worker, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/none")
    with pytest.raises(TemplateError, match="cannot be started"):
        worker.ask("", "text", None)


def test_a_forked_process_renders_whatever_other_threads_were_doing():
    with templates._WORKER._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            os._exit(Template("{{ n }}").render(ROW) != "3")
    assert os.waitpid(child, 0)[1] == 0


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_template_or_refused(text):
    with contextlib.suppress(TemplateError):
        Template(text).render(ROW)


@settings(deadline=None)
@given(st.text() | st.integers() | st.lists(st.integers()) | st.floats(allow_nan=False))
def test_a_lone_expression_keeps_its_value(value):
    kept = Template("{{ x }}").value({"x": value})
    assert kept is value or kept == value
    assert Template("{{ x }}").render({"x": value}) == str(value)


def test_a_field_may_have_any_name():
    row = {"result": [1], "row": [2], "self": [3], "loop": [4]}
    assert [Template(f"{{{{ {name} }}}}").value(row) for name in ("result", "loop", "row['self']")] == [[1], [4], [3]]


SEEN = """\
type: generate
data: rows.jsonl
images: [picture]
chat: true
prompt: "{{ q }}"
target: "{{ a }}"
splits: {search: [0, 1], holdout: [1, 2]}
"""


def png(colour: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(written, format="PNG")
    return written.getvalue()


def test_images_are_read_from_files_bytes_and_lists(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(png(1))
    rows = [{"q": "what?", "a": "x", "picture": value} for value in ("one.png", ["one.png", "one.png"])]
    made = task(tmp_path, SEEN, rows)
    made.check()  # The same question about other pictures is another question.
    (one,), (two,) = made.items("search"), made.items("holdout")
    assert [picture.data for picture in one.pictures] == [png(1)]
    assert one.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert [part["type"] for part in two.messages[0]["content"]] == ["image", "image", "text"]
    assert (one.question, str(one)) == ("what?", "'what?'")
    assert two.pictures[0].opened().getpixel((0, 0)) == (1, 0, 0)
    # As data sets on the Hub have them, and as Parquet files of them do.
    table = pyarrow.table({"q": ["what?"] * 2, "a": ["x"] * 2, "picture": [{"bytes": png(n)} for n in (1, 2)]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "task.yaml").write_text(SEEN.replace("rows.jsonl", "rows.parquet"))
    stored = Task.load(tmp_path / "task.yaml")
    assert stored.items("search")[0].key == one.key
    assert stored.fingerprint("holdout") != made.fingerprint("holdout")


def test_images_of_a_data_set_are_taken_as_they_are_opened():
    (found,) = pictures_in(Image.new("RGB", (2, 2), (7, 8, 9)), Path())
    assert found.opened().getpixel((1, 1)) == (7, 8, 9)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (SEEN.replace("chat: true", "chat: false"), "one.png", "task.yaml:3: images: needs a chat"),
        (
            SEEN.replace("[picture]", "[pictur]"),
            "one.png",
            'images: row 0 (from 0) of rows.jsonl: there is no column "pictur"',
        ),
        (SEEN.replace("[picture]", "[]"), "one.png", "task.yaml:3: images"),
        (SEEN.replace("type: generate", "type: perplexity"), "one.png", "images: is for tasks of type generate or"),
        (SEEN, "two.png", "picture: two.png: cannot be read: no such file"),
        (SEEN, ".", "picture: .: cannot be read: no such file"),
        (SEEN, "rows.jsonl", "picture: rows.jsonl: not an image that can be decoded"),
        (SEEN, 5, "picture: expected an image (a file's path, or its bytes), found int"),
        (SEEN, [], "picture: has no image"),
        (SEEN.replace("{{ q }}", "{{ q }} {{ picture }}"), "one.png", "prompt"),
    ],
)
def test_what_is_wrong_with_images_is_said(tmp_path: Path, text: str, value: object, expected: str):
    (tmp_path / "one.png").write_bytes(png(1))
    with pytest.raises(TaskError) as caught:
        task(tmp_path, text, [{"q": str(i), "a": "x", "picture": value} for i in range(2)]).check()
    assert expected in str(caught.value)


def test_the_same_question_about_the_same_image_is_in_one_split_only(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(png(1))
    with pytest.raises(TaskError, match="holdout"):
        task(tmp_path, SEEN, [{"q": "what?", "a": "x", "picture": "one.png"}] * 2).check()


def test_the_rows_of_a_split_on_the_hub_are_known_without_reading_them():
    tasks = Path(__file__).parent.parent / "eval_tasks"
    gsm8k = {"path": "openai/gsm8k", "name": "main", "revision": None}
    task = Task.load(tasks / "gsm8k.yaml")
    assert task.hub_rows("search") == {**gsm8k, "split": "train", "rows": [4, 260]}
    assert task.hub_rows("holdout") == {**gsm8k, "split": "test", "rows": None}
    assert Task.load(tasks / "quickstart_addition.yaml").hub_rows("holdout") is None


# Local files in place of data sets on the Hub

MGSM_ROWS = "Wie viel ist 1 + 1?\t2\nWie viel ist 2 + 2?\t1,234\n"


def test_shipped_task_files_read_local_files_in_place_of_the_hub(tmp_path):
    tasks = Path(__file__).parent.parent / "eval_tasks"
    rows = [{"question": f"{i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(300)]
    for name, some in {"train": rows[:260], "test": rows[260:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "mgsm.tsv").write_text(MGSM_ROWS)
    gsm8k = {f"openai/gsm8k:{name}": tmp_path / f"{name}.jsonl" for name in ("train", "test")}
    one = Task.load(tasks / "gsm8k.yaml", gsm8k)
    one.check()
    assert [len(one.items("search")), len(one.items("holdout"))] == [256, 40]
    assert one.hub_rows("holdout") is None
    german = Task.load(tasks / "mgsm_de.yaml", {**gsm8k, "juletxara/mgsm:de": tmp_path / "mgsm.tsv"})
    german.check()
    assert [item.target for item in german.items("holdout")] == ["2", "1,234"]
    assert german.items("search")[1].target == rows[1]["answer"]


HUB = """\
type: generate
data: {path: owner/set, name: main, split: train}
prompt: "{{ question }}"
target: "{{ answer }}"
splits: {search: [0, 2], holdout: {data: {path: owner/set, name: main, split: test}}}
"""


def hub_task(folder: Path, files: dict[str, str]) -> Task:
    write(folder, HUB)
    return Task.load(folder / "task.yaml", {key: folder / file for key, file in files.items()})


def test_the_most_specific_entry_of_a_data_set_wins(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    made = hub_task(tmp_path, {"owner/set": "rows.jsonl", "owner/set:test:main": "test.jsonl"})
    assert [len(made.items("search")), len(made.items("holdout"))] == [2, 1]


def test_the_fingerprint_follows_the_content_of_local_files_not_their_names(tmp_path):
    files = {"owner/set:train": "rows.jsonl", "owner/set:test": "test.jsonl"}
    first = hub_task(tmp_path, files).fingerprint("search")
    (tmp_path / "moved.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    assert hub_task(tmp_path, {**files, "owner/set:train": "moved.jsonl"}).fingerprint("search") == first
    (tmp_path / "moved.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 2)
    assert hub_task(tmp_path, {**files, "owner/set:train": "moved.jsonl"}).fingerprint("search") != first


@pytest.mark.parametrize(
    ("files", "key_words"),
    [
        ({"owner/set": "rows.jsonl"}, ["owner/set:main:train and owner/set:main:test", "a file for each"]),
        ({"owner/set:train": "rows.txt"}, ["rows.txt", "owner/set:train", ".jsonl"]),
        ({"owner/set:train": "none.jsonl"}, ["task.yaml:2", "none.jsonl", "No such file"]),
    ],
)
def test_local_files_that_cannot_stand_for_a_data_set_are_faults(tmp_path, files, key_words):
    with pytest.raises(TaskError) as raised:
        hub_task(tmp_path, files).items("search")
    for word in key_words:
        assert word in str(raised.value)


@pytest.mark.parametrize("key", ["owner/sets:train", "owner/set:validation", "owner/set:train:other"])
def test_a_local_file_that_no_task_reads_is_a_fault_that_lists_the_data_sets(tmp_path, key):
    with pytest.raises(TaskError, match=rf"{key}: no task reads .*owner/set:main:train"):
        check_used({key: "rows.jsonl"}, [hub_task(tmp_path, {key: "rows.jsonl"})])


def test_a_file_does_not_stand_for_a_slice_of_a_data_set(tmp_path):
    write(tmp_path, HUB.replace("split: train", "split: 'train[:50]'"))
    made = Task.load(tmp_path / "task.yaml", {"owner/set:train": "x.jsonl", "owner/set:test": "y.jsonl"})
    assert made.replaced == {"owner/set:test"}


# Test sets


@pytest.mark.parametrize(
    ("path", "split", "is_test"),
    [
        ("openai/gsm8k", "test", True),
        ("OpenAI/GSM8K", "train+test[:10]", True),
        ("openai/gsm8k", "train", False),
        ("Rowan/hellaswag", "validation", True),
        ("allenai/ai2_arc", "validation", False),
        ("SakanaAI/gsm8k-ja-test_250-1319", "test", False),
    ],
)
def test_well_known_test_sets_are_known(tmp_path, path, split, is_test):
    write(tmp_path, HUB.replace("owner/set, name: main, split: train", f"{path}, split: '{split}'"))
    assert Task.load(tmp_path / "task.yaml").searches_test_set is is_test


def test_no_shipped_task_searches_on_a_test_set():
    files = sorted((Path(__file__).parent.parent / "eval_tasks").glob("*.yaml"))
    assert [file.stem for file in files if Task.load(file).searches_test_set] == []


def test_mgsm_is_the_same_in_all_its_languages():
    tasks = Path(__file__).parent.parent / "eval_tasks"
    names = {
        "bn": "Bengali",
        "de": "German",
        "en": "English",
        "es": "Spanish",
        "fr": "French",
        "ja": "Japanese",
        "ru": "Russian",
        "sw": "Swahili",
        "te": "Telugu",
        "th": "Thai",
        "zh": "Chinese",
    }
    assert {path.stem for path in tasks.glob("mgsm_*.yaml")} == {f"mgsm_{code}" for code in names}
    found = []
    for code, name in names.items():
        data = yaml.safe_load((tasks / f"mgsm_{code}.yaml").read_text())
        data["prompt"] = data["prompt"].replace(f"in {name}.", "in X.")
        assert data["splits"]["holdout"]["data"].pop("name") == code
        if code == "ja":
            data["splits"]["search"] = found[0]["splits"]["search"]  # the paper's
        found.append(data)
    assert all(data == found[0] for data in found)
