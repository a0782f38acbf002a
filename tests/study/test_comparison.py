"""Comparing two models: exact p-values, the bootstrap's coverage, sample sizes that hold; and a winner's optimism."""

import numpy as np
import pytest

from evomerge.search import Outcome, State
from evomerge.study import compare
from evomerge.study.comparison import optimism, sign_test
from tests.study.test_intervals import ONE, scores


# McNemar's exact test: 2 * P(X <= 6), X binomial(27, 1/2); and the ends of the scale.
@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(6, 21, 0.0059248), (21, 6, 0.0059248), (5, 5, 1.0), (0, 0, 1.0), (6, 0, 0.03125)]
)
def test_the_sign_test_is_exact(gained: int, lost: int, p: float):
    assert sign_test(gained, lost) == pytest.approx(p, rel=1e-4)


def test_a_comparison_counts_items_and_pairs_them():
    found = compare(*scores(36, 12, 2, 0), ONE, "b")
    assert (found.model, found.gained, found.lost, found.same, found.items) == ("b", 12, 2, 36, 50)
    assert found.difference == pytest.approx(0.2)
    assert found.p == sign_test(12, 2)
    assert found.interval == pytest.approx((0.0569, 0.3404), abs=5e-5)
    # The paired standard error, without any correction for few items.
    error = np.sqrt((14 / 50 - 0.2**2) / 50)
    assert found.bootstrap_interval == pytest.approx((0.2 - 1.96 * error, 0.2 + 1.96 * error), abs=0.02)
    assert found.bootstrap_better > 0.99
    other = compare(*reversed(scores(36, 12, 2, 0)), ONE, "a")
    assert (other.gained, other.lost, other.items_needed) == (2, 12, None)
    assert other.bootstrap_better < 0.01


def test_each_task_contributes_its_weighted_difference():
    first, second = {"a": [1.0, 1.0], "b": [0.5, 0.5, 0.2]}, {"a": [1.0, 0.0], "b": [0.5, 0.5, 0.5]}
    found = compare(first, second, {"a": 0.5, "b": 2.0}, "other")
    assert found.tasks == pytest.approx({"a": 0.25, "b": -0.2})
    assert found.difference == pytest.approx(0.05)
    assert (found.gained, found.lost, found.same) == (1, 1, 3)


def test_the_bootstrap_s_interval_of_several_tasks_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        gaps = {"a": rng.normal(0.1, 1, 60), "b": rng.normal(0.2, 2, 60)}
        low, high = compare(gaps, {name: np.zeros(60) for name in gaps}, {"a": 1, "b": 0.5}, "x").bootstrap_interval
        held.append(low <= 0.2 <= high)
    assert 0.9 < np.mean(held) < 0.99


@pytest.mark.parametrize("share", [(0.5, 0.15, 0.05, 0.3), (0.2, 0.3, 0.2, 0.3)])
def test_with_the_items_that_are_said_to_be_needed_the_difference_is_found_four_times_in_five(share):
    needed = compare(*scores(*(round(100 * part) for part in share)), ONE, "x").items_needed
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(needed, share, 200)
    found = [compare(*scores(*counts), ONE, "x").interval[0] > 0 for counts in drawn]
    assert 0.72 < np.mean(found) < 0.88


def outcome(**items: list[float | None]) -> Outcome:
    return Outcome(State.COMPLETE, items={task: tuple(values) for task, values in items.items()})


def test_splits_of_different_difficulty_are_no_optimism():
    rng = np.random.default_rng(0)
    easy, hard = rng.normal(0.8, 0.1, 200), rng.normal(0.3, 0.1, 200)

    def model(better: float) -> tuple[Outcome, Outcome]:
        return outcome(t=(easy + better).tolist()), outcome(t=(hard + better).tolist())

    found = optimism(model(0.1), [model(0.0), model(-0.2)], ONE)
    assert found.drop == pytest.approx(found.others_drop)
    assert found.drop == pytest.approx(0.5, abs=0.05)
    assert found.estimate == pytest.approx(0, abs=1e-12)
    assert found.interval == pytest.approx((0, 0), abs=1e-12)


def test_the_best_of_many_equal_models_is_optimistic():
    rng = np.random.default_rng(1)
    search, holdout = (rng.integers(0, 2, (60, 100)).astype(float) for _ in range(2))
    best = int(search.mean(axis=1)[2:].argmax()) + 2
    outcomes = [(outcome(t=search[i].tolist()), outcome(t=holdout[i].tolist())) for i in (best, 0, 1)]
    found = optimism(outcomes[0], outcomes[1:], ONE)
    assert found.estimate > 0.05
    assert found.interval[0] < found.estimate < found.interval[1]
    assert found.estimate == pytest.approx(found.drop - found.others_drop)


def test_optimism_takes_the_items_that_all_were_scored_on():
    partial = outcome(t=[1.0, None, 0.0]), outcome(t=[1.0, 0.0])
    whole = outcome(t=[1.0, 1.0, 1.0]), outcome(t=[1.0, 1.0])
    found = optimism(partial, [whole], ONE)
    assert (found.drop, found.others_drop) == (0.0, 0.0)
