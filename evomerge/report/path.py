"""The path of a stack through its models: which layer runs at which depth, how often, with which scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.recipe import Recipe, Slice, is_choice, resolve
from evomerge.recipe.sources import Module
from evomerge.report.names import printable


@dataclass(frozen=True)
class Step:
    """One layer of the result.

    Attributes:
        sources: the layers that are merged into it: (index of the model, index of the layer).
        use: how many layers of the result have had the same sources, this one included.
        factor: what the layer's output is multiplied by: the number that differs most from 1 among its scales.
    """

    sources: tuple[tuple[int, int], ...]
    use: int
    factor: float


@dataclass(frozen=True)
class Run:
    """A slice: layers of the result that follow each other in their models.

    Attributes:
        first: the first layer of the result.
        end: the layer of the result after its last.
        sources: (index of the model, its first layer, the layer after its last).
        scales: (factor, the tensors that are multiplied by it), both in words; none where nothing is.
    """

    first: int
    end: int
    sources: tuple[tuple[int, int, int], ...]
    scales: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StackPath:
    """A stack of layers.

    Attributes:
        steps: the layers of the result, from the first to the last.
        runs: its slices.
    """

    steps: tuple[Step, ...]
    runs: tuple[Run, ...]

    @property
    def models(self) -> tuple[int, ...]:
        """The models that it uses, by index."""
        return tuple(sorted({model for step in self.steps for model, _ in step.sources}))

    @property
    def scaled(self) -> str | None:
        """The tensors that every scale multiplies, in words; None where there are no scales or they differ."""
        found = {tensors for run in self.runs for _, tensors in run.scales}
        return found.pop() if len(found) == 1 else None


def stack_path(recipe: Recipe, module: Module, models: Sequence[str]) -> StackPath | None:
    """Returns the path of a module's slices; None where each layer is merged from the layers at its own depth.

    Args:
        recipe: the recipe.
        module: one of its modules.
        models: every model, in the order that gives its index.
    """
    steps: list[Step] = []
    runs: list[Run] = []
    uses: Counter[tuple[tuple[int, int], ...]] = Counter()
    for part in module.slices or ():
        sources = tuple((models.index(source.model), *source.layer_range) for source in part.sources)
        factors = _factors(recipe, module, part)
        first = len(steps)
        for offset in range(part.num_layers):
            here = tuple((model, start + offset) for model, start, _ in sources)
            uses[here] += 1
            at = [factor[offset] for factor in factors.values()]
            steps.append(Step(here, uses[here], max(at, key=lambda factor: abs(factor - 1), default=1.0)))
        runs.append(Run(first, len(steps), sources, _scales(factors)))
    plain = all(layer == depth for depth, step in enumerate(steps) for _, layer in step.sources)
    if not steps or (plain and recipe.merge_method != "passthrough"):
        return None
    return StackPath(tuple(steps), tuple(runs))


def _factors(recipe: Recipe, module: Module, part: Slice) -> dict[str, list[float]]:
    """Returns passthrough's scales of a slice by the tensors that they apply to, one a layer, where any is not 1."""
    if recipe.merge_method != "passthrough":
        return {}
    levels = (part.sources[0].parameters, part.parameters, module.parameters, recipe.parameters)
    value = next((level["scale"] for level in levels if "scale" in level), None)
    if value is None or Recipe.holes(recipe):
        return {}
    rules = [(rule.filter or "other", rule.value) for rule in value] if is_choice(value) else [("all", value)]
    depths = [i / (part.num_layers - 1) if part.num_layers > 1 else 1.0 for i in range(part.num_layers)]
    found = {name: [float(resolve(rule, "", t) or 0.0) for t in depths] for name, rule in rules}
    return {name: numbers for name, numbers in found.items() if any(number != 1 for number in numbers)}


def _scales(factors: dict[str, list[float]]) -> tuple[tuple[str, str], ...]:
    by_numbers: dict[str, list[str]] = {}
    for name, numbers in factors.items():
        ends = f"×{numbers[0]:.4g}" if len(set(numbers)) == 1 else f"×{numbers[0]:.4g} to {numbers[-1]:.4g}"
        by_numbers.setdefault(ends, []).append(name)
    return tuple((ends, printable(", ".join(names))) for ends, names in by_numbers.items())
