"""Which licences combine into which."""

from __future__ import annotations

from itertools import permutations

import pytest

from evomerge.publish.licences import NO_DERIVATIVES, SOURCES, Licence, combined


@pytest.mark.parametrize(
    ("licences", "whole"),
    [
        ("mit", "mit"),
        ("mit mit", "mit"),
        ("apache-2.0 mit bsd-3-clause", "apache-2.0"),
        ("cc0-1.0 mit", "mit"),
        ("apache-2.0 gpl-3.0", "gpl-3.0"),
        ("apache-2.0 gpl-3.0 agpl-3.0 lgpl-3.0", "agpl-3.0"),
        ("mit gpl-2.0", "gpl-2.0"),
        ("cc-by-4.0 cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("apache-2.0 cc-by-nc-4.0 cc-by-4.0", "cc-by-nc-4.0"),
        ("cc-by-sa-4.0 gpl-3.0", "gpl-3.0"),
        ("apache-2.0 llama3.1", "llama3.1"),
        ("a-licence-of-its-own a-licence-of-its-own", "a-licence-of-its-own"),
    ],
)
def test_licences_that_combine_give_the_one_with_the_most_conditions_in_any_order(licences: str, whole: str):
    for order in set(permutations(licences.split())):
        assert combined({f"m{i}": Licence(one) for i, one in enumerate(order)}) == Licence(whole)


@pytest.mark.parametrize(
    "licences",
    [
        "apache-2.0 gpl-2.0",
        "gpl-2.0 gpl-3.0",
        "cc-by-sa-4.0 cc-by-nc-4.0",
        "cc-by-nc-sa-4.0 cc-by-sa-4.0",
        "cc-by-nc-4.0 gpl-3.0",
        "llama3 gemma",
        "llama3.1 llama3.2",
        "mit an-unheard-of-one",
    ],
)
def test_a_conflict_is_explained_with_each_models_licence(licences: str):
    first, second = licences.split()
    for order in permutations((first, second)):
        found = combined({f"m{i}": Licence(one) for i, one in enumerate(order)})
        assert isinstance(found, str)
        assert f"{order[0]} (m0), {order[1]} (m1)" in found


def test_an_unknown_licence_is_named_by_its_models():
    assert combined({"a": Licence("mit"), "b": None, "c": None}) == "the licence of b, c is not known"
    assert combined({"a": Licence("other")}) == "the licence of a is not known"
    assert combined({}) == "the licence of its models is not known"


def test_no_merge_may_be_shared_of_a_model_that_allows_no_derivatives():
    for licence in NO_DERIVATIVES:
        assert "m has the licence" in str(combined({"m": Licence(licence)}))
        assert "no merge of it may be shared" in str(combined({"m": Licence(licence), "n": Licence("cc0-1.0")}))


def test_models_under_the_same_other_licence_keep_its_name_and_link():
    own = Licence("other", "qwen-research", "https://example.org/LICENSE")
    assert combined({"a": own, "b": own}) == own
    assert combined({"a": own, "b": Licence("apache-2.0")}) != own
    assert isinstance(combined({"a": own, "b": Licence("other", "another")}), str)


def test_the_table_names_a_source_for_every_pair_and_leads_to_no_licence_twice():
    for (part, whole), source in SOURCES.items():
        assert source.startswith("https://")
        assert (whole, part) not in SOURCES
        assert part != whole
        assert not {part, whole} & NO_DERIVATIVES
