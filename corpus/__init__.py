"""ARC tasks and other documents: read them from files, and render them as prompts."""

from corpus.parse import parse_tasks
from corpus.prompt import CELL_COLUMNS, RenderedPrompt, render
from corpus.task import REASONS, Document, Grid, Message, Pair, RejectedTask, Task
from corpus.template import (
    PromptTemplate,
    TemplateError,
    load_template,
    parse_template,
    shipped_templates,
)

__all__ = [
    "CELL_COLUMNS",
    "REASONS",
    "Document",
    "Grid",
    "Message",
    "Pair",
    "PromptTemplate",
    "RejectedTask",
    "RenderedPrompt",
    "Task",
    "TemplateError",
    "load_template",
    "parse_tasks",
    "parse_template",
    "render",
    "shipped_templates",
]
