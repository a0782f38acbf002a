"""How completions are scored, and above all how numbers are read."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.metrics import accuracy, choice_length, exact_match, last_number, number_in, regex_match


def test_exact_match_ignores_white_space_around_and_nothing_else():
    assert exact_match(" Paris\n", "Paris") == 1.0
    assert exact_match("paris", "Paris") == 0.0
    assert exact_match("Paris.", "Paris") == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 5 apples and 7 pears.", "7"),
        ("The answer is 18.", "18"),
        ("1,234.50", "1234.5"),
        ("1,234,567", "1234567"),
        ("$1,234,567.89.", "1234567.89"),
        ("1\u202f234\u202f567", "1234567"),
        ("1\u00a0234,5", "5"),  # English: a comma is no decimal point
        ("12 345", "345"),  # a plain space parts numbers
        ("1{,}234", "1234"),
        (r"\boxed{1\,234}", "1234"),
        ("1.234,00 €", "1234"),
        ("1.234.567", "1234567"),
        ("1.234", "1.234"),
        ("1,23", "23"),
        ("1234,567", "567"),
        ("1,2345", "2345"),
        (".5", "0.5"),
        ("wait...5", "5"),
        ("3.1.2", "2"),
        ("1e-07", "1e-7"),
        ("2e10 m", "2e10"),
        ("3em", "3"),
        ("１，２３４．５", "1234.5"),
        ("答えは７２個です。", "72"),
        ("共100，200个", "200"),
        ("উত্তর ১৮", "18"),
        ("٣٫٥", "3.5"),
        ("50%", "50"),
        ("3rd", "3"),
        ("x^2 = 9", "9"),
        ("#### 1,000", "1000"),
        ("2024-01-05", "5"),
        ("007", "7"),
        # signs
        ("-3", "-3"),
        ("+3", "3"),
        ("−3", "-3"),
        ("－３", "-3"),
        ("x = -3", "-3"),
        ("x=-3", "-3"),
        ("(-3)", "-3"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        (r"-\$3.50", "-3.5"),
        ("**-3**", "-3"),
        ("答えは-3です", "-3"),
        ("-.5", "-0.5"),
        ("2 * -3", "-3"),
        # no signs
        ("3-4", "4"),
        ("3–4", "4"),
        ("7-2", "2"),
        ("7 - 2", "2"),
        ("GPT-4", "4"),
        ("10%-20%", "20"),
        ("$5-$3", "3"),
        ("5$-3$", "3"),
        ("(1)-2", "2"),
        ("- 3 apples", "3"),
        ("so --3", "3"),
    ],
)
def test_the_last_number_is_read_as_people_read_it(text, number):
    assert number_in(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number", "七", "-", ".", ",", "$", "½", "²"])
def test_text_without_digits_has_no_number(text):
    assert number_in(text) is None


def test_last_numbers_are_compared_as_numbers():
    assert last_number("so it costs $1,234.50.", "1234.5") == 1.0
    assert last_number("it is 18", "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18") == 1.0
    assert last_number("it is -18", "18") == 0.0
    assert last_number("0.1", "0.10000000000000000001") == 0.0
    assert last_number("-0", "0") == 1.0
    assert last_number("no idea", "18") == 0.0
    assert last_number("no idea", "none either") == 0.0


def grouped(value: Decimal, separator: str) -> str:
    return f"{value:,f}".replace(",", separator)


numbers = st.one_of(
    st.integers(-(10**30), 10**30).map(Decimal),
    st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12),
)


@settings(deadline=None)
@given(numbers, st.sampled_from(["", ",", "\u00a0", "\u202f", "\u2009", "{,}"]))
def test_any_number_is_read_back_however_it_is_grouped(value, separator):
    text = f"{value:f}" if not separator else grouped(value, separator)
    assert number_in(f"So the answer is {text}.") == value
    assert number_in(f"答えは{text}です。") == value
    assert last_number(text, f"{value:f}") == 1.0


@settings(deadline=None)
@given(numbers)
def test_any_number_is_read_back_with_full_width_digits_currency_and_other_minus(value):
    wide = str.maketrans("0123456789-.,", "０１２３４５６７８９－．，")
    assert number_in(f"{value:,f}".translate(wide)) == value
    sign, digits = ("−" if value.is_signed() else ""), f"{value.copy_abs():,f}"
    assert number_in(f"costs {sign}${digits}.") == value
    assert number_in(f"costs ${sign}{digits}.") == value


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_that_python_prints_is_read_back(value):
    assert number_in(str(value)) == Decimal(str(value))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_range_or_subtraction_has_no_sign(low, high):
    assert number_in(f"{low}-{high}") == high
    assert number_in(f"{low}–{high}") == high


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_the_metrics(text):
    number_in(text)
    assert exact_match(text, text) == 1.0
    assert last_number(text, text) in (0.0, 1.0)
    assert regex_match(text, text, "(?s)^(.*)$") == 1.0


@pytest.mark.parametrize(
    "text", ["1,234" * 40_000, "9" * 200_000, "-" * 200_000, "1.234," * 40_000, "1e" * 90_000, "１" * 99_999]
)
def test_long_texts_are_read_in_linear_time(text):
    start = time.thread_time()
    number_in(text)
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    ("likelihoods", "answer", "score"),
    [
        ([-1.0, -2.0, -3.0], 0, 1.0),
        ([-1.0, -2.0, -3.0], 1, 0.0),
        ([-2.0, -2.0, -2.0, -2.0], 0, 0.25),
        ([-2.0, -2.0, -2.0, -2.0], 3, 0.25),
        ([-2.0, -1.0, -1.0], 1, 0.5),
        ([-2.0, -1.0, -1.0], 0, 0.0),
        ([-40.00001, -40.0], 0, 0.5),  # the rounding of float32 sums is no preference
        ([-40.001, -40.0], 0, 0.0),
    ],
)
def test_a_tie_of_choices_is_worth_what_a_guess_among_them_is(likelihoods, answer, score):
    assert accuracy(likelihoods, answer) == score


@pytest.mark.parametrize(("choice", "length"), [(" sun", 3), ("sun", 3), ("\nsun", 3), ("  sun", 4), (" 太陽", 2)])
def test_a_choice_is_as_long_as_lm_eval_says(choice, length):
    assert choice_length(choice) == length


def test_regex_compares_the_group_with_the_target():
    assert regex_match("The answer is Paris, I think", "Paris", r"answer is (\w+)") == 1.0
    assert regex_match("The answer is Rome", "Paris", r"answer is (\w+)") == 0.0
    assert regex_match("I do not know", "Paris", r"answer is (\w+)") == 0.0
    assert regex_match("(B)", "(B)", r"\([A-D]\)") == 1.0  # no group: the whole match
    assert regex_match("b", "a", r"(a)?b") == 0.0  # the group took no part
    assert regex_match("A. then B.", "A", r"([A-D])\.") == 1.0  # the first match
    assert regex_match("A. then B.", "B", r"(?s:.*)([A-D])\.") == 1.0


def test_regex_compares_numbers_as_numbers_only_where_both_are_nothing_else():
    assert regex_match("answer is $1,234.00.", "1234", r"answer is (\S+)") == 1.0
    assert regex_match("answer is -5", "−5.0", r"answer is (\S+)") == 1.0
    assert regex_match("answer is 5", "-5", r"answer is (\S+)") == 0.0
    assert regex_match("answer is 3x", "3", r"answer is (\S+)") == 0.0
    assert regex_match("answer is 3-4", "4", r"answer is (\S+)") == 0.0
