"""What the lessons show: numbers and texts of the demo model, measured by tools/make_lesson_data.py. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import BeforeValidator

from shortviz.records.formatting import block_text
from shortviz.records.json import FloatMatrix, FloatVector, Many, from_json
from shortviz.records.measured import Grid
from shortviz.records.plan import Block
from shortviz.records.text import TextInfo

KINDS = ("fact", "copy", "arithmetic", "reasoning")
"""What the questions ask for: something learned, something just read, a sum, a conclusion."""


def _whole(rows: Any) -> list[list[float]]:
    """Return the whole of a symmetric matrix, of which row i is given from its diagonal on."""
    return [[rows[min(i, j)][abs(i - j)] for j in range(len(rows))] for i in range(len(rows))]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sentence:
    """One short text, token by token."""

    text: str
    tokens: Many[str]
    norms: FloatMatrix
    """Norm of the residual stream, shape (tokens, L+1)."""
    updates: FloatMatrix
    """Norm of what each layer adds, shape (tokens, L)."""
    gram: Annotated[FloatMatrix, BeforeValidator(_whole)]
    """Dot products of the last token's states at all pairs of boundaries, shape (L+1, L+1)."""

    def angle(self, block: Block) -> float:
        """Return the angle between the last token's states before and after a block, in units of pi."""
        return math.acos(self.cosine(block)) / math.pi

    def cosine(self, block: Block) -> float:
        """Return the cosine of that angle."""
        one, other = block.start, block.start + block.n
        return float(self.gram[one, other] / math.sqrt(self.gram[one, one] * self.gram[other, other]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Updates:
    """Mean norm of what each layer adds, over the rows of a text; each array has shape (L,)."""

    first: FloatVector
    """At position 0."""
    rest: FloatVector
    """At the other positions."""
    rest_stderr: FloatVector
    """Over rows."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositionAngles:
    """The angle over every block, for the tokens at some positions of a row."""

    first: int
    last: int
    """Both positions included."""
    grid: Grid
    """Mean over the positions, then over rows; the error is over rows."""

    @property
    def words(self) -> str:
        """The positions for people, counted from 0."""
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt and the words with which a right continuation begins."""

    kind: str
    prompt: str
    expected: str

    def right(self, written: str) -> bool:
        """Return whether a continuation begins with the expected words, capitals aside."""
        return written.strip().lower().startswith(self.expected.lower())


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one model writes after every prompt."""

    step: str
    """`uncut`, `cut`, `repaired` or `healed`."""
    removed: Many[int]
    written: Many[str]
    """In the order of the questions."""

    @property
    def label(self) -> str:
        """The model in short: `uncut`, `12-15` for the layers that are gone, `12-15 healed`."""
        if not self.removed:
            return self.step
        layers = block_text(self.removed[0], len(self.removed))
        return layers if self.step == "cut" else f"{layers} {self.step}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CutTexts:
    """What the model writes after a few prompts without every block of a few layers."""

    prompts: Many[str]
    uncut: Many[str]
    """In the order of the prompts."""
    cut: Many[Many[Many[str]]]
    """[n-1][start], then in the order of the prompts."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LessonData:
    """Everything that the lessons need beside the bundled run."""

    model: str
    sentence: Sentence
    text: TextInfo
    """What updates and angles are averaged over: the text of the bundled run."""
    updates: Updates
    positions: Many[PositionAngles]
    """By ascending position; the last one is the last token of the rows."""
    questions: Many[Question]
    answers: Many[Answers]
    """Uncut first."""
    texts: CutTexts
    """What the first screen shows."""
    versions: Mapping[str, str]
    created: str

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.updates.first)

    @property
    def cuts(self) -> tuple[Answers, ...]:
        """The uncut model and one cut of each size, by size: the blocks of the removal curve."""
        found: dict[int, Answers] = {}
        for answers in self.answers:
            if answers.step in ("uncut", "cut"):
                found.setdefault(len(answers.removed), answers)
        return tuple(found[n] for n in sorted(found))

    def right(self, answers: Answers, kind: str) -> tuple[int, int]:
        """Return how many questions of a kind a model gets right, and how many there are."""
        pairs = zip(self.questions, answers.written, strict=True)
        found = [question.right(written) for question, written in pairs if question.kind == kind]
        return sum(found), len(found)


@cache
def lesson_data() -> LessonData:
    """Return the bundled lesson data."""
    return from_json(LessonData, (resources.files("shortviz") / "lessons" / "data.json").read_bytes())
