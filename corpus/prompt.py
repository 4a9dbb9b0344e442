"""Prompt text of a task or a document, with the offset of every grid cell in the text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus.task import Document, Grid, Message, Pair, Task
from corpus.template import STAND_INS, PromptTemplate

CELL_COLUMNS = ("offset", "example", "role", "row", "column")
TEST_PAIR = -1
INPUT, OUTPUT = 0, 1

_DIGITS = {ord(cell): str(code % 10) for code, cell in enumerate(STAND_INS)}


@dataclass(frozen=True, slots=True, eq=False)
class RenderedPrompt:
    """A prompt: plain text, a conversation or token ids.

    Attributes:
        text: plain prompt, or content of the user's message rendered from a template; "" for a
            document's messages.
        messages: conversation for the tokenizer's chat template; empty for a plain prompt, which is
            tokenized unchanged.
        cells: `[num_cells, 5] int32`, a row for every cell of every grid, in the order of the text:
            the cell's character offset in `text`, its example (0, 1, ... or -1 for the test pair),
            its role (0 input, 1 output), its row and its column. A cell is one character.
        template_arguments: arguments of the chat template other than the messages, such as `tools`.
        token_ids: ids of a document that has token ids instead of a text, otherwise empty.
    """

    text: str
    messages: tuple[Message, ...]
    cells: npt.NDArray[np.int32]
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()

    @property
    def add_generation_prompt(self) -> bool:
        """True if the chat template opens the assistant's turn, False if the chat contains it."""
        return self.messages != () and self.messages[-1]["role"] != "assistant"

    def cells_within(self, chat_text: str) -> npt.NDArray[np.int32] | None:
        """Return `cells` with offsets into the chat template's rendering of `messages`.

        Chat templates may strip white space at the ends of the text. If a template changes the rest
        or writes it twice, the cells have no unique offsets, and None is returned.
        """
        if len(self.cells) == 0:
            return self.cells
        body = self.text.strip()
        found = chat_text.find(body)
        if found < 0 or found != chat_text.rfind(body):
            return None
        moved = self.cells.copy()
        moved[:, 0] += found - self.text.index(body)
        return moved


def render(template: PromptTemplate, item: Task | Document, test_index: int = 0) -> RenderedPrompt:
    """Return the prompt for one test input of a task, or for a document.

    A document's text and token ids are used unchanged, and its messages are always a chat. If
    `template.chat` is set, the text becomes a user's message, without the system message of the
    template, which describes tasks.
    """
    if isinstance(item, Document):
        text, messages = item.text or "", item.messages
        if template.chat and not messages and not item.token_ids:
            messages = ({"role": "user", "content": text},)
        no_cells = np.empty((0, len(CELL_COLUMNS)), np.int32)
        return RenderedPrompt(text, messages, no_cells, item.template_arguments, item.token_ids)

    parts = [template.preamble.format()]
    fields: dict[int, list[npt.NDArray[np.int32]]] = {INPUT: [], OUTPUT: []}
    test = Pair(item.test[test_index].input, None)
    for example, pair in [*enumerate(item.train), (TEST_PAIR, test)]:
        values = {"input": _render_grid(template, pair.input, INPUT)}
        fields[INPUT].append(_fields(pair.input, example, INPUT))
        if pair.output is not None:
            values["output"] = _render_grid(template, pair.output, OUTPUT)
            fields[OUTPUT].append(_fields(pair.output, example, OUTPUT))
        layout = template.query if example == TEST_PAIR else template.example
        parts.append(layout.format(**values, index=example + 1))
    text, cells = _find_cells("".join(parts), fields)
    if not template.chat:
        return RenderedPrompt(text, (), cells)
    system = template.system.format()
    first = ({"role": "system", "content": system},) if system else ()
    return RenderedPrompt(text, (*first, {"role": "user", "content": text}), cells)


def _render_grid(template: PromptTemplate, grid: Grid, role: int) -> str:
    """Return the text of a grid, with the stand-ins of its role in place of the digits."""
    names = STAND_INS[10 * role : 10 * role + 10]
    rows = [
        template.row.format(
            cells=template.cell_separator.format().join(names[cell] for cell in row), number=number
        )
        for number, row in enumerate(grid, start=1)
    ]
    text = template.row_separator.format().join(rows)
    return template.grid.format(rows=text, height=len(grid), width=len(grid[0]))


def _fields(grid: Grid, example: int, role: int) -> npt.NDArray[np.int32]:
    rows, columns = np.indices((len(grid), len(grid[0]))).reshape(2, -1)
    fields = (np.full_like(rows, example), np.full_like(rows, role), rows, columns)
    return np.stack(fields, axis=-1).astype(np.int32)


def _find_cells(
    text: str, fields: dict[int, list[npt.NDArray[np.int32]]]
) -> tuple[str, npt.NDArray[np.int32]]:
    """Replace the stand-ins with digits; return the text, and its cells in order."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4") - np.uint32(ord(STAND_INS[0]))
    offsets = np.flatnonzero(codes < len(STAND_INS))
    cells = np.empty((len(offsets), len(CELL_COLUMNS)), np.int32)
    cells[:, 0] = offsets
    for role, parts in fields.items():
        cells[codes[offsets] // 10 == role, 1:] = np.concatenate(parts)
    return text.translate(_DIGITS), cells
