"""Everything read is either written or rejected, in the counts of files, tasks and samples."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tensorflow as tf
from tokenizers import Tokenizer

from activation_dataset.__main__ import main as dataset_command
from activation_dataset.prompts import read_prompts
from activation_dataset.reading.reader import ActivationDataset
from beam_pipeline.command import main
from tests.end_to_end.job import flags_of, metadata_of, problems_of, rejections

FLAGS = (
    *("--layers_to_extract", "0", "--batch_size", "1", "--augment", "3"),
    "--augment_keep_background",
    *("--max_length", "60", "--overlength", "truncate"),
)
PAIR = {"input": [[1, 2], [3, 4]], "output": [[5]]}
LONG = {"input": [[7] * 20] * 3}
DOT = {"train": [{"input": [[0]], "output": [[0]]}], "test": [{"input": [[0]]}]}
TRUNCATED = {"a": "1 " * 50, "b": "2 " * 40}
FILES = {
    "cut.json": '[{"id": "before", "text": "A word."}, {"id": "x"',
    "empty.json": "",
    "tasks.json": json.dumps(
        {
            "good": {"train": [PAIR], "test": [{"input": [[6]]}]},
            "half": {"train": [PAIR], "test": [{"input": [[6]]}, LONG]},
            "long": {"train": [PAIR], "test": [LONG, LONG]},
            "bad": {"train": [PAIR], "test": [{"input": [[10]]}]},
            "dot": DOT,
        }
    ),
    "texts.jsonl": "\n".join(
        [
            json.dumps({"id": "short", "text": "Words."}),
            *(json.dumps({"id": name, "text": text}) for name, text in TRUNCATED.items()),
            json.dumps({"id": "b", "text": "again"}),
            "nonsense",
        ]
    ),
}


@pytest.fixture(scope="module")
def found(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the dataset and the output of the job."""
    folder = tmp_path_factory.mktemp("counts")
    (folder / "tasks").mkdir()
    for name, content in FILES.items():
        (folder / "tasks" / name).write_text(content)
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: printed.extend(map(str, parts)))
        assert main(flags_of(checkpoint, folder / "tasks", out, FLAGS)) == 0
    return out, "\n".join(printed)


def test_read_is_written_and_rejected(found: tuple[Path, str]):
    counts = metadata_of(found[0]).counts
    assert counts.rejected_files == {"truncated_json": 1, "empty_file": 1}
    # before, five tasks, five lines
    assert counts.tasks.read == 11
    assert counts.tasks.rejected == {"too_long": 1, "bad_cell": 1, "duplicate_id": 1, "not_json": 1}
    # 4 documents; variants times tests of the readable tasks
    assert counts.samples.read == 4 + 3 * (1 + 2 + 2 + 1)
    assert counts.samples.rejected == {"too_long": 3 * (1 + 2), "too_few_variants": 2}


def test_the_counts_are_those_of_the_files(checkpoint: Path, found: tuple[Path, str]):
    """The records name the truncated prompts, also for TensorFlow."""
    out = found[0]
    assert problems_of(out) == []
    counts, dataset = metadata_of(out).counts, ActivationDataset(out)
    records = list(dataset.records(0))
    assert len(records) == counts.samples.written
    assert len({(each.sample_id.partition("#")[0], each.task_id) for each in records}) == (
        counts.tasks.written
    )
    cut = {each.sample_id: each.truncated_tokens for each in records if each.truncated_tokens}
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert cut == {
        f"texts.jsonl#{name}": len(tokenizer.encode(text, add_special_tokens=False)) - 60
        for name, text in TRUNCATED.items()
    }
    assert (counts.truncated_samples, counts.truncated_tokens) == (2, sum(cut.values()))
    with dataset.folder.open("prompts/prompts-00000-of-00001.tfrecord") as stream:
        prompts = {each.sample_id: each.truncated_tokens for each in read_prompts(stream, "file")}
    assert {name: tokens for name, tokens in prompts.items() if tokens} == cut
    for path in ("prompts/prompts", "layer_0/activations"):
        in_file = {}
        for data in tf.data.TFRecordDataset(str(out / f"{path}-00000-of-00001.tfrecord")):
            features = tf.train.Example.FromString(data.numpy()).features.feature
            if "truncated_tokens" in features:
                (sample_id,) = features["sample_id"].bytes_list.value
                (tokens,) = features["truncated_tokens"].int64_list.value
                in_file[sample_id.decode()] = tokens
        assert in_file == cut


def test_every_rejection_is_listed(found: tuple[Path, str]):
    listed = rejections(found[0])
    kinds = Counter((each["kind"], each["reason"]) for each in listed)
    assert kinds == {
        ("file", "truncated_json"): 1,
        ("file", "empty_file"): 1,
        ("task", "bad_cell"): 1,
        ("task", "duplicate_id"): 1,
        ("task", "not_json"): 1,
        ("task", "too_long"): 1,
        ("sample", "too_long"): 3,
        ("sample", "too_few_variants"): 1,
    }
    too_long = [each for each in listed if each["reason"] == "too_long"]
    assert {each["task_id"] for each in too_long} == {"half", "long"}
    assert all("test input" in each["detail"] for each in too_long)


def test_summary_inspect_and_card_agree(found: tuple[Path, str], capsys):
    out, summary = found
    assert dataset_command(["inspect", str(out)]) == 0
    cut = metadata_of(out).counts.truncated_tokens
    for text in (summary, capsys.readouterr().out, (out / "README.md").read_text()):
        words = " ".join(text.replace("|", " ").replace(";", " ").replace("\\", "").split())
        for part in (
            "read 11 items 7 written, 4 rejected (1 bad_cell, 1 duplicate_id, 1 not_json, ",
            "read 22 samples 11 written, 11 rejected (2 too_few_variants, 9 too_long)",
            "rejected 2 files whole or in part (1 empty_file, 1 truncated_json)",
            f"cut off {cut} tokens at the end of 2 samples",
        ):
            assert part in words
