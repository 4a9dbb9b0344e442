"""Comparison of all kinds of tokenizers with the tokenizers library and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from corpus.prompt import RenderedPrompt, render
from corpus.task import Pair, Task
from corpus.template import load_template
from qwen.source import PRESET_FILES, open_model
from qwen.tokenizer import FILES, TokenizerError, digit_tokens, load_tokenizer
from transforms.chat_template import ChatTemplateError
from transforms.tokenize_tasks import tokenize

TEXTS = (
    "",
    "The year 2023,\n\n 12345 in  the\tfields.\n",
    "\uff26\uff55\uff11 width, \ufb01ne, e\u0301 é, 日本語 🙂 \x00",
    " <s>a <|im_end|> b</s> <extra> Grid",
    "word " * 40,
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TRAINING = ["the year in the fields input output grid", "0 1 2 3 4 5 6 7 8 9 2023 112 333\n"] * 9


def trained(
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    decoder: Any = None,
    alphabet: list[str] | None = None,
    **model: Any,
) -> Tokenizer:
    tokenizer = Tokenizer(BPE(**model))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>"],
        initial_alphabet=alphabet or [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def byte_level(
    digits: str = r"\p{N}", normalizer: Any = None, prefix: bool = False, trim: bool = False
) -> Tokenizer:
    pattern = rf" ?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    tokenizer = trained(
        normalizer,
        pre_tokenizers.Sequence([split, to_bytes]),
        decoders.ByteLevel(),
        sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return tokenizer


def sentencepiece_like(characters: str = "\n▁0123456789inputgrdso") -> Tokenizer:
    """Train a tokenizer like Llama's: spaces become "▁", unknown characters one token per byte."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(characters)]
    merges = [("i", "n"), ("p", "u"), ("pu", "t"), ("▁", "in"), ("▁in", "put")]
    vocab = {token: i for i, token in enumerate([*tokens, *map("".join, merges)])}
    model = BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([prepend, replace])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<extra>", lstrip=True, normalized=False)])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<unk>", "<|im_end|>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <|im_end|>", special_tokens=ends
    )
    return tokenizer


def truncating() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=16)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "single digits": byte_level,
    "grouped digits": lambda: byte_level(r"\p{N}{1,3}"),
    "NFKC": lambda: byte_level(normalizer=normalizers.NFKC()),
    "prefix space": lambda: byte_level(prefix=True, trim=True),
    "Metaspace": lambda: trained(
        normalizers.Strip(), pre_tokenizers.Metaspace(), decoders.Metaspace(), unk_token="<unk>"
    ),
    "byte fallback": sentencepiece_like,
    "digits as bytes": lambda: sentencepiece_like("▁inputgrdso"),
    "truncation and padding": truncating,
}


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of `model_type: qwen2` without a tokenizer."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    return copy


def write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def ids(folder: Path, text: str) -> list[int]:
    prompt = RenderedPrompt(text, (), np.empty((0, 5), np.int32))
    return tokenize(prompt, open_model(folder).tokenizer()).token_ids.tolist()


# Token ids


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_are_those_of_tokenizer_json(folder: Path, kind: str) -> None:
    TOKENIZERS[kind]().save(str(folder / "tokenizer.json"))
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    for text in TEXTS:
        assert ids(folder, text) == reference.encode(text, add_special_tokens=False).ids


CLASSES = (
    *(None, "Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "NoSuchClass"),
    *("LlamaTokenizer", "GPT2TokenizerFast", "TokenizersBackend"),
)


@pytest.mark.parametrize("name", CLASSES)
def test_any_tokenizer_class_has_the_same_ids(folder: Path, name: str | None) -> None:
    TOKENIZERS["grouped digits"]().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, "add_bos_token": True, "add_prefix_space": True}
    write(folder / "tokenizer_config.json", config)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert ids(folder, text) == reference.encode(text, add_special_tokens=False).ids


# Added tokens


def stated(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the `added_tokens_decoder` that transformers writes for a tokenizer."""
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        str(token_id): {name: getattr(token, name) for name in fields}
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
    }


def test_added_tokens_that_all_files_state_alike(folder: Path) -> None:
    tokenizer = sentencepiece_like()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = stated(tokenizer)
    config = {"added_tokens_decoder": tokens, "eos_token": "<|im_end|>"}
    write(folder / "tokenizer_config.json", config)
    write(
        folder / "added_tokens.json", {token["content"]: int(key) for key, token in tokens.items()}
    )
    write(folder / "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}})
    for text in TEXTS:
        assert ids(folder, text) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("tokenizer_config.json", {"pad_token": "[PAD]"}, ["'[PAD]'"]),
        ("tokenizer_config.json", {"eos_token": "year"}, ["'year'"]),
        ("tokenizer_config.json", {"extra_special_tokens": ["[A]"]}, ["'[A]'"]),
        ("tokenizer_config.json", {"image_token": "[IMAGE]"}, ["'[IMAGE]'"]),
        ("special_tokens_map.json", {"eos_token": {"content": "[EOS]"}}, ["'[EOS]'"]),
        ("added_tokens.json", {"[NEW]": 900}, ["'[NEW]'", "id 900"]),
        ("added_tokens.json", {"<|im_end|>": 900}, ["'<|im_end|>'", "id 900"]),
        ("added_tokens.json", {"!": 1}, ["'!'", "not an added token"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "[B]"}}}, ["id 7"]),
        ("tokenizer_config.json", {"split_special_tokens": True}, ["split_special_tokens"]),
    ],
)
def test_files_that_contradict_tokenizer_json_are_named(
    folder: Path, file: str, content: dict[str, Any], parts: list[str]
) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    write(folder / file, content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder)
    for part in (str(folder / file), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_an_added_token_with_other_flags_is_named(folder: Path, flag: str) -> None:
    """Flags decide what a token matches and whether it includes the spaces around it."""
    tokenizer = byte_level()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = stated(tokenizer)
    key = next(key for key, token in tokens.items() if token["content"] == "<|im_end|>")
    tokens[key] = {**tokens[key], flag: not tokens[key][flag]}
    write(folder / "tokenizer_config.json", {"added_tokens_decoder": tokens})
    with pytest.raises(TokenizerError, match=rf"tokenizer_config.*im_end.*{flag}"):
        load_tokenizer(folder)


def test_random_token_ids_are_refused(folder: Path) -> None:
    tokenizer = byte_level()
    tokenizer.model.dropout = 0.1
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json.*dropout"):
        load_tokenizer(folder)


def write_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the files of the former Python tokenizers, without `tokenizer.json`."""
    fields = json.loads(tokenizer.to_str())
    added = {token["content"]: token["id"] for token in fields["added_tokens"]}
    vocab = {name: i for name, i in fields["model"]["vocab"].items() if name not in SPECIAL}
    write(folder / "vocab.json", vocab)
    merges = "\n".join(" ".join(merge) for merge in fields["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    write(folder / "added_tokens.json", {name: i for name, i in added.items() if name in SPECIAL})


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "Qwen2TokenizerFast"])
def test_a_vocabulary_without_tokenizer_json_is_qwen_s(folder: Path, name: str) -> None:
    preset = Tokenizer.from_file(str(PRESET_FILES.folder / "tokenizer.json"))
    write_vocabulary(folder, preset)
    (folder / "tokenizer.model").write_text("of another tokenizer")
    write(folder / "tokenizer_config.json", {"tokenizer_class": name})
    for text in TEXTS:
        assert ids(folder, text) == preset.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}, ["GPT2Tokenizer"]),
        ("tokenizer_config.json", {}, ["tokenizer_class None"]),
        ("added_tokens.json", {"<|im_end|>": 2000}, ["added_tokens.json", "id 2000"]),
    ],
)
def test_a_vocabulary_of_another_tokenizer(
    folder: Path, file: str, content: dict[str, Any], parts: list[str]
) -> None:
    write_vocabulary(folder, Tokenizer.from_file(str(PRESET_FILES.folder / "tokenizer.json")))
    write(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    write(folder / file, content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder)
    for part in (str(folder), *parts):
        assert part in str(caught.value)


# Chat templates

CHAT = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi 3"}]
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
PLACES: dict[str, tuple[str, object]] = {
    "config": ("tokenizer_config.json", {"chat_template": "config {{ messages[1].content }}"}),
    "names": ("tokenizer_config.json", {"chat_template": NAMED}),
    "jinja": ("chat_template.jinja", "jinja {{ messages[1].content }}{{ eos_token }}"),
    "tools": ("additional_chat_templates/tool_use.jinja", "tools"),
}


def text_of_chat(folder: Path) -> str:
    return str(load_tokenizer(folder).apply_chat_template(CHAT, tokenize=False))


def write_places(folder: Path, places: str) -> None:
    shutil.copy(PRESET_FILES.folder / "tokenizer.json", folder)
    for place in places.split():
        file, content = PLACES[place]
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    "places", ["config", "names", "jinja", "config jinja", "names jinja", "jinja tools"]
)
def test_the_chat_template_is_that_of_transformers(folder: Path, places: str) -> None:
    write_places(folder, places)
    reference = AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT, tokenize=False)
    write(folder / "chat_template.json", {"chat_template": "legacy"})
    assert text_of_chat(folder) == reference


@pytest.mark.parametrize("config", [{}, {"eos_token": "<|im_end|>"}, {"eos_token": None}])
@pytest.mark.parametrize("name", CLASSES)
def test_the_special_tokens_of_a_chat_template_are_those_of_transformers(
    folder: Path, name: str | None, config: dict[str, Any]
) -> None:
    write_places(folder, "")
    write(folder / "tokenizer_config.json", config | {"tokenizer_class": name})
    names = ("eos_token", "pad_token", "unk_token", "bos_token")
    (folder / "chat_template.jinja").write_text("|".join(f"{{{{ {each} }}}}" for each in names))
    reference = AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT, tokenize=False)
    assert text_of_chat(folder) == reference


def test_the_chat_template_of_a_processor_is_used_if_there_is_no_other(folder: Path) -> None:
    write_places(folder, "")
    assert open_model(folder).tokenizer().chat_template is None
    file = folder / "chat_template.json"
    write(file, {"chat_template": "legacy {{ messages[1].content }}"})
    assert text_of_chat(Path(shutil.copytree(folder, folder.with_name("copy")))) == "legacy Hi 3"


def test_named_chat_templates_without_a_default_are_refused_by_name(folder: Path) -> None:
    write_places(folder, "tools")
    prompt = RenderedPrompt("", tuple(CHAT), np.empty((0, 5), np.int32))
    with pytest.raises(ChatTemplateError, match=r"no default.*tool_use"):
        tokenize(prompt, load_tokenizer(folder))


@pytest.mark.parametrize("file", [*FILES, "additional_chat_templates/tool_use.jinja"])
def test_every_file_of_a_tokenizer_is_in_its_fingerprint(folder: Path, file: str) -> None:
    before = open_model(folder).tokenizer_fingerprint()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}")
    assert open_model(folder).tokenizer_fingerprint() != before


# Cells of grids

NARROW = Task("t", "a.json", (Pair(((1,), (2,)), ((3,),)),), (Pair(((4,),), None),))
WIDE = Task("t", "a.json", (Pair(((1, 1), (2, 1)), ((3,),)),), (Pair(((4,),), None),))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_a_digit_are_known(folder: Path, kind: str) -> None:
    TOKENIZERS[kind]().save(str(folder / "tokenizer.json"))
    tokenizer = open_model(folder).tokenizer()
    expected: list[list[int]] = [[] for _ in range(10)]
    for token_id in sorted(tokenizer.get_vocab().values()):
        if (text := str(tokenizer.decode([token_id])).strip()) in set("0123456789"):
            expected[int(text)].append(token_id)
    assert digit_tokens(tokenizer) == expected
    assert all(expected)


@pytest.mark.parametrize("task", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("template", ["digits", "numbered"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_cell_is_traced_to_the_token_that_shows_its_digit(
    folder: Path, kind: str, template: str, task: Task
) -> None:
    """If the tokenizer groups digits, all cells may be unknown instead."""
    tokenizer = TOKENIZERS[kind]()
    tokenizer.save(str(folder / "tokenizer.json"))
    prompt = render(load_template(template), task)
    tokenized = tokenize(prompt, open_model(folder).tokenizer())
    token_ids, cells = tokenized.token_ids, tokenized.cells
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # With ByteLevel(trim_offsets=True), the offsets of digits after an added space are empty.
    tokenizer.post_processor = processors.Sequence([])
    encoding = tokenizer.encode(prompt.text, add_special_tokens=False)
    assert encoding.ids == token_ids.tolist()
    places = prompt.cells[:, 0].tolist()
    tokens = [encoding.char_to_token(place) or 0 for place in places]
    digits = [prompt.text[slice(*encoding.offsets[token])].strip() for token in tokens]
    if any(len(each) != 1 for each in digits):
        assert (cells == -2).all()
    else:
        assert cells[tokens].tolist() == prompt.cells[:, 1:].tolist()
        assert (np.delete(cells, tokens, axis=0) == -1).all()
