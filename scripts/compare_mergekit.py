"""Makes the models of recipes with evomerge and with mergekit, and shows how far apart they are.

    python scripts/models/make_tiny_models.py
    python scripts/compare_mergekit.py recipes/mergekit --mergekit ../mergekit/bin/python

Prints for each recipe the tensor that differs most, and by how much; with -v for every tensor. Missing and surplus
tensors, shapes, dtypes, configs and tokenizers are compared too. A difference above 2e-6 (and, in a 16-bit dtype, one
rounding) is a failure, unless the recipe's comment announces it:

    # Expected: tensors lm_head.weight, see "Heading of a section of docs/mergekit-differences.md"

Where a folder `instead/` beside the recipe has one of the same name, that one says the same in a way that mergekit
gets right: evomerge's model must then agree with what mergekit makes of it. Merges with random masks are not
compared but tested, each by itself, against what the recipe describes: see mergekit/masks.py.

mergekit runs in its own Python environment, on the CPU, without a network. The exit status is 0 if every recipe agrees
or differs as announced, 1 if one does not, and 2 if mergekit cannot be run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import transformers
from torch import Tensor

from evomerge.errors import EvomergeError
from evomerge.merge import Job, Plan, into_directory, open_recipe

# `python scripts/X.py` puts scripts/ on the path, not the folder around it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.mergekit.comparison import (
    Comparison,
    Finding,
    allowed,
    compare_configs,
    compare_tensors,
    compare_tokenizers,
    expectations,
    judged,
    read_tensors,
    renumbered,
)
from scripts.mergekit.masks import CONSENSUS, Masked, examine, fusion_faults

SCRIPTS = Path(__file__).resolve().parent
DIFFERENCES = SCRIPTS.parent / "docs" / "mergekit-differences.md"
VERSION = "0.1.5"
SEED = 0


class Mergekit:
    """mergekit in its own Python, started once; its log goes to a file."""

    def __init__(self, python: str, log: Path, adapters: Path) -> None:
        self.log, self.adapters = log, adapters
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        # evomerge's own packages are none of mergekit's.
        environment.pop("PYTHONPATH", None)
        with log.open("w") as errors:
            try:
                self.process = subprocess.Popen(
                    [python, str(SCRIPTS / "mergekit" / "driver.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                )
            except OSError as error:
                raise NoMergekitError(f"{python} cannot be run: {error}") from error
        try:
            self.version = self._answer()["version"]
        except NoMergekitError as error:
            self.close()
            raise NoMergekitError(f"{python} cannot import mergekit: {error}") from error

    def merge(self, recipe: Path, out: Path) -> str | None:
        """Makes the model; returns what went wrong, or None."""
        task = {"recipe": str(recipe), "out": str(out), "seed": SEED, "adapters": str(self.adapters)}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise NoMergekitError(f"it ended: {self._last_words()}") from error
        return self._answer().get("error")

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise NoMergekitError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {self.process.returncode}"

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Mergekit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NoMergekitError(Exception):
    """mergekit cannot be run; the text says why."""


@dataclass
class Result:
    """The outcome of one recipe's comparison.

    Attributes:
        name: its file's name, without the suffix.
        comparison: how the two models differ.
        faults: unexpected differences and failures.
        sections: the sections of docs/mergekit-differences.md that explain the expected differences.
        notes: further details, shown with -v.
    """

    name: str
    comparison: Comparison
    faults: list[str]
    sections: list[str]
    notes: list[str]

    @property
    def verdict(self) -> str:
        """The outcome in a word or a few."""
        return "DIFFERS" if self.faults else "differs as expected" if self.sections else "agrees"

    def as_data(self) -> dict[str, Any]:
        """Returns all of it, for JSON."""
        tensor, difference = self.comparison.worst
        return {
            "recipe": self.name,
            "verdict": self.verdict,
            "worst_tensor": tensor,
            "worst_difference": difference,
            "faults": self.faults,
            "sections": self.sections,
            "notes": self.notes,
            "differences": self.comparison.differences,
        }


def compare(path: Path, folder: Path, mergekit: Mergekit, sections: list[str]) -> Result:
    """Makes the recipe's model with both, in `folder`, and compares them."""
    try:
        expected = expectations(path.read_text(encoding="utf-8"), sections)
    except ValueError as error:
        return Result(path.stem, Comparison(), [str(error)], [], [])
    kinds = {one.kind for one in expected}
    ours, theirs, again = folder / "evomerge", folder / "mergekit", folder / "mergekit-instead"
    plan, refusal = None, None
    try:
        plan = open_recipe(path)
        into_directory(plan, ours)
    except EvomergeError as error:
        refusal = str(error)
    # A fault of evomerge's own must not end the comparison of the other recipes.
    except Exception as error:
        traceback.print_exc()
        return Result(path.stem, Comparison(), [f"evomerge fails: {type(error).__name__}: {error}"], [], [])
    failure = mergekit.merge(path, theirs)
    result = Result(path.stem, Comparison(), [], [], [])
    if refusal:
        result.notes.append(f"evomerge: {refusal}")
    if failure:
        result.notes.append(f"mergekit: {failure}")
    findings = [Finding("evomerge-refuses", "", f"evomerge: {refusal}")] if refusal else []
    findings += [Finding("mergekit-fails", "", f"mergekit: {failure}")] if failure else []
    if plan is not None and not refusal and not failure:
        result.comparison = compare_folders(ours, theirs, "layout" in kinds, plan, result)
        findings += result.comparison.findings
        findings += [Finding("layout", "", "")] if "layout" in kinds and layouts_differ(ours, theirs) else []
    instead = path.parent / "instead" / path.name
    if plan is not None and instead.exists():
        failure = mergekit.merge(instead, again)
        if failure:
            result.faults.append(f"{instead}: mergekit: {failure}")
        else:
            other = compare_folders(ours, again, False, plan, result)
            result.faults += [f"{instead.parent.name}/{instead.name}: {finding.text}" for finding in other.findings]
            tensor, difference = other.worst
            result.notes.append(f"{difference:.2g} from mergekit's {instead.parent.name}/{instead.name}, {tensor}")
    faults, result.sections = judged(findings, expected)
    result.faults += faults
    return result


def compare_folders(ours: Path, theirs: Path, layout: bool, plan: Plan, result: Result) -> Comparison:
    """Returns how two models differ; merges with random masks are tested, which is noted in `result`."""
    mine, other = read_tensors(ours, layout), read_tensors(theirs, layout)
    # mergekit numbers the tokens of a union differently in every run.
    union = "union" in (plan.recipe.tokenizer_source, plan.recipe.tokenizer and plan.recipe.tokenizer.source)
    other = renumbered(ours, theirs, other) if union else other
    jobs = [] if layout else [job for job in plan.layout.jobs if _is_random(plan, job)]
    tested = {job.info.name for job in jobs if job.info.name in mine.keys() & other.keys()}
    comparison = compare_tensors(
        {name: tensor for name, tensor in mine.items() if name not in tested},
        {name: tensor for name, tensor in other.items() if name not in tested},
    )
    if tested:
        jobs = [job for job in jobs if job.info.name in tested]
        result.notes += test_random(plan, jobs, mine, other, comparison)
    comparison.findings += [*compare_configs(ours, theirs), *compare_tokenizers(ours, theirs, not union)]
    return comparison


def test_random(
    plan: Plan, jobs: list[Job], ours: dict[str, Tensor], theirs: dict[str, Tensor], comparison: Comparison
) -> list[str]:
    """Tests tensors that two programs may well merge differently, each by itself; returns what was seen.

    Args:
        plan: how evomerge made the model.
        jobs: those of its jobs that make these tensors.
        ours: evomerge's tensors by name.
        theirs: mergekit's.
        comparison: takes what is found.
    """
    method, notes = plan.layout.method.name, []
    farthest, sigmas, apart, near, elements = 0.0, 0.0, 0, 0, 0
    for job in jobs:
        name = job.info.name
        if ours[name].dtype != theirs[name].dtype:
            text = f"{name}: dtype {ours[name].dtype}, mergekit {theirs[name].dtype}"
            comparison.findings.append(Finding("tensors", name, text))
        inputs = [plan.layout.checkpoints[model].read(tensor).float() for model, tensor in job.inputs]
        assert job.base is not None
        parameters = plan.parameters(job)
        assert parameters is not None
        base = plan.layout.checkpoints[job.base[0]].read(job.base[1]).float()
        for program, merged in (("evomerge", ours[name]), ("mergekit", theirs[name])):
            if method == "arcee_fusion":
                faults, undecided = fusion_faults(merged, base, inputs[0])
            else:
                case = Masked.of(method, base, inputs, parameters.shared, parameters.models)
                verdict = examine(merged, base, case)
                faults = verdict.faults
                farthest, sigmas = max(farthest, verdict.farthest), max(sigmas, verdict.sigmas)
                comparison.differences[name] = max(comparison.differences.get(name, 0.0), verdict.farthest)
                if base.numel() > 50_000 and verdict.expected_share < 1:
                    shares = f"changed {verdict.share:.4f} of the elements, expected {verdict.expected_share:.4f}"
                    notes.append(f"{name}: {program} {shares}")
            comparison.findings += [Finding("tensors", name, f"{name}: {program}: {fault}") for fault in faults]
        if method == "arcee_fusion":
            gap = (ours[name].double() - theirs[name].double()).abs()
            same = gap <= allowed(ours[name], theirs[name])
            comparison.differences[name] = gap[same].max().item() if bool(same.any()) else 0.0
            apart, near, elements = apart + int((~same).sum()), near + undecided, elements + gap.numel()
    if method == "arcee_fusion":
        text = f"of {elements:,} elements {near:,} are so close to the threshold that rounding or sampling decides"
        return [*notes, f"{text}; {apart:,} differ"]
    return [
        *notes,
        f"{len(jobs)} tensors with random masks: no element farther than {farthest:.2g} from its values, no"
        f" statistic farther than {sigmas:.1f} standard deviations from its expectation, in either",
    ]


def layouts_differ(ours: Path, theirs: Path) -> bool:
    """Returns whether the two have their tensors under different names or in different shapes."""
    mine, other = ({k: t.shape for k, t in read_tensors(folder, False).items()} for folder in (ours, theirs))
    return mine != other


def _is_random(plan: Plan, job: Job) -> bool:
    """Whether two programs may well differ in this tensor."""
    method, parameters = plan.layout.method.name, plan.parameters(job)
    if parameters is None or job.base is None:
        return False
    if method == "arcee_fusion":
        return True
    return method in CONSENSUS and any(0 < own["density"] < 1 for own in parameters.models)


def shown(result: Result, verbose: bool) -> list[str]:
    """Returns the lines that report a result."""
    tensor, difference = result.comparison.worst
    lines = [f"{result.verdict:20} {result.name:44} {f'{difference:.2g}' if tensor else '-':>8}  {tensor}"]
    lines += [f"    {fault}" for fault in (result.faults if verbose else result.faults[:6])]
    if len(result.faults) > 6 and not verbose:
        lines.append(f"    ... and {len(result.faults) - 6} more; -v shows all")
    lines += [f"    as in the section: {section}" for section in result.sections]
    if verbose:
        lines += [f"    {note}" for note in result.notes]
        lines += [f"    {gap:9.2e}  {name}" for name, gap in sorted(result.comparison.differences.items())]
    return lines


def run(arguments: argparse.Namespace, recipes: list[Path], work: Path) -> list[Result]:
    """Compares all recipes and reports each as soon as it is done."""
    text = DIFFERENCES.read_text(encoding="utf-8") if DIFFERENCES.exists() else ""
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    out = sys.stderr if arguments.json else sys.stdout
    results: list[Result] = []
    with Mergekit(arguments.mergekit, work / "mergekit.log", work / "adapters") as mergekit:
        if mergekit.version != VERSION:
            print(f"note: this is mergekit {mergekit.version}; what is expected is {VERSION}'s output", file=out)
        started = time.monotonic()
        for number, path in enumerate(recipes, 1):
            folder = work / path.stem
            shutil.rmtree(folder, ignore_errors=True)
            results.append(compare(path, folder, mergekit, sections))
            if not arguments.keep:
                shutil.rmtree(folder, ignore_errors=True)
            left = (time.monotonic() - started) / number * (len(recipes) - number)
            lines = shown(results[-1], arguments.verbose)
            print(f"[{number:>{len(str(len(recipes)))}}/{len(recipes)}, {left:3.0f} s left] {lines[0]}", file=out)
            for line in lines[1:]:
                print(line, file=out)
            out.flush()
    return results


def main() -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="a folder of recipes without holes")
    parser.add_argument("--mergekit", default=sys.executable, metavar="PYTHON", help="the Python that has mergekit")
    parser.add_argument("--only", default="", metavar="REGEX", help="compare only recipes whose names match")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep both models and mergekit's log here")
    parser.add_argument("--json", action="store_true", help="print JSON with every tensor; progress goes to stderr")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every tensor")
    arguments = parser.parse_args()
    recipes = sorted(path for path in arguments.dir.glob("*.yaml") if re.search(arguments.only, path.stem))
    if not recipes:
        parser.error(f"{arguments.dir} has no recipe whose name matches {arguments.only!r}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            results = run(arguments, recipes, (arguments.keep or Path(temporary)).resolve())
        except NoMergekitError as error:
            print(
                f"mergekit is not available: {error}\n"
                f"install it into its own environment (pip install mergekit=={VERSION}) and pass its Python:"
                " --mergekit PYTHON",
                file=sys.stderr,
            )
            return 2
    faulty = [result for result in results if result.faults]
    known = sum(bool(result.sections) for result in results if not result.faults)
    agreeing = [result.comparison for result in results if result.verdict == "agrees"]
    worst = max((comparison.worst[1] for comparison in agreeing if comparison.wide), default=0.0)
    if arguments.json:
        print(json.dumps([result.as_data() for result in results], indent=1))
    print(
        f"{len(results)} recipes: {len(agreeing)} agree, in float32 to {worst:.2g}; {known} differ as"
        f" docs/mergekit-differences.md says; {len(faulty)} differ otherwise{': ' if faulty else ''}"
        f"{', '.join(result.name for result in faulty)}",
        file=sys.stderr if arguments.json else sys.stdout,
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
