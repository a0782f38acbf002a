"""What a search for slices decodes to can be planned: every layer from where it says, scaled as it says."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evomerge.merge import Planner, open_models
from evomerge.recipe import Recipe
from evomerge.search import StackSpace
from tests.tiny import tiny_checkpoint


@dataclass(frozen=True)
class Fold:
    filters: tuple[str, ...] = ("o_proj", "down_proj")
    offset: bool = False


@pytest.mark.parametrize("scale", [None, [0.5, 2.0]])
def test_random_stacks_are_planned_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: list[float] | None
):
    monkeypatch.chdir(tmp_path)
    for seed, (name, layers) in enumerate((("a", 3), ("b", 4))):
        tiny_checkpoint(tmp_path / name, seed, layers=layers, tokenizer=False)
    hole = {"models": ["a", "b"], "repeats": 2, "scale": scale}
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": {"search": hole}})
    space = StackSpace(recipe, [3, 4], Fold())
    planner = Planner(open_models(recipe))
    rng = np.random.default_rng(0)
    for _ in range(5):
        stack = space.sample(rng)
        plan = planner.plan(space.decode(stack))
        assert plan.layout.config["num_hidden_layers"] == len(stack)
        jobs = {job.info.name: job for job in plan.layout.jobs}
        factor = 1.0
        for depth, layer in enumerate(stack):
            factor /= layer.scale
            for part, expected in (("self_attn.o_proj", factor), ("mlp.down_proj", factor), ("mlp.up_proj", 1.0)):
                job = jobs[f"model.layers.{depth}.{part}.weight"]
                ((model, name),) = job.inputs
                assert (model, name) == ("ab"[layer.model], f"model.layers.{layer.layer}.{part}.weight")
                parameters = plan.parameters(job)
                assert parameters is not None
                assert parameters.models[0]["scale"] == pytest.approx(expected, rel=1e-5)
        # As in mergekit, what comes before the layers is the first one's model's, what comes after the last one's.
        assert jobs["model.embed_tokens.weight"].inputs[0][0] == "ab"[stack[0].model]
        assert jobs["model.norm.weight"].inputs[0][0] == "ab"[stack[-1].model]
