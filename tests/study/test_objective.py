"""What a search maximizes: weights, scales that cannot vanish, and items that were not scored."""

import numpy as np
import pytest

from evomerge.search import Outcome, State
from evomerge.study import Objective
from evomerge.study.objective import Scale, scales_of


def scored(**items: list[float | None]) -> Outcome:
    return Outcome(State.PARTIAL, items={task: tuple(scores) for task, scores in items.items()})


def test_the_objective_is_the_weighted_mean_of_what_was_scored():
    objective = Objective({"a": 1.0, "b": 3.0})
    assert objective.value(scored(a=[1.0, None, 0.0], b=[None, 1.0, None])) == (0.5 + 3 * 1.0) / 4
    assert objective.value(Outcome(State.FAILED)) is None
    assert Objective({"a": 1.0}, {"a": Scale(-3.0, 2.0)}).value(scored(a=[-2.0, -1.0])) == 0.75
    assert Objective({"a": 1.0, "b": 3.0}, {"b": Scale(0.5, 0.1)}).slopes == {"a": 0.25, "b": pytest.approx(7.5)}


def test_parents_that_score_alike_do_not_let_their_task_decide_the_search():
    rng = np.random.default_rng(0)
    # On the first task, the models are specialists; on the second, both have 30 or 31 of 100 right.
    first = [rng.permutation([1.0] * right + [0.0] * (100 - right)).tolist() for right in (90, 20)]
    second = [rng.permutation([1.0] * right + [0.0] * (100 - right)).tolist() for right in (30, 31)]
    models = [scored(a=a, b=b) for a, b in zip(first, second, strict=True)]
    objective = Objective({"a": 1.0, "b": 1.0}, scales_of("ab", models))
    # Divided by the range of the parents, ten items of the second task would outweigh seven hundred of the first.
    assert objective({"a": 0.9, "b": 0.3}) > objective({"a": 0.7, "b": 0.4})
    assert objective.slopes["a"] == pytest.approx(objective.slopes["b"], rel=0.1)


@pytest.mark.parametrize("same", [0.0, 1.0, -2.5, 0.25])
def test_scores_that_are_all_equal_still_have_a_scale(same: float):
    (scale,) = scales_of("a", [scored(a=[same] * 50)] * 2).values()
    assert scale.centre == same
    assert 0.1 < scale.unit <= 1


def test_scales_do_not_depend_on_the_order_of_models_or_on_items_that_were_not_scored():
    values = np.random.default_rng(1).normal(-2, 1, (3, 40)).tolist()
    models = [scored(a=[*scores, None]) for scores in values]
    found = scales_of("a", models)["a"]
    assert found == scales_of("a", models[::-1])["a"]
    assert found == pytest.approx((np.mean(values), np.std(values)))


def test_a_unit_of_other_size_changes_no_comparison():
    values = np.random.default_rng(2).normal(-2, 1, (3, 40))
    small, large = ([scored(a=(scores * factor).tolist()) for scores in values] for factor in (1, 1000))
    one, other = (Objective({"a": 1.0}, scales_of("a", models)) for models in (small, large))
    assert [one.value(model) for model in small] == pytest.approx([other.value(model) for model in large])
