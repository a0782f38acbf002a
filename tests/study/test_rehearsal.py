"""`check` finds what would stop a search before its first candidate, in the words in which the search says it."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.errors import EvaluationError
from evomerge.merge import open_recipe
from evomerge.runtime import LiveModel, compute_dtype
from evomerge.runtime.live import _faster
from evomerge.study import Study, prepare
from tests.study.search_case import Watcher, write_case
from tests.test_cli import evomerge

FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {}


def fault(words: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        FAULTS[make.__name__] = make, words
        return make

    return register


def changed(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@fault("its tokenizer cannot be loaded")
def no_tokenizer(folder: Path) -> None:
    for path in (folder / "base").glob("tokenizer*"):
        path.unlink()


@fault("generation_config.json")
def broken_generation_settings(folder: Path) -> None:
    (folder / "base" / "generation_config.json").write_text("{")


@fault("eos_token_id is 'end' in")
def text_as_the_last_token(folder: Path) -> None:
    changed(folder / "base" / "generation_config.json", eos_token_id=[2, "end"])


@fault("rope_parameters.rope_type is 'bad'")
def unknown_rope_type(folder: Path) -> None:
    changed(folder / "base" / "config.json", rope_parameters={"rope_type": "bad", "rope_theta": 1e4})


@fault("num_attention_heads is 0")
def no_heads(folder: Path) -> None:
    changed(folder / "base" / "config.json", num_attention_heads=0)


@fault("but the model that config.json describes expects")
def sizes_of_another_model(folder: Path) -> None:
    changed(folder / "base" / "config.json", intermediate_size=64)


@fault("intermediate_size is 1152921504606846976")
def sizes_that_no_memory_holds(folder: Path) -> None:
    changed(folder / "base" / "config.json", intermediate_size=2**60)


@fault("but the model takes at most 20")
def prompts_that_are_too_long(folder: Path) -> None:
    changed(folder / "base" / "config.json", max_position_embeddings=20)


@fault("has no chat template")
def no_chat_template(folder: Path) -> None:
    path = folder / "tasks" / "written.yaml"
    path.write_text(path.read_text().replace("chat: false", "chat: true"))


@fault("System role not supported")
def a_chat_template_that_raises(folder: Path) -> None:
    no_chat_template(folder)
    (folder / "base" / "chat_template.jinja").write_text("{{ raise_exception('System role not supported') }}")


@fault(r"gives token [\d,]+ for an item, but the model that config.json describes has 259 tokens")
def the_tokenizer_of_a_larger_model(folder: Path) -> None:
    path = folder / "base" / "tokenizer.json"
    document = json.loads(path.read_text())
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    document["added_tokens"].append({**entry, "id": 300, "content": "what is"})
    document["model"]["vocab"] |= {f"filler {number}": number for number in range(259, 301)} | {"what is": 300}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", FAULTS)
def test_what_stops_a_search_before_its_first_candidate_is_a_fault_for_check(name: str, tmp_path: Path):
    make, words = FAULTS[name]
    recipe = write_case(tmp_path, evaluations=1)
    make(tmp_path)
    for command in (("check", recipe), ("search", recipe, "--run-dir", tmp_path / "run")):
        done = evomerge(*command)
        assert done.returncode == 1
        assert re.search(words, done.stderr), done.stderr
        assert "bug in evomerge" not in done.stderr
    assert not (tmp_path / "run" / "best.yaml").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_goes_on_in_the_dtype_that_it_began_in(dtype: str, tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=2)
    with Study(prepare(recipe, compute_dtype=dtype), tmp_path / "run", "cpu", Watcher()) as study:
        study.run()
        assert study.record.attribute("environment")["computes in"] == f"torch.{dtype}"
    watcher = Watcher()
    # Whatever a measurement says, it cannot say both.
    with Study(prepare(recipe, evaluations=3), tmp_path / "run", "cpu", watcher) as study:
        study.run()
        seen = set()
        hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda _, i: seen.update(x.dtype for x in i))
        study.scoring.outcome(study.spec.parent_recipe(study.spec.parents[0]), "again", "search")
        hook.remove()
        assert seen - {torch.int64} == {getattr(torch, dtype)}
    assert not watcher.notes
    other = {"bfloat16": "float32", "float32": "bfloat16"}[dtype]
    with Study(prepare(recipe, evaluations=3, compute_dtype=other), tmp_path / "run", "cpu", watcher):
        assert len(watcher.notes) == 1


@pytest.mark.parametrize("slow", [torch.bfloat16, torch.float32])
def test_a_dtype_that_is_slow_on_this_processor_is_not_chosen(slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = prepare(write_case(tmp_path)).first.layout
    whole = torch.nn.functional.linear

    sizes = set()

    def linear(tokens, weight):
        sizes.update(weight.shape)
        end = time.thread_time() + 0.01 * (tokens.dtype == slow)
        while time.thread_time() < end:
            pass
        return whole(tokens, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    _faster.cache_clear()
    # This thread's own time, which other programs do not change.
    started, threads = time.thread_time(), torch.get_num_threads()
    assert compute_dtype(layout, torch.device("cpu")) == ({torch.bfloat16, torch.float32} - {slow}).pop()
    assert time.thread_time() - started < 1
    assert torch.get_num_threads() == threads
    # The model is tiny, but a tiny product would tell nothing of the processor's arithmetic.
    assert min(sizes) >= 512
    _faster.cache_clear()


def test_the_compute_dtype_holds_the_stored_values_or_is_refused(tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=1)
    for command in (
        ("check", recipe, "--compute-dtype", "float16"),
        ("search", recipe, "--compute-dtype", "float16", "--run-dir", tmp_path / "run"),
        ("eval", tmp_path / "base", tmp_path / "tasks" / "likely.yaml", "--compute-dtype", "float16"),
    ):
        done = evomerge(*command)
        assert done.returncode == 1
        assert '--compute-dtype is "float16"; expected auto or ' in done.stderr
    made = evomerge("check", recipe, "--compute-dtype", "float32")
    assert "in float32" in made.stdout
    text = f"merge_method: linear\ndtype: bfloat16\nmodels: [{{model: {tmp_path}/base, parameters: {{weight: 1}}}}]\n"
    (tmp_path / "one.yaml").write_text(text)
    plan = open_recipe(tmp_path / "one.yaml")
    dtype = compute_dtype(plan.layout, torch.device("cpu"), "float32")
    assert next(LiveModel(plan, "cpu", dtype).model.parameters()).dtype == torch.float32
    with pytest.raises(EvaluationError, match="bfloat16 or float32"):
        compute_dtype(plan.layout, torch.device("cpu"), "float64")
