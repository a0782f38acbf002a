"""YAML text in, a checked model out, and every fault with its place."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator

from evomerge.document import MAX_BYTES, Source, Strict, _Dumper, parse, read, spelled, suggestion, to_yaml, validate
from evomerge.errors import DocumentError, RecipeError


class Source_(Strict):
    model: str
    weight: float = 1.0


class Document(Strict):
    method: str
    seed: Annotated[int, Field(ge=0)] = 0
    sources: tuple[Source_ | str, ...] = ()
    base: Source_ | None = None
    parameters: dict[str, float] | None = None

    @field_validator("method")
    @classmethod
    def known(cls, method: str) -> str:
        if method not in {"linear", "ties"}:
            raise ValueError(f"unknown method {method}{suggestion(method, ['linear', 'ties'])}")
        return method


def faults(text: str, model: type[Strict] = Document) -> list[str]:
    with pytest.raises(DocumentError) as error:
        validate(parse(text, "a.yaml"), model)
    assert str(error.value) == "\n".join(error.value.faults)
    return list(error.value.faults)


def refused(text: str) -> str:
    with pytest.raises(DocumentError) as error:
        parse(text, "a.yaml")
    assert len(error.value.faults) == 1
    return error.value.faults[0]


def test_a_good_document_becomes_its_model():
    text = "method: ties\nsources:\n  - {model: a, weight: 1e-3}\n  - b\nparameters: {density: .5}\n"
    document = validate(parse(text, "a.yaml"), Document)
    assert document.sources == (Source_(model="a", weight=0.001), "b")
    assert document.parameters == {"density": 0.5}


def test_all_faults_are_told_at_once_with_line_path_and_nearest_key():
    text = """\
metod: ties
seed: -1
sources:
  - model: a
    wieght: 2
base:
  weight: heavy
parameters:
  density: [1]
"""
    found = faults(text)
    assert set(found) >= {
        'a.yaml:1: "method" is missing; add it',
        'a.yaml:1: metod: unknown key "metod"; did you mean "method"?',
        "a.yaml:2: seed: expected 0 or more, found -1",
        'a.yaml:5: sources[0].wieght: unknown key "wieght"; did you mean "weight"?',
        'a.yaml:6: base: "model" is missing; add it',
    }
    assert any(fault.startswith("a.yaml:7: base.weight: expected a number") for fault in found)
    assert any(fault.startswith("a.yaml:9: parameters.density: expected a number, found [1]") for fault in found)


def test_a_key_that_is_near_to_none_is_told_the_known_ones():
    assert faults("method: ties\nzzz: 1\n") == [
        'a.yaml:2: zzz: unknown key "zzz"; expected one of base, method, parameters, seed, sources'
    ]


def test_a_validators_own_words_are_kept():
    assert faults("method: tise\n") == ['a.yaml:1: method: unknown method tise; did you mean "ties"?']


@pytest.mark.parametrize(("text", "found"), [("[1]", "a list"), ("text", "text"), ("3", "a number"), ("~", "null")])
def test_a_document_is_a_mapping(text, found):
    assert f"expected a mapping of keys to values, found {found}" in faults(text)[0]


def test_an_empty_document_misses_its_keys():
    assert faults("") == ['a.yaml:1: "method" is missing; add it']
    assert faults("# only a comment\n") == ['a.yaml:1: "method" is missing; add it']


def test_a_fault_beside_the_known_lines_gets_the_nearest_parents():
    source = parse("a:\n  b:\n    - 1\n", "x")
    assert source.fault(("a", "b", 0, "c"), "no") == "x:3: a.b[0].c: no"
    assert source.fault(("a", "z"), "no") == "x:1: a.z: no"
    assert source.fault((), "no") == "x:1: no"
    assert Source("x", {}, {}).fault(("q",), "no") == "x:1: q: no"
    assert spelled(("slices", 2, "sources", 0)) == "slices[2].sources[0]"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100_000.0),
        ("-2e+3", -2000.0),
        ("1.5e3", 1500.0),
        ("1.", 1.0),
        ("10", 10),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1e-3x", "1e-3x"),
        ('"1e-3"', "1e-3"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        (".inf", float("inf")),
        ("yes", True),
        ("~", None),
        ("!!str 1", "1"),
    ],
)
def test_scalars_are_read_as_people_mean_them(text, value):
    found = parse(f"a: {text}", "x").data["a"]
    assert (type(found), found) == (type(value), value)


def test_keys_are_text_and_merge_keys_merge():
    text = "d: &d {a: 1, b: 2}\ne: &e {b: 3, c: 4}\nf: {<<: [*d, *e], a: 0}\n1: x\nyes: y\n"
    data = parse(text, "x").data
    assert data["f"] == {"a": 0, "b": 2, "c": 4}
    assert data["1"] == "x"
    assert data["yes"] == "y"
    assert "merges mappings" in refused("a: {<<: 3}")


def test_a_repeated_key_is_refused_with_its_line():
    assert refused("a: 1\nb:\n  c: 1\n  c: 2\n") == 'a.yaml:4: the key "c" is repeated; keep one'


def test_a_yaml_bomb_is_refused_before_it_takes_memory():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    start = time.thread_time()
    assert "once aliases are expanded" in refused("\n".join(lines))
    merges = ["m0: &m0 {k0: 1}"]
    merges += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    assert "once aliases are expanded" in refused("\n".join(merges))
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: [*a]}", "a: &a\n  <<: *a\n"])
def test_an_alias_that_contains_itself_is_refused(text):
    assert "contains itself" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch was_run']",
        "a: !!python/object/new:os.system ['touch was_run']",
        "!!python/object:os.X {a: 1}",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
        "a: !!python/tuple [1]",
        "a: !custom {b: 1}",
        "a: !!set {b, c}",
        "a: !!binary aGk=",
        "a: !!timestamp 2024-01-01",
        "a: !!str [1]",
    ],
)
def test_tags_that_are_not_plain_data_are_refused_and_run_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("first: 1\n" + text if text.startswith("a") else text)
    assert "is not plain data" in message
    assert message.startswith("a.yaml:2:" if text.startswith("a") else "a.yaml:1:")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("text", "line", "key_words"),
    [
        ("a: 1\nb: [1, 2\n", 3, "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "cannot start any token"),
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("a: *b\n", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("a: 1\n? [1]\n: 2\n", 2, "a key must be plain text"),
        ("a: 1\nb: !!bool x\n", 2, '"x" cannot be read as bool'),
        ("a: 1\nb: !!int ''\n", 2, "cannot be read as int"),
        ("a: 1\nb: " + "9" * 5000, 2, "cannot be read as int"),
        ("a: 1\nb: \0\n", 2, "U+0000"),
        ("a: \ud800\n", 1, "U+D800"),
        ("[" * 5000, 1, "nested too deeply"),
        ("a: " + "x" * MAX_BYTES, 1, "at most 4,000,000"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text, line, key_words):
    message = refused(text)
    assert message.startswith(f"a.yaml:{line}: ")
    assert key_words in message
    assert len(message) < 300


def test_files_that_cannot_be_read_are_told(tmp_path):
    for name, content, key_words in [
        ("gone.yaml", None, "No such file"),
        ("latin.yaml", b"a: \xe9", "not UTF-8 text (byte 3)"),
        ("long.yaml", b"#" * (MAX_BYTES + 1), "at most 4,000,000"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DocumentError) as error:
            read(tmp_path / name)
        assert key_words in str(error.value)
        assert str(error.value).startswith(str(tmp_path / name))
    for path in (tmp_path, tmp_path / ("x" * 5000), Path("a\0b"), Path("/dev/zero")):
        with pytest.raises(DocumentError, match=r"cannot be read|at most 4,000,000"):
            read(path)
    (tmp_path / "mark.yaml").write_bytes("\ufeffa: é".encode())
    assert read(tmp_path / "mark.yaml").data == {"a": "é"}


def test_faults_are_of_the_kind_asked_for(tmp_path):
    for act in (
        lambda: parse("[", "x", RecipeError),
        lambda: read(tmp_path / "gone", RecipeError),
        lambda: validate(parse("{}", "x"), Document, RecipeError),
    ):
        with pytest.raises(RecipeError):
            act()


def faults_of(text: str) -> tuple[str, ...]:
    try:
        validate(parse(text, "x"), Document)
    except DocumentError as error:
        return error.faults
    return ()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@example({"": "0E0"})
@given(st.dictionaries(st.text(), plain, max_size=4))
def test_plain_data_comes_back_from_yaml(data):
    # Not by PyYAML's own dumper: it leaves text such as 0E0 bare, which is a number to those who write YAML.
    for text in (to_yaml(data), yaml.dump(data, Dumper=_Dumper, default_flow_style=False)):
        assert parse(text, "x").data == data


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab10-:[]{}&*!?|>%@#'\"\n\t <=,.~e"), max_size=40) | st.text())
def test_any_text_is_read_or_refused(text):
    assert all(fault.startswith("x:") for fault in faults_of(text))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["!!int", "!!bool", "!!null", "!!float", "&a", "*a", "<<:", "a:", "-", "1", "''"])))
def test_any_tags_and_anchors_are_read_or_refused(parts):
    for joined in (" ".join(parts), "\n".join(parts), f"[{', '.join(parts)}]"):
        assert all(fault.startswith("x:") for fault in faults_of(joined))
