"""Runs over long documents and with a choice of tokens, from the flags to the readers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.reading.reader import ActivationDataset
from beam_pipeline.command import main
from qwen.batching import SampleTokens
from qwen.extractor import ActivationExtractor
from qwen.source import open_model
from tests.end_to_end.job import (
    digests,
    error_of,
    flags_of,
    metadata_of,
    problems_of,
    rejections,
    run,
)

FLAGS: tuple[str, ...] = ("--layers_to_extract", "0", "--pooling", "none", "--batch_size", "1")
FLAGS += ("--compute_dtype", "float32")
BOS = "<|endoftext|>"
SIZES = [1, 3, 20, 30, 31, 32, 33, 95, 300]


def write(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*"0123456789ab .\n"], size)) + "." for size in SIZES]
    path = tmp_path_factory.mktemp("documents") / "texts.jsonl"
    return write(path, *({"id": f"d{n}", "text": text} for n, text in enumerate(texts)))


@pytest.mark.parametrize("overlap", [0, 7])
@pytest.mark.parametrize("bos", [False, True])
def test_every_token_of_a_document_has_one_vector(
    checkpoint: Path, documents: Path, tmp_path: Path, overlap: int, bos: bool
):
    flags: tuple[str, ...] = (*FLAGS, "--context_size", "32", "--context_overlap", str(overlap))
    flags += ("--samples_per_shard", "10")
    flags += ("--prepend_bos", BOS, "--tokens", "no_special") if bos else ()
    out = tmp_path / "out"
    run(checkpoint, documents, out, *flags)
    assert problems_of(out) == []
    dataset, tokenizer = ActivationDataset(out), open_model(str(checkpoint)).tokenizer()
    of_document: dict[str, dict[int, int]] = {}
    for record in dataset.records(0):
        document, _, offset = record.sample_id.partition("@")
        assert (int(offset), bos) == (record.offset, record.prepended_bos)
        assert record.num_tokens <= 32
        assert len(record.activation) == len(record.token_ids)
        positions = range(record.num_tokens) if record.positions is None else record.positions
        tokens = of_document.setdefault(document, {})
        for position, token_id in zip(positions, record.token_ids.tolist(), strict=True):
            place = record.offset + int(position) - bos
            assert place not in tokens
            tokens[place] = token_id
    for line in documents.read_text().splitlines():
        document = json.loads(line)
        ids = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
        tokens = of_document.pop(f"texts.jsonl#{document['id']}")
        assert [tokens[place] for place in sorted(tokens)] == ids
    assert not of_document
    settings = metadata_of(out).run.settings
    assert (settings["context_size"], settings["context_overlap"]) == (32, overlap)
    bos_id = tokenizer.convert_tokens_to_ids(BOS)
    assert settings["prepend_bos"] == ({"id": bos_id, "token": BOS} if bos else None)
    shutil.rmtree(out / "index", ignore_errors=True)
    before = digests(out)
    (out / "layer_0" / "activations-00001-of-00002.tfrecord").unlink(missing_ok=True)
    run(checkpoint, documents, out, *flags)
    assert digests(out) == before


def test_chosen_vectors_are_those_of_a_run_over_all_tokens(
    checkpoint: Path, documents: Path, tmp_path: Path
):
    for name, choice in (("all", "all"), ("some", "every:8")):
        run(checkpoint, documents, tmp_path / name, *FLAGS, "--tokens", choice)
        assert problems_of(tmp_path / name) == []
    whole, some = ActivationDataset(tmp_path / "all"), ActivationDataset(tmp_path / "some")
    assert len(whole) == len(some)
    by_id = {record.sample_id: record for record in whole.records(0)}
    for record in some.records(0):
        expected = by_id[record.sample_id].activation[::8]
        np.testing.assert_allclose(record.activation, expected, atol=1e-4)
    assert some.num_vectors == sum(-(-record.num_tokens // 8) for record in by_id.values())


@pytest.mark.parametrize("storage_dtype", ["int8", "float8_e4m3"])
def test_vectors_of_8_bits(
    checkpoint: Path, documents: Path, tmp_path: Path, storage_dtype: str, capsys
):
    flags = (*FLAGS, "--storage_dtype", storage_dtype)
    assert main(["plan", *flags_of(checkpoint, documents, tmp_path, flags)]) == 0
    planned = capsys.readouterr().out
    out = tmp_path / "out"
    run(checkpoint, documents, out, *flags)
    assert problems_of(out) == []
    size = sum(file.stat().st_size for file in (out / "layer_0").iterdir())
    assert f"{size:,} of the layers" in planned
    extractor = ActivationExtractor.load(checkpoint, [0], pooling="none", compute_dtype="float32")
    for record in ActivationDataset(out).records(0):
        (alone,) = extractor.extract([SampleTokens(record.token_ids)])
        error = np.linalg.norm(record.activation - alone.vectors[0], axis=1)
        assert (error <= 0.05 * np.linalg.norm(alone.vectors[0], axis=1)).all()


def test_tokens_of_the_assistant_alone(checkpoint: Path, tmp_path: Path):
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So it is."}]
    corpus = write(
        tmp_path / "chats.jsonl",
        {"id": "a", "messages": [*said, {"role": "user", "content": "Oh."}]},
        {"id": "b", "messages": said[:1]},
        {"id": "c", "text": "So it is."},
    )
    out = tmp_path / "out"
    run(checkpoint, corpus, out, *FLAGS, "--tokens", "assistant")
    assert problems_of(out) == []
    (record,) = ActivationDataset(out).records(0)
    tokenizer = open_model(str(checkpoint)).tokenizer()
    assert (record.sample_id, tokenizer.decode(record.token_ids)) == ("chats.jsonl#a", "So it is.")
    counts = metadata_of(out).counts
    assert (counts.tasks.unchosen, counts.samples.unchosen) == (2, 2)
    assert not (out / "errors" / "rejected.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--context_overlap", "3"), "--context_size"),
        (("--context_size", "3", "--context_overlap", "3"), "--context_size=3"),
        (("--context_size", "9", "--overlength", "truncate"), "--overlength=truncate"),
        (("--context_size", "9999999"), "--context_size=9999999"),
        (("--pooling", "last", "--tokens", "every:8"), "--pooling none"),
        (("--tokens", "assistants"), "assistants"),
        (("--prepend_bos", "<bos>"), "--prepend_bos <bos>"),
        (("--tokens", "system"), "no token is chosen"),
        (("--tokens", "system"), "only the messages of chats"),
    ],
)
def test_flags_that_do_not_fit_are_named(
    checkpoint: Path, documents: Path, tmp_path: Path, capsys, flags: tuple[str, ...], named: str
):
    assert named in error_of(capsys, checkpoint, documents, tmp_path / "out", *FLAGS, *flags)


def test_a_prompt_that_begins_with_the_token_already_is_rejected(checkpoint: Path, tmp_path: Path):
    corpus = write(tmp_path / "t.jsonl", {"text": f"{BOS}12"}, {"text": "12"})
    run(checkpoint, corpus, tmp_path / "out", *FLAGS, "--prepend_bos", BOS)
    assert metadata_of(tmp_path / "out").counts.samples.rejected == {"has_bos": 1}


def test_token_ids_need_no_tokenizer(checkpoint: Path, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, model)
    ids = {"a": [5, 0, 5], "b": [*range(70)]}
    corpus = write(
        tmp_path / "ids.jsonl",
        {"id": "a", "input_ids": ids["a"], "attention_mask": [1, 1, 1], "length": 3},
        {"id": "b", "tokens": ids["b"]},
        {"id": "c", "text": "a text"},
        {"id": "d", "input_ids": [5, 0], "attention_mask": [1, 0]},
        {"id": "e", "input_ids": [5, 9_999_999]},
        {"id": "f", "input_ids": [5], "text": "a"},
        {"id": "g", "tokens": ["a", "b"]},
    )
    out = tmp_path / "out"
    run(model, corpus, out, *FLAGS, "--context_size", "32")
    assert problems_of(out) == []
    found: dict[str, list[int]] = {}
    for record in sorted(ActivationDataset(out).records(0), key=lambda each: each.offset):
        found.setdefault(record.task_id, []).extend(record.token_ids.tolist())
    assert found == ids
    assert {each["task_id"]: each["reason"] for each in rejections(out)} == {
        "c": "no_tokenizer",
        "d": "bad_token_ids",
        "e": "unknown_token_id",
        "f": "ambiguous",
        "g": "bad_token_ids",
    }
    assert metadata_of(out).run.tokenizer["digits"] == []
