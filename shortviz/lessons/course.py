"""The course: lessons in Markdown that name their figure and controls, and the terms that are explained on hover.

A lesson is a file of `lessons/texts`: front matter (name, title, figure, sources), then Markdown with values in double
braces (jinja2) and a line `[control: NAME]` where a control of the page stands. A teacher changes the words there.
`{{ blue }}{x}` and `{{ orange }}{x}` in a formula are terms that the line of that colour in the figure shows.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from jinja2 import Environment, StrictUndefined

TERMS: Mapping[str, str] = {
    "residual stream": "the numbers that a token carries through the model; every layer reads them and adds to them",
    "boundary": "a place between two layers: boundary i is where layer i begins",
    "attention sink": "a state, mostly of the first token, made so long that later tokens attend to it when nothing "
    "else matters",
    "seam": "the place where the layers before a cut meet those behind it",
    "nats": "the unit of a loss made with natural logarithms; one nat more means e = 2.7 times the perplexity",
    "NLL": "negative log likelihood: how surprised the model is by the text, on average; lower is better",
    "perplexity": "e to the NLL: among how many equally likely tokens the model seems to choose",
    "KL": "Kullback-Leibler divergence: how far the next-token probabilities are from the uncut model's; 0 is the same",
    "LoRA": "training of two thin matrices beside a large one, which are added to it in the end",
}

Kind = Literal["text", "control"]
_KINDS: tuple[Kind, Kind] = ("text", "control")
_CONTROL = re.compile(r"^\[control: (\w+)\]$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One screen of the course."""

    name: str
    """In the address."""
    title: str
    figure: str
    sources: str
    """Where the idea comes from; Markdown. A section number only where the paper's text was looked up (2026-11-24)."""
    pieces: tuple[tuple[Kind, str], ...]
    """Markdown to be rendered, and names of controls, in the order in which they stand."""


@cache
def course() -> Mapping[str, Lesson]:
    """Return the lessons by name, in the order of their files."""
    files = sorted(
        (f for f in (resources.files("shortviz") / "lessons" / "texts").iterdir() if f.name.endswith(".md")),
        key=lambda file: file.name,
    )
    lessons = [read_lesson(file.read_text(encoding="utf-8")) for file in files]
    return {lesson.name: lesson for lesson in lessons}


def read_lesson(text: str) -> Lesson:
    """Return the lesson of a file's text."""
    _, front, body = text.split("---\n", 2)
    split = _CONTROL.split(body)  # text, name, text, name, ..., text
    pieces = ((_KINDS[k % 2], piece.strip()) for k, piece in enumerate(split))
    return Lesson(**yaml.safe_load(front), pieces=tuple(piece for piece in pieces if piece[1]))


def render(text: str, values: Mapping[str, Any]) -> str:
    """Return Markdown with its values put in; a name without a value is an error."""
    return _environment().from_string(text).render(values)


@cache
def _environment() -> Environment:
    made = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701  # Markdown of ours
    made.globals["term"] = term
    return made


def term(name: str, words: str = "") -> str:
    """Return a term that explains itself on hover; `words` where the text has another form of it."""
    return f'<abbr title="{html.escape(TERMS[name])}">{words or name}</abbr>'
