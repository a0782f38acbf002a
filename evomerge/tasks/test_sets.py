"""The splits of well-known data sets that published scores are of, on which a search must not choose a model."""

from __future__ import annotations

from evomerge.tasks.spec import DataSpec

_TEST = frozenset({"test"})
_VALIDATION = frozenset({"validation", "test"})
"""Of data sets whose published scores are of the validation split, since the test split's answers are secret."""

TEST_SETS = {
    "ai2_arc": _TEST,
    "allenai/ai2_arc": _TEST,
    "allenai/openbookqa": _TEST,
    "allenai/winogrande": _VALIDATION,
    "cais/mmlu": _TEST,
    "eleutherai/hendrycks_math": _TEST,
    "eleutherai/lambada_openai": _TEST,
    "google/boolq": _VALIDATION,
    "google/ifeval": frozenset({"train"}),
    "google-research-datasets/mbpp": _TEST,
    "gsm8k": _TEST,
    "hails/mmlu_no_train": _TEST,
    "hellaswag": _VALIDATION,
    "huggingfaceh4/math-500": _TEST,
    "idavidrein/gpqa": frozenset({"train"}),
    "juletxara/mgsm": _TEST,
    "leemeng/jcommonsenseqa-v1.1": _VALIDATION,
    "openai/gsm8k": _TEST,
    "openai/openai_humaneval": _TEST,
    "openai_humaneval": _TEST,
    "openbookqa": _TEST,
    "piqa": _VALIDATION,
    "rowan/hellaswag": _VALIDATION,
    "sakanaai/ja-vg-vqa-500": _TEST,
    "sakanaai/ja-vlm-bench-in-the-wild": _TEST,
    "sbintuitions/jcommonsenseqa": _VALIDATION,
    "sbintuitions/mgsm_ja": _TEST,
    "tau/commonsense_qa": _VALIDATION,
    "tiger-lab/mmlu-pro": _TEST,
    "truthful_qa": frozenset({"validation"}),
    "truthfulqa/truthful_qa": frozenset({"validation"}),
    "winogrande": _VALIDATION,
    "ybisk/piqa": _VALIDATION,
}
"""The splits that published scores are of, by data set on the Hub, in lower case as the Hub compares names."""


def is_test_set(spec: DataSpec) -> bool:
    """Returns whether some of the rows are of a well-known test set."""
    splits = {part.partition("[")[0].strip() for part in str(spec.split).split("+")}
    return not splits.isdisjoint(TEST_SETS.get(spec.path.lower(), ()))
