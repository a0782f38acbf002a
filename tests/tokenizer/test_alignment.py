"""Vocabularies: the result's tokenizer, and embeddings and heads re-indexed to it before the method runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError, RecipeError
from evomerge.merge import into_directory, open_models, plan, plan_warnings
from evomerge.recipe import Recipe
from tests.tiny import VOCABULARY, tiny_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LINEAR = "merge_method: linear\nmodels:\n%s\nparameters: {weight: 1}\ndtype: float32\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base; two that added tokens, one of them the same; one with other words altogether."""
    folder = tmp_path_factory.mktemp("vocabularies")
    words = tiny_checkpoint(folder / "words", seed=4, vocab_size=6, layers=2, tokenizer=False)
    vocabulary = {"a": 0, "</s>": 1, "zebra": 2, "b": 3, "yak": 4, "<s>": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(words)
    config = json.loads((words / "config.json").read_text())
    (words / "config.json").write_text(
        json.dumps({**config, "eos_token_id": 1, "bos_token_id": 5, "pad_token_id": None})
    )
    return {
        "base": tiny_checkpoint(folder / "base", seed=1, layers=2),
        "chat": tiny_checkpoint(folder / "chat", seed=2, layers=2, extra_tokens=["<|im_start|>", "<|im_end|>"]),
        "tools": tiny_checkpoint(folder / "tools", seed=3, layers=2, extra_tokens=["<|tool|>", "<|im_end|>"]),
        "words": words,
    }


def named(folders: dict[str, Path], text: str) -> str:
    """Puts the folders in the place of ``$name``."""
    for name, folder in folders.items():
        text = text.replace(f"${name}", str(folder))
    return text


def opened(folders: dict[str, Path], text: str) -> dict[str, Checkpoint]:
    recipe = Recipe.parse(named(folders, text), "r.yaml")
    names = {str(folder): name for name, folder in folders.items()}
    return {names[reference]: checkpoint for reference, checkpoint in open_models(recipe).items()}


def faults_of(folders: dict[str, Path], text: str) -> str:
    recipe = Recipe.parse(named(folders, text), "r.yaml")
    with pytest.raises(RecipeError) as caught:
        plan(recipe, open_models(recipe))
    return str(caught.value)


def weights(folder: Path, name: str = EMBEDDING) -> Tensor:
    return load_file(folder / "model.safetensors")[name]


def vocabulary(folder: Path) -> dict[str, int]:
    return AutoTokenizer.from_pretrained(folder).get_vocab()


MODELS = LINEAR % "  - model: $chat\n  - model: $tools" + "base_model: $base\n"
UNION = MODELS + "tokenizer: {source: union%s}\n"


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_every_row_of_a_union_is_its_tokens(name: str, folders: dict[str, Path]):
    seen = opened(folders, UNION % "")
    base, chat, tools = (weights(folders[model], name) for model in ("base", "chat", "tools"))
    n = VOCABULARY
    new = ["<|im_start|>", "<|im_end|>", "<|tool|>"]
    output = vocabulary(seen["base"].folder)
    assert sorted(new, key=output.__getitem__) == new
    assert [output[token] for token in new] == [n, n + 1, n + 2]
    # The base lacks all three; two models have im_end, and the base does not: their mean.
    mean = (chat[n + 1] + tools[n + 1]) / 2
    for model, own, expected in (
        ("base", base, [chat[n], mean, tools[n]]),
        ("chat", chat, [chat[n], chat[n + 1], tools[n]]),
        ("tools", tools, [chat[n], tools[n + 1], tools[n]]),
    ):
        assert torch.equal(seen[model].read(name), torch.cat([own[:n], torch.stack(expected)])), model
        assert seen[model].config["vocab_size"] == n + 3
    untouched = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(seen["chat"].read(untouched), weights(folders["chat"], untouched))


def test_tokens_are_found_by_their_text_and_not_by_their_number(folders: dict[str, Path]):
    text = LINEAR % "  - model: $words\n  - model: $base" + "tokenizer_source: $words\n"
    seen = opened(folders, text)
    base, words = weights(folders["base"]), weights(folders["words"])
    numbers = vocabulary(folders["base"])
    expected = words.clone()  # What the base lacks is the one other model's.
    for token in ("a", "b", "<s>", "</s>"):
        expected[vocabulary(folders["words"])[token]] = base[numbers[token]]
    assert torch.equal(seen["base"].read(EMBEDDING), expected)
    assert torch.equal(seen["words"].read(EMBEDDING), words)
    config = seen["base"].config
    assert (config["eos_token_id"], config["bos_token_id"], config["vocab_size"]) == (1, 5, 6)
    generation = json.loads((seen["base"].folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["bos_token_id"]) == (1, 5)


def test_the_tokenizer_of_a_model_that_is_not_merged(folders: dict[str, Path]):
    text = LINEAR % "  - model: $base\n  - model: $chat" + "tokenizer: {source: $words}\n"
    seen = opened(folders, text)
    assert set(seen) == {"base", "chat"}
    numbers, found = vocabulary(folders["base"]), seen["chat"].read(EMBEDDING)
    assert torch.equal(found[3], weights(folders["chat"])[numbers["b"]])
    assert not found[2].any()  # zebra, which neither has
    assert seen["base"].config["vocab_size"] == 6
    assert AutoTokenizer.from_pretrained(seen["base"].folder)("zebra b")["input_ids"] == [2, 3]


def test_a_base_that_has_a_token_gives_it_to_all_that_lack_it(folders: dict[str, Path]):
    text = (
        LINEAR % "  - model: $base\n  - model: $tools\n  - model: $words"
        + "base_model: $chat\ntokenizer_source: base\n"
    )
    seen = opened(folders, text)
    chat, n = weights(folders["chat"]), VOCABULARY
    assert torch.equal(seen["base"].read(EMBEDDING)[n + 1], chat[n + 1])
    assert torch.equal(seen["tools"].read(EMBEDDING)[n], chat[n])
    assert torch.equal(seen["tools"].read(EMBEDDING)[n + 1], weights(folders["tools"])[n + 1])
    assert torch.equal(seen["words"].read(EMBEDDING)[7], chat[7])


def test_a_token_of_the_recipe_comes_from_where_it_says(folders: dict[str, Path]):
    tokens = (
        "  tokens:\n"
        "    <|im_end|>: {source: $tools}\n"
        "    <|im_start|>: {source: {kind: model_token, model: $base, token: </s>}, force: true}\n"
        "    <|tool|>: {source: {kind: zero}, force: true}\n"
        "    a: {source: {kind: model_token, model: $chat, token_id: 3}, force: true}\n"
        "    <new>: {source: {kind: model_token, model: $base, token: b}}\n"
        "    <bare>: {}\n"
    )
    seen = opened(folders, MODELS + "tokenizer:\n" + tokens)
    base, chat, tools = (weights(folders[model]) for model in ("base", "chat", "tools"))
    numbers = vocabulary(seen["chat"].folder)
    end = {"base": tools[VOCABULARY + 1], "chat": chat[VOCABULARY + 1], "tools": tools[VOCABULARY + 1]}
    for model, checkpoint in seen.items():
        found = checkpoint.read(EMBEDDING)
        assert torch.equal(found[numbers["<|im_end|>"]], end[model])
        assert torch.equal(found[numbers["<|im_start|>"]], base[2])
        assert not found[numbers["<|tool|>"]].any()
        assert torch.equal(found[numbers["a"]], chat[3])
        assert torch.equal(found[numbers["<new>"]], base[vocabulary(folders["base"])["b"]])
        assert not found[numbers["<bare>"]].any()


def test_rows_without_a_token_are_the_mean_of_the_others(folders: dict[str, Path]):
    seen = opened(folders, UNION % ", pad_to_multiple_of: 64")
    found = seen["chat"].read(HEAD)
    assert found.shape[0] == seen["chat"].config["vocab_size"] == 320
    mean = found[: VOCABULARY + 3].double().mean(dim=0)
    torch.testing.assert_close(found[VOCABULARY + 3 :].double(), mean.expand(320 - VOCABULARY - 3, -1))


def test_tokens_beyond_the_embeddings_are_none(folders: dict[str, Path], tmp_path: Path):
    base = tiny_checkpoint(tmp_path / "short", seed=5, layers=2, vocab_size=VOCABULARY - 1)
    seen = opened(
        {**folders, "short": base}, LINEAR % "  - model: $chat" + "base_model: $short\ntokenizer_source: base\n"
    )
    assert seen["chat"].config["vocab_size"] == VOCABULARY - 1
    assert max(vocabulary(seen["chat"].folder).values()) == VOCABULARY - 2


def test_what_needs_no_change_is_read_as_it_is(folders: dict[str, Path]):
    seen = opened(folders, LINEAR % "  - model: $base" + "tokenizer_source: base\n")
    plain = Checkpoint.open(str(folders["base"]))
    assert torch.equal(seen["base"].read(EMBEDDING), plain.read(EMBEDDING))
    assert dict(seen["base"].config) == dict(plain.config)


def test_the_widest_dtype_of_those_that_give_rows_holds_them(folders: dict[str, Path], tmp_path: Path):
    half = tiny_checkpoint(tmp_path / "half", seed=6, layers=2, dtype=torch.bfloat16)
    text = LINEAR % "  - model: $half\n  - model: $chat" + "tokenizer_source: union\n"
    seen = opened({**folders, "half": half}, text)
    assert seen["half"].tensors[EMBEDDING].dtype == torch.float32
    assert torch.equal(seen["half"].read(EMBEDDING)[VOCABULARY:], weights(folders["chat"])[VOCABULARY:])
    assert seen["half"].tensors["model.norm.weight"].dtype == torch.bfloat16


def test_the_fingerprint_follows_the_vocabulary_and_those_that_give_rows(folders: dict[str, Path]):
    first = opened(folders, UNION % "")["base"].fingerprint()
    assert first == opened(folders, UNION % "")["base"].fingerprint()
    assert first != opened(folders, UNION % ", pad_to_multiple_of: 64")["base"].fingerprint()
    assert first != opened(folders, MODELS + "tokenizer_source: base\n")["base"].fingerprint()
    assert first != Checkpoint.open(str(folders["base"])).fingerprint()


def test_a_union_is_written_loaded_and_encodes_rightly(folders: dict[str, Path], tmp_path: Path):
    recipe = Recipe.parse(named(folders, UNION % ", pad_to_multiple_of: 8"))
    into_directory(plan(recipe, open_models(recipe)), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 264
    text = "<s><|im_start|>hello<|im_end|><|tool|></s>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    own = AutoTokenizer.from_pretrained(folders["base"])("hello", add_special_tokens=False)["input_ids"]
    assert ids == [1, VOCABULARY, *own, VOCABULARY + 1, VOCABULARY + 2, 2]
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    chat, tools = weights(folders["chat"]), weights(folders["tools"])
    start = (chat[VOCABULARY] + chat[VOCABULARY] + chat[VOCABULARY]) / 3  # the base is merged too, and has chat's
    torch.testing.assert_close(model.get_input_embeddings().weight[VOCABULARY], start)
    torch.testing.assert_close(model.get_input_embeddings().weight[VOCABULARY + 2], tools[VOCABULARY])
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_words_of_another_kind_of_tokenizer_become_added_tokens(folders: dict[str, Path]):
    text = LINEAR % "  - model: $base\n  - model: $words" + "tokenizer_source: union\n"
    seen = opened(folders, text)
    tokenizer = AutoTokenizer.from_pretrained(seen["base"].folder)
    n = VOCABULARY
    assert tokenizer("zebra", add_special_tokens=False)["input_ids"] == [n]
    assert tokenizer("yak", add_special_tokens=False)["input_ids"] == [n + 1]
    assert torch.equal(seen["base"].read(EMBEDDING)[n:], weights(folders["words"])[[2, 4]])


def test_a_tied_head_is_not_written(folders: dict[str, Path], tmp_path: Path):
    base = tiny_checkpoint(tmp_path / "tied", layers=2, tie_word_embeddings=True)
    chat = tiny_checkpoint(tmp_path / "tiedchat", layers=2, tie_word_embeddings=True, extra_tokens=["<|im_end|>"])
    found = {**folders, "tied": base, "more": chat}
    recipe = Recipe.parse(named(found, LINEAR % "  - model: $tied\n  - model: $more" + "tokenizer_source: union\n"))
    into_directory(plan(recipe, open_models(recipe)), tmp_path / "out")
    assert HEAD not in Checkpoint.open(str(tmp_path / "out")).tensors
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_output_embeddings().weight.shape[0] == VOCABULARY + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MODELS, "tokenizer"),
        (UNION % ", tokens: {xx: {source: other}}", "other is not one of the models that are merged"),
        (UNION % ", tokens: {<|tool|>: {source: $chat}}", 'has no token "<|tool|>"'),
        (UNION % ", tokens: {xx: {source: {kind: model_token, model: $base, token: q q}}}", 'has no token "q q"'),
        (UNION % ", tokens: {xx: {source: {kind: model_token, model: $base, token_id: 999}}}", "token_id is 999"),
        (MODELS + "tokenizer_source: nowhere/\n", "r.yaml:8: tokenizer_source"),
        (MODELS + "tokenizer_source: union\ncomponent: {language_of: $base}\n", "remove the tokenizer"),
        (
            "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"
            "      - {model: $base, layer_range: [0, 2]}\n      - {model: $chat, layer_range: [0, 2]}\n",
            "tokenizer: {source: union}",
        ),
    ],
)
def test_what_cannot_be_aligned_is_refused(text: str, words: str, folders: dict[str, Path]):
    assert words in faults_of(folders, text)


def test_a_model_without_a_tokenizer_has_the_bases(folders: dict[str, Path], tmp_path: Path):
    bare = tiny_checkpoint(tmp_path / "bare", seed=8, layers=2, tokenizer=False)
    text = LINEAR % "  - model: $bare\n  - model: $chat" + "base_model: $base\ntokenizer_source: union\n"
    seen = opened({**folders, "bare": bare}, text)
    assert torch.equal(seen["bare"].read(EMBEDDING)[:VOCABULARY], weights(bare))
    assert torch.equal(seen["bare"].read(EMBEDDING)[VOCABULARY:], weights(folders["chat"])[VOCABULARY:])
    assert dict(seen["bare"].config)["eos_token_id"] == 2


def test_a_tokenizer_that_cannot_be_read_is_named(folders: dict[str, Path], tmp_path: Path):
    bare = tiny_checkpoint(tmp_path / "bare", layers=2, tokenizer=False)
    text = LINEAR % "  - model: $bare\n  - model: $base" + "tokenizer_source: union\n"
    assert "bare: its tokenizer cannot be read" in faults_of({**folders, "bare": bare}, text)
    (bare / "tokenizer.json").write_text('{"model": {}}')
    assert "bare: its tokenizer.json cannot be read" in faults_of({**folders, "bare": bare}, text)
    (bare / "tokenizer.json").write_text("[" * 100_000)
    assert "bare/tokenizer.json: expected JSON" in faults_of({**folders, "bare": bare}, text)
    (bare / "tokenizer.json").unlink()
    (bare / "vocab.json").write_text("{}")
    assert "bare: its tokenizer cannot be read" in faults_of({**folders, "bare": bare}, text)


def test_a_damaged_generation_config_is_named(folders: dict[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["base"], tmp_path / "copy")
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"copy/generation_config\.json: expected JSON"):
        opened({**folders, "copy": copy}, LINEAR % "  - model: $copy\n  - model: $chat" + "tokenizer_source: union\n")


def test_numbers_that_name_no_token_stay_and_lists_follow(folders: dict[str, Path], tmp_path: Path):
    copy = shutil.copytree(folders["base"], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    numbers = {
        "image_token_index": 70_000,
        "eos_token_id": [2, 70_000],
        "x": {"y_token_id": 1, "vocab_size": VOCABULARY},
    }
    (copy / "config.json").write_text(json.dumps({**config, **numbers}))
    text = LINEAR % "  - model: $copy\n  - model: $words" + "tokenizer_source: $words\n"
    config = opened({**folders, "copy": copy}, text)["copy"].config
    assert (config["image_token_index"], config["eos_token_id"]) == (70_000, [1])
    assert dict(config["x"]) == {"y_token_id": 5, "vocab_size": 6}


def reordered(folders: dict[str, Path], folder: Path, recipe: str, swapped: str = "", **more: int) -> list[str]:
    """The warnings about a merge of the base and a copy of it with two tokens `swapped`, and with `more` tokens."""
    copy = shutil.copytree(folders["base"], folder / "copy")
    path = copy / "tokenizer.json"
    document = json.loads(path.read_text())
    numbers = document["model"]["vocab"]
    numbers |= dict(zip(swapped, [numbers[token] for token in reversed(swapped)], strict=True)) | more
    path.write_text(json.dumps(document))
    made = Recipe.parse(named({**folders, "copy": copy}, recipe), "r.yaml")
    return [said for said in plan_warnings(plan(made, open_models(made))) if "tokens" in said]


MERGED = LINEAR % "  - model: $base\n  - model: $copy"


def test_a_vocabulary_in_another_order_is_told_with_the_first_tokens_that_differ(folders, tmp_path: Path):
    (said,) = reordered(folders, tmp_path, MERGED, "ab")
    numbers = json.loads((folders["base"] / "tokenizer.json").read_text())["model"]["vocab"]
    for words in (
        f"{tmp_path}/copy numbers 2 tokens",
        f"differently from {folders['base']}",
        f"(token {numbers['a']} is 'b', not 'a', token {numbers['b']} is 'a', not 'b')",
        '"tokenizer_source: base"',
    ):
        assert words in said


def test_nothing_is_said_of_vocabularies_that_agree_or_are_aligned_or_not_merged(folders, tmp_path: Path):
    assert reordered(folders, tmp_path / "same", MERGED) == []
    assert reordered(folders, tmp_path / "aligned", MERGED + "tokenizer_source: base\n", "ab") == []
    alone = "merge_method: passthrough\nmodels: [{model: $copy}]\n"
    assert reordered(folders, tmp_path / "alone", alone, "ab") == []
    assert reordered(folders, tmp_path / "more", MERGED, **{"<more>": 259}) == []
