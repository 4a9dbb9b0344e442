"""Formats of texts and chats in datasets, read from JSON Lines and from Parquet."""

import io
import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from corpus.documents import to_document
from corpus.parse import parse_tasks
from corpus.tables import parse_table
from corpus.task import Document, Item, RejectedTask, Rejection

HI, HO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"name": "f", "parameters": {"type": "object"}}
CALL = {"name": "f", "arguments": {"x": 1}}


def lines(*records: dict[str, Any], text_field: str | None = None) -> list[Item]:
    content = "".join(json.dumps({"id": f"r{i}", **r}) + "\n" for i, r in enumerate(records))
    return list(parse_tasks(io.BytesIO(content.encode()), "a.jsonl", text_field))


def table(*records: dict[str, Any], text_field: str | None = None) -> list[Item]:
    stream = io.BytesIO()
    rows = [{"id": f"r{index}", **record} for index, record in enumerate(records)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    parquet.write_table(pa.table(columns), stream)
    return list(parse_table(stream, "a.jsonl", text_field))


def text(content: str) -> Document:
    return Document("r0", "a.jsonl", content)


def chat(*messages: dict[str, Any], **template_arguments: object) -> Document:
    return Document("r0", "a.jsonl", None, messages, template_arguments)


def spoken(*turns: str) -> list[dict[str, str]]:
    return [dict(zip(("from", "value"), turn.split(": ", 1), strict=True)) for turn in turns]


@pytest.mark.parametrize("parse", [lines, table])
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"conversation": [HI, HO], "model": "m", "turn": 1}, chat(HI, HO)),
        ({"conversations": [HI, HO]}, chat(HI, HO)),
        ({"conversations": spoken("human: Hi", "gpt: Ho")}, chat(HI, HO)),
        ({"conversations": spoken("human: Hi"), "system": "Be brief."}, chat(SYSTEM, HI)),
        (
            {"conversations": spoken("system: Be brief.", "human: Hi"), "system": "Be brief."},
            chat(SYSTEM, HI),
        ),
        (
            {
                "conversations": spoken(
                    "human: Hi", f"function_call: {json.dumps(CALL)}", "observation: 3"
                ),
                "tools": json.dumps([TOOL]),
            },
            chat(
                HI,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": CALL}],
                },
                {"role": "tool", "content": "3"},
                tools=[TOOL],
            ),
        ),
        ({"messages": [HI, HO], "prompt": "Hi", "chosen": [HI, HO]}, chat(HI, HO)),
        ({"messages": [HI], "tools": "", "system": ""}, chat(HI)),
        ({"messages": [HI], "text": ""}, chat(HI)),
        ({"prompt": [HI], "completion": [HO]}, chat(HI, HO)),
        ({"prompt": [HI], "answer": "42"}, chat(HI)),
        ({"prompt": "The sky", "completion": " is blue."}, text("The sky is blue.")),
        ({"prompt": "The sky"}, text("The sky")),
        ({"prompt": "Write.", "text": "Words.", "system": "x"}, text("Words.")),
        ({"text": "Words.", "test": True, "url": "x"}, text("Words.")),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, chat(HI, HO)),
        (
            {"instruction": "A", "input": "B", "output": "C", "history": [["Hi", "Ho"]]},
            chat(
                HI, HO, {"role": "user", "content": "A\nB"}, {"role": "assistant", "content": "C"}
            ),
        ),
    ],
)
def test_the_forms_that_datasets_use(parse: Any, record: dict[str, Any], expected: Document):
    assert parse(record) == [expected]


def test_nulls_that_a_table_adds_are_absent_but_those_of_json_in_arguments_are_kept():
    calls: list[dict[str, Any]] = [
        {"name": "f", "arguments": arguments} for arguments in ({"x": 1}, {"y": [{"z": 2}]})
    ]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    assert table({"messages": [HI, called]}) == [chat(HI, called)]
    calls[0]["arguments"] = {"x": None}
    assert lines({"messages": [HI, called]}) == [chat(HI, called)]
    parts = [{"type": "text", "text": "Hi", "image": None}]
    (document,) = lines({"messages": [{"role": "user", "content": parts, "name": None}]})
    assert document == chat({"role": "user", "content": [{"type": "text", "text": "Hi"}]})


@pytest.mark.parametrize(
    ("record", "reason", "said"),
    [
        ({"text": "a", "messages": [HI]}, "ambiguous", "messages and text; choose one with --text"),
        ({"prompt": "a", "instruction": "b", "output": "c"}, "ambiguous", "--text_field prompt"),
        ({"prompt": "a", "response": "b"}, "ambiguous", "response"),
        ({"prompt": "a", "completion": [HO]}, "bad_text", "prompt and completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", "--text_field"),
        ({"prompt": "a", "tools": [TOOL]}, "bad_chat", "tools"),
        ({"instruction": "a", "response": "b"}, "bad_chat", "output: missing"),
        ({"messages": [HI], "system": "x"}, "bad_chat", "system: "),
        ({"conversations": [SYSTEM, HI], "system": "x"}, "bad_chat", "system: "),
        ({"messages": [HI], "functions": [TOOL]}, "bad_chat", "functions: "),
        ({"messages": [HI], "tools": "f"}, "bad_chat", "tools: not JSON"),
        ({"messages": [HI], "tools": ["f"]}, "bad_chat", "tools: ['f']"),
        ({"messages": [HI], "chat_template_kwargs": []}, "bad_chat", "chat_template_kwargs: []"),
        ({"messages": [HI], "chat_template_kwargs": {"tools": 1}}, "bad_chat", "tools must be"),
        ({"conversations": [{"from": "x", "value": "a"}]}, "bad_message", "[0].from: 'x'; must"),
        ({"conversations": spoken("human: Hi", "function_call: f")}, "bad_message", "not JSON"),
        ({"conversations": [{**HI, "from": "x", "value": "a"}]}, "bad_message", "[0]: has both"),
        ({"messages": [{"content": "a"}]}, "bad_message", "[0].role: missing"),
        ({"messages": [HI, {**HO, "content": 3}]}, "bad_message", "[1].content: 3"),
        ({"messages": [HI, {**HO, "tool_calls": "f"}]}, "bad_message", "[1].tool_calls: 'f'"),
        ({"messages": [HI, {**HO, "tool_calls": [{}]}]}, "bad_message", "[1].tool_calls[0]"),
        ({"messages": [{**HI, "content": ["a"]}]}, "bad_message", "[0].content[0]: 'a'"),
        (
            {"messages": [{**HI, "content": [{"type": "image", "image": "x"}]}]},
            "bad_message",
            "not images",
        ),
        ({"messages": [{**HI, "note": "\ud800"}]}, "bad_encoding", "messages[0].note"),
        ({"messages": [{**HI, "note": json.loads("[" * 99 + "]" * 99)}]}, "too_deep", "[0].note"),
    ],
)
def test_an_unknown_record_is_rejected_by_name(record: dict[str, Any], reason: str, said: str):
    (rejected,) = lines(record)
    assert isinstance(rejected, RejectedTask)
    assert rejected.reason == reason, rejected.detail
    assert said in rejected.detail


def test_a_date_is_left_out_of_metadata_but_not_of_what_the_model_sees():
    date = pa.scalar(0, pa.timestamp("s")).as_py()
    assert table({"conversation": [{**HI, "timestamp": date}]}) == [chat(HI)]
    (rejected,) = table({"messages": [HI], "tools": [{**TOOL, "since": date}]})
    assert isinstance(rejected, RejectedTask)
    assert "tools[0].since" in rejected.detail


@pytest.mark.parametrize("parse", [lines, table])
def test_a_named_field_is_all_that_is_read(parse: Any):
    record = {"text": "a", "messages": [HI], "meta": {"body": "b"}, "input": "c"}
    for name, expected in {
        "text": text("a"),
        "messages": chat(HI),
        "meta.body": text("b"),
        "input": text("c"),
    }.items():
        assert parse(record, text_field=name) == [expected]
    (rejected,) = parse(record, text_field="meta.title")
    assert isinstance(rejected, RejectedTask)
    assert rejected.reason == "no_text_field"
    assert "--text_field meta.title" in rejected.detail


@pytest.mark.parametrize("content", ['{"id": "r0", %s}', '{"r0": {%s}}', '[{"id": "r0", %s}]'])
def test_a_named_field_is_found_in_every_layout_of_json(content: str):
    for body, name in (
        ('"body": "a", "text": "b"', "body"),
        ('"meta": {"body": "a"}', "meta.body"),
    ):
        data = (content % body).encode()
        (item,) = parse_tasks(io.BytesIO(data), "a.json", name)
        assert item == replace(text("a"), source="a.json")


@pytest.mark.parametrize(
    ("record", "text_field"),
    [
        ({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0]}, None),
        ({"a": {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0]}}, "a.input_ids"),
        ({"a": {"input_ids": [1, 2, 3], "position_ids": [0, 1, 0]}}, "a.input_ids"),
        ({"tokens": [1, 2, 3], "seq_lengths": [1, 2]}, None),
        ({"tokens": [1, 2], "pixel_values": [[0.5]]}, None),
        ({"ids": [1, 2], "token_type_ids": [0, 1]}, "ids"),
        ({"input_ids": [1.0, 2.0]}, None),
        ({"input_ids": [1, 2**31]}, None),
        ({"input_ids": []}, None),
    ],
    ids=str,
)
def test_ids_of_which_the_model_would_compute_something_else(
    record: dict[str, Any], text_field: str | None
) -> None:
    with pytest.raises(Rejection) as rejected:
        to_document(record, "a.jsonl", "a", text_field)
    assert rejected.value.reason == "bad_token_ids"


def test_a_text_with_ids_is_ambiguous_whatever_the_ids() -> None:
    for ids in ([1, 2], [1.0, 2.0], [[1, 2]]):
        with pytest.raises(Rejection, match="--text_field text or --text_field inp") as rejected:
            to_document({"text": "a", "input_ids": ids}, "a.jsonl", "a", None)
        assert rejected.value.reason == "ambiguous"
    counted = to_document({"text": "a", "tokens": 512}, "a.jsonl", "a", None)
    assert counted.text == "a"
    whole = {"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [1, 2]}
    assert to_document(whole, "a.jsonl", "a", None).token_ids == (1, 2)
