from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.prompt import RenderedPrompt, render
from corpus.task import Document, Grid, Pair, Task
from corpus.template import (
    PromptTemplate,
    TemplateError,
    load_template,
    parse_template,
    shipped_templates,
)

TASK = Task(
    "t",
    "t.json",
    train=(Pair(((0, 1), (2, 3)), ((4,),)), Pair(((5,),), ((6, 7),))),
    test=(Pair(((8,), (9,)), ((1,),)), Pair(((2,),), None)),
)

DIGITS = """\
Input:
01
23
Output:
4

Input:
5
Output:
67

Input:
8
9
Output:
"""

NUMBERED = """\
One rule turns every input grid into its output grid. Find it in the examples, and apply it to the
last input.

## Example 1

### Input

```grid shape: 2x2
1 01
2 23
```
"""

TOML = """
name = "spaced"
chat = false
system = ""
preamble = "Rows: {{a}}\\n"
example = "{output} <- {input} ({index});"
query = "? <- {input}"
grid = "[{rows}]({width} wide, {height} high)"
row = "<{cells}>"
row_separator = "|"
cell_separator = ", "
"""


def assert_cells_point_at_digits(prompt: RenderedPrompt, task: Task, test_index: int) -> None:
    """Check that `cells` has every cell of every shown grid once, in the order of the text."""
    grids: dict[tuple[int, int], Grid] = {(-1, 0): task.test[test_index].input}
    for example, pair in enumerate(task.train):
        grids |= {(example, 0): pair.input, (example, 1): pair.output or ()}
    expected = {
        (*which, row, column): str(cell)
        for which, grid in grids.items()
        for row, cells in enumerate(grid)
        for column, cell in enumerate(cells)
    }
    assert prompt.cells.dtype == np.int32
    assert {tuple(cell): prompt.text[at] for at, *cell in prompt.cells.tolist()} == expected
    assert len(prompt.cells) == len(expected)
    assert np.all(np.diff(prompt.cells[:, 0]) > 0)


def test_digits():
    prompt = render(load_template("digits"), TASK, 0)
    assert prompt.text == DIGITS
    assert prompt.messages == ()
    assert not prompt.add_generation_prompt
    assert prompt.cells[1:3].tolist() == [[8, 0, 0, 0, 1], [10, 0, 0, 1, 0]]


def test_a_chat_template_gives_a_system_and_a_user_message():
    plain = render(load_template("numbered"), TASK, 0)
    prompt = render(load_template("numbered-chat"), TASK, 0)
    assert prompt.text.startswith(NUMBERED)
    assert plain.text == prompt.text + "\n### Output\n\n"
    system, user = prompt.messages
    assert system == {"role": "system", "content": load_template("numbered-chat").system}
    assert user == {"role": "user", "content": prompt.text}
    assert prompt.add_generation_prompt


@pytest.mark.parametrize("name", shipped_templates())
@pytest.mark.parametrize("test_index", [0, 1])
def test_every_shipped_template_shows_the_task_and_not_the_answer(name: str, test_index: int):
    template = load_template(name)
    assert template.name == name
    assert PromptTemplate(**template.to_json()) == template  # type: ignore[arg-type]
    prompt = render(template, TASK, test_index)
    assert_cells_point_at_digits(prompt, TASK, test_index)
    other = Pair(TASK.test[test_index].input, ((3, 3, 3),))
    changed = Task("t", "t.json", TASK.train, (other, other))
    assert render(template, changed, test_index).text == prompt.text
    assert bool(prompt.messages) == template.chat == name.endswith("-chat")


grids = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 9), min_size=shape[1], max_size=shape[1]).map(tuple),
        min_size=shape[0],
        max_size=shape[0],
    ).map(tuple)
)
pairs = st.builds(Pair, grids, grids)
# Doubled braces and digits would mislead a search for the cells.
literals = st.text("01 {}\n|x", max_size=4).map(lambda s: s.replace("{", "{{").replace("}", "}}"))


@settings(deadline=None)
@given(
    st.lists(pairs, min_size=1, max_size=3),
    pairs,
    st.lists(literals, min_size=16, max_size=16),
    st.booleans(),
)
def test_cells_are_found_in_any_template(
    train: list[Pair], test: Pair, text: list[str], output_first: bool
):
    template = PromptTemplate(
        name="any",
        chat=False,
        system="",
        preamble=text[0],
        example=f"{text[1]}{{{'output' if output_first else 'input'}}}{text[2]}{{index}}{text[3]}"
        f"{{{'input' if output_first else 'output'}}}{text[4]}",
        query=f"{text[5]}{{input}}{text[6]}",
        grid=f"{text[7]}{{height}}{text[8]}{{rows}}{text[9]}{{width}}{text[10]}",
        row=f"{text[11]}{{number}}{text[12]}{{cells}}{text[13]}",
        row_separator=text[14],
        cell_separator=text[15],
    )
    task = Task("t", "t", tuple(train), (test,))
    assert_cells_point_at_digits(render(template, task, 0), task, 0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "spaced"', "", "name is missing; a template has name, chat, system"),
        ('name = "spaced"', 'name = ""', "name: must not be empty"),
        ("chat = false", 'chat = "no"', "chat is 'no'; it must be true or false"),
        ("chat = false", "chat = false\nextra = 1", "extra is unknown; a template has name"),
        ('system = ""', 'system = "You"', "system: must be empty"),
        ("{rows}", "{lines}", "grid: {lines} is not a placeholder here; allowed: {rows}, {height}"),
        ("{cells}", "{cells}{cells}", "row: {cells} occurs 2 times"),
        ("? <- {input}", "{input}{output}", "query: {output} is not a placeholder here"),
        ("? <- {input}", "{input.__class__}", "query: {input.__class__} is not a placeholder"),
        ("? <- {input}", "{input:>99}", "query: {input} is not a placeholder here"),
        ("? <- {input}", "{input", "query: expected '}' before end of string"),
        ("? <- {input}", "\ufdd0{input}", "query: the characters U+FDD0"),
        ("{{a}}", "{a}", "preamble: {a} is not a placeholder here; allowed: none"),
        ("name =", "name", "not valid TOML"),
    ],
)
def test_a_template_that_cannot_be_used_names_file_and_field(old: str, new: str, said: str):
    assert TOML.count(old) >= 1
    with pytest.raises(TemplateError) as error:
        parse_template(TOML.replace(old, new, 1), "folder/mine.toml")
    assert str(error.value).startswith("folder/mine.toml: ")
    assert said in str(error.value)


def test_a_template_that_is_missing_names_the_shipped_ones(tmp_path: Path):
    for name in ("numberd", str(tmp_path), str(tmp_path / "none.toml")):
        with pytest.raises(TemplateError, match="digits, digits-chat, numbered, numbered-chat"):
            load_template(name)


def test_a_template_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML, encoding="utf-8")
    prompt = render(load_template(str(path)), TASK, 1)
    assert prompt.text.startswith("Rows: {a}\n[<4>](1 wide, 1 high) <- [<0, 1>|<2, 3>](2 wide, 2 ")
    assert prompt.text.endswith(" (2);? <- [<2>](1 wide, 1 high)")


def test_documents():
    text = Document("d", "d.jsonl", "as {it} is\n")
    prompt = render(load_template("digits"), text)
    assert (prompt.text, prompt.messages, prompt.cells.shape) == ("as {it} is\n", (), (0, 5))

    prompt = render(load_template("numbered-chat"), text)
    assert prompt.messages == ({"role": "user", "content": "as {it} is\n"},)
    assert prompt.add_generation_prompt
    answered = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
    prompt = render(load_template("digits"), Document("d", "d.jsonl", None, answered))
    assert prompt.messages == answered
    assert not prompt.add_generation_prompt


@pytest.mark.parametrize("strip", [False, True])
def test_cells_are_found_in_what_a_chat_template_makes(strip: bool):
    grid: Grid = tuple(tuple((row + column) % 10 for column in range(30)) for row in range(30))
    task = Task("wide", "w.json", (Pair(grid, grid),) * 3, (Pair(grid, None),))
    prompt = render(load_template("numbered-chat"), task)
    body = prompt.text.strip() if strip else prompt.text
    chat = (
        f"<|im_start|>system\n{prompt.messages[0]['content']}<|im_end|>\n<|im_start|>user\n{body}"
    )
    cells = prompt.cells_within(chat + "<|im_end|>\n")
    assert cells is not None
    assert [chat[offset] for offset in cells[:, 0]] == [
        prompt.text[offset] for offset in prompt.cells[:, 0]
    ]
    assert np.array_equal(cells[:, 1:], prompt.cells[:, 1:])


def test_a_chat_template_that_changes_the_text_or_repeats_it_leaves_cells_without_a_place():
    prompt = render(load_template("digits-chat"), TASK)
    assert prompt.cells_within(prompt.text.replace("\n", " ")) is None
    assert prompt.cells_within(2 * prompt.text) is None
