"""Intervals: published examples, the ends of the scale, coverage counted out, and what a search concludes from them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from evomerge.recipe import Recipe
from evomerge.study import Comparison, ModelResult, ReportData, interval
from evomerge.study.intervals import difference_interval

ONE = {"t": 1.0}


def scores(*counts: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Two models' items, of which so many are right for both, for the first, for the second, for neither."""
    both, first, second, neither = counts
    return {"t": [1.0] * (both + first) + [0.0] * (second + neither)}, {
        "t": [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither
    }


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, table I.
@pytest.mark.parametrize(
    ("right", "size", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilson_s_interval(right: int, size: int, low: float, high: float):
    found = interval({"t": [1.0] * right + [0.0] * (size - right)}, ONE)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_scores_that_are_all_alike_are_not_certain():
    assert interval({"t": [0.0] * 300}, ONE) == (0, pytest.approx(0.01264, abs=1e-5))
    assert interval({"t": [1.0] * 300}, ONE) == (pytest.approx(0.98736, abs=1e-5), 1)
    for counts in ((300, 0, 0, 0), (0, 0, 0, 300), (150, 0, 0, 150)):
        low, high = difference_interval(*scores(*counts), ONE)
        assert low < -0.005
        assert high > 0.005
    # By the bootstrap, which never leaves the four items that differ out of all 300, this would be sure.
    assert difference_interval(*scores(296, 4, 0, 0), ONE)[0] < 0


def test_a_difference_of_shares_has_newcombe_s_interval():
    # Computed with the published spreadsheet of method 10.
    assert difference_interval(*scores(36, 12, 2, 0), ONE) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_the_difference_s_interval_holds_the_truth_as_often_as_it_says():
    size, held = 20, []
    rng = np.random.default_rng(0)
    for truth in ([0.6, 0.2, 0.1, 0.1], [0.9, 0.05, 0.05, 0.0], [0.3, 0.3, 0.1, 0.3]):
        for counts in rng.multinomial(size, truth, 400):
            low, high = difference_interval(*scores(*counts), ONE)
            held.append(low <= truth[1] - truth[2] <= high)
    assert 0.93 < np.mean(held) < 0.99


def test_graded_scores_have_the_bootstrap_s_interval_and_pair_by_item():
    values = np.random.default_rng(1).normal(size=400)
    low, high = interval({"t": values.tolist()}, ONE)
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)
    # Where one model is better by the same on each item, nothing is left to doubt, however far the items lie apart.
    better = {"t": (values + 0.5).tolist()}
    assert difference_interval(better, {"t": values.tolist()}, ONE) == pytest.approx((0.5, 0.5))


def test_tasks_are_joined_by_their_weights():
    items = {"a": [1.0] * 30 + [0.0] * 70, "b": [0.0] * 50}
    (a_low, a_high), (b_low, b_high) = interval({"t": items["a"]}, ONE), interval({"t": items["b"]}, ONE)
    low, high = interval(items, {"a": 0.5, "b": 2.0})
    assert low == pytest.approx(0.15 - 0.5 * (0.3 - a_low))
    assert high == pytest.approx(0.15 + math.hypot(0.5 * (a_high - 0.3), 2 * b_high))
    assert b_low == 0


def report(winner: float, difference: tuple[float, float], name: str = "trial 3", **others: float) -> ReportData:
    """What a search found whose models have these holdout scores, with intervals of 0.01 to either side."""

    def standing(name: str, score: float | None) -> ModelResult | None:
        return None if score is None else ModelResult(name, score, score, (score - 0.01, score + 0.01), {"t": score})

    own = standing(name, winner)
    base, mean, parent = (standing(key, others.get(key)) for key in ("base", "mean", "parent"))
    recipe = Recipe.parse("{merge_method: passthrough, models: [{model: parent}]}")
    comparisons = [
        Comparison(key, winner - score, difference, difference, 0.5, 3, 1, 6, 0.6, {"t": winner - score}, None)
        for key, score in others.items()
    ]
    return ReportData([parent], base, mean, [own], recipe, comparisons, 1, 0, 8, {})


@pytest.mark.parametrize("rival", ["base", "mean", "parent"])
def test_the_base_and_the_mean_are_to_be_beaten_like_every_parent(rival: str):
    found = report(0.835, (-0.16, -0.13), **({"base": 0.1, "mean": 0.2, "parent": 0.265} | {rival: 0.98}))
    assert found.rival is not None
    assert found.rival.name == rival
    assert not found.beaten
    assert found.verdict.startswith("Not beaten: the winner does not score significantly above the best")
    assert ("the mean of the parents" if rival == "mean" else rival) in found.verdict
    assert found.as_data()["difference"] == {
        "to": rival,
        "holdout": pytest.approx(-0.145),
        "holdout_ci": [-0.16, -0.13],
    }
    lower = report(0.835, (0.02, 0.1), **({"base": 0.1, "mean": 0.2, "parent": 0.265} | {rival: 0.7}))
    assert lower.beaten
    assert lower.verdict.startswith("Beaten: the winner scores above")


def test_a_mean_that_wins_has_beaten_nothing():
    found = report(0.8, (0.1, 0.2), name="mean", base=0.1, mean=0.8, parent=0.65)
    assert found.rival is not None
    assert found.rival.name == "parent"
    assert not found.beaten
    assert found.verdict.startswith("Not beaten: the winner is the mean of the parents")


def test_a_competitor_that_could_not_be_scored_is_named():
    found = report(0.8, (0.1, 0.2), base=0.1, parent=0.65)
    failed = ModelResult("broken", None, None, None, {}, "its logits are not finite")
    assert ReportData(**{**vars(found), "base": failed}).verdict.endswith("Not scored: broken.")


@pytest.mark.parametrize(("difference", "needed", "told"), [(0.03, 870, True), (0.03, 9, False), (-0.03, None, False)])
def test_a_holdout_that_is_too_small_for_the_difference_is_told(difference: float, needed: int | None, told: bool):
    found = report(0.65 + difference, (difference - 0.1, difference + 0.1), parent=0.65)
    found = replace(found, comparisons=[replace(found.comparisons[0], items_needed=needed)])
    assert found.comparisons[0].items == 10
    text = "The holdout of 10 items is too small for a difference of +0.030: about 870 would show it with 80% power."
    assert (text in found.notes) == told
    assert found.as_data()["notes"] == found.notes


def test_a_significant_difference_needs_no_larger_holdout():
    found = report(0.8, (0.01, 0.3), parent=0.65)
    found = replace(found, comparisons=[replace(found.comparisons[0], items_needed=20)])
    assert found.beaten
    assert not any("too small" in note for note in found.notes)
