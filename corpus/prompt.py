"""From a task or a document to prompt text, with the place of every grid cell in it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corpus.task import Document, Grid, Message, Pair, Task
from corpus.template import PromptTemplate, fill

CELL_COLUMNS = ("offset", "example", "role", "row", "column")
"""What the columns of `RenderedPrompt.cells` hold."""

TEST_PAIR = -1
INPUT, OUTPUT = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class RenderedPrompt:
    """A prompt, either plain or a conversation.

    Attributes:
        text: the prompt. Where there are messages, the content of the user's last one as rendered
            from a template; "" for the messages of a document.
        messages: empty for a plain prompt, which is tokenized as it is. Otherwise the conversation
            to put through the tokenizer's chat template.
        cells: `[num_cells, 5] int32`, a row for every cell of every grid, in the order of the text:
            the cell's character offset in `text`, its example (0, 1, ... or -1 for the test pair),
            its role (0 input, 1 output), its row and its column. A cell is one character.
    """

    text: str
    messages: tuple[Message, ...]
    cells: npt.NDArray[np.int32]

    @property
    def add_generation_prompt(self) -> bool:
        """Whether the chat template is to open the assistant's turn: unless that turn is given."""
        return self.messages != () and self.messages[-1].role != "assistant"

    def cells_within(self, chat_text: str) -> npt.NDArray[np.int32]:
        """`cells` with offsets into what the chat template made of `messages`.

        The text is looked for verbatim, but for white space at its ends, which some chat templates
        strip.

        Raises:
            ValueError: the chat template changed the text, so that no cell can be placed.
        """
        if len(self.cells) == 0:
            return self.cells
        body = self.text.strip()
        found = chat_text.rfind(body)
        if found < 0:
            raise ValueError(
                "the tokenizer's chat template changed the text of the user's message, so grid "
                f"cells cannot be placed in it; the message begins {body[:60]!r}, the chat "
                f"{chat_text[:60]!r}"
            )
        moved = self.cells.copy()
        moved[:, 0] += found - self.text.index(body)
        return moved


def render(template: PromptTemplate, item: Task | Document, test_index: int = 0) -> RenderedPrompt:
    """The prompt for one test input of a task, or for a document.

    A document's text is taken as it is; a chat template makes it a user's message, without the
    template's system message, which is about tasks. A document's messages always are a chat.

    Raises:
        IndexError: the task has no test input `test_index`.
    """
    if isinstance(item, Document):
        return _render_document(template, item)
    if not 0 <= test_index < len(item.test):
        raise IndexError(
            f"{item.source}, task {item.task_id}: test input {test_index}; it has "
            f"{len(item.test)}, counted from 0"
        )
    text = fill(template.preamble).text
    cells = []
    pairs = [(template.example, pair, example) for example, pair in enumerate(item.train)]
    for layout, pair, example in [*pairs, (template.query, item.test[test_index], TEST_PAIR)]:
        part, part_cells = _render_pair(template, layout, pair, example)
        part_cells[:, 0] += len(text)
        cells.append(part_cells)
        text += part
    messages = _chat(template, text) if template.chat else ()
    return RenderedPrompt(text, messages, np.concatenate(cells))


def _render_document(template: PromptTemplate, document: Document) -> RenderedPrompt:
    text, messages = document.text or "", document.messages
    if template.chat and not messages:
        messages = (Message("user", text),)
    return RenderedPrompt(text, messages, np.empty((0, len(CELL_COLUMNS)), np.int32))


def _chat(template: PromptTemplate, text: str) -> tuple[Message, ...]:
    system = fill(template.system).text
    return (*((Message("system", system),) if system else ()), Message("user", text))


def _render_pair(
    template: PromptTemplate, layout: str, pair: Pair, example: int
) -> tuple[str, npt.NDArray[np.int32]]:
    """A pair's text, and its cells `[num_cells, 5] int32` with offsets from its beginning."""
    grids = {"input": pair.input}
    if example != TEST_PAIR and pair.output is not None:
        grids["output"] = pair.output
    rendered = {name: _render_grid(template, grid) for name, grid in grids.items()}
    values = {name: text for name, (text, _) in rendered.items()}
    filled = fill(layout, {**values, "index": str(example + 1)})
    cells = []
    for name in sorted(grids, key=filled.starts.__getitem__):
        offsets = rendered[name][1] + filled.starts[name]
        rows, columns = np.indices(offsets.shape)
        role = np.full(offsets.shape, INPUT if name == "input" else OUTPUT)
        where = (offsets, np.full(offsets.shape, example), role, rows, columns)
        cells.append(np.stack(where, axis=-1).reshape(-1, len(CELL_COLUMNS)).astype(np.int32))
    return filled.text, np.concatenate(cells)


def _render_grid(template: PromptTemplate, grid: Grid) -> tuple[str, npt.NDArray[np.int64]]:
    """A grid's text, and the offset of each cell in it, `[height, width] int64`."""
    height, width = len(grid), len(grid[0])
    row_separator = fill(template.row_separator).text
    cell_separator = fill(template.cell_separator).text
    rows = []
    row_starts = []
    position = 0
    for number, row in enumerate(grid, start=1):
        cells = cell_separator.join(map(str, row))
        filled = fill(template.row, {"cells": cells, "number": str(number)})
        rows.append(filled.text)
        row_starts.append(position + filled.starts["cells"])
        position += len(filled.text) + len(row_separator)
    filled = fill(
        template.grid,
        {"rows": row_separator.join(rows), "height": str(height), "width": str(width)},
    )
    columns = np.arange(width) * (1 + len(cell_separator))
    return filled.text, filled.starts["rows"] + np.array(row_starts)[:, None] + columns
