"""What the lessons show: numbers and texts of the demo model, measured by tools/make_lesson_data.py. No torch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from shortviz.records.json import Floats
from shortviz.records.measured import Grid
from shortviz.records.plan import Block
from shortviz.records.text import TextInfo

FILE = "data.json"
KINDS = ("fact", "copy", "arithmetic", "reasoning")
"""What the questions ask for: something learned, something just read, a sum, a conclusion."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sentence:
    """One short text, token by token."""

    text: str
    tokens: tuple[str, ...]
    norms: Floats
    """Norm of the residual stream, shape (tokens, L+1)."""
    updates: Floats
    """Norm of what each layer adds, shape (tokens, L)."""
    gram: Floats
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

    first: Floats
    """At position 0."""
    rest: Floats
    """At the other positions."""
    rest_stderr: Floats
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
    removed: tuple[int, ...]
    written: tuple[str, ...]
    """In the order of the questions."""

    @property
    def label(self) -> str:
        """The model in short: `uncut`, `12-15` for the layers that are gone, `12-15 healed`."""
        if not self.removed:
            return self.step
        first, last = self.removed[0], self.removed[-1]
        layers = str(first) if first == last else f"{first}-{last}"
        return layers if self.step == "cut" else f"{layers} {self.step}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LessonData:
    """Everything that the lessons need beside the bundled run."""

    model_id: str
    sentence: Sentence
    text: TextInfo
    """What updates and angles are averaged over: the text of the bundled run."""
    updates: Updates
    positions: tuple[PositionAngles, ...]
    """By ascending position; the last one is the last token of the rows."""
    questions: tuple[Question, ...]
    answers: tuple[Answers, ...]
    """Uncut first."""
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
        found = [
            question.right(written)
            for question, written in zip(self.questions, answers.written, strict=True)
            if question.kind == kind
        ]
        return sum(found), len(found)


@lru_cache(maxsize=1)
def lesson_data() -> LessonData:
    """Return the bundled lesson data."""
    file = resources.files("shortviz") / "lessons" / FILE
    return parse_lesson_data(json.loads(file.read_text(encoding="utf-8")))


def parse_lesson_data(found: Mapping[str, Any]) -> LessonData:
    """Return the lesson data that the JSON says."""
    sentence, updates = found["sentence"], found["updates"]
    return LessonData(
        model_id=found["model"],
        sentence=Sentence(
            text=sentence["text"],
            tokens=tuple(sentence["tokens"]),
            norms=np.array(sentence["norms"]),
            updates=np.array(sentence["updates"]),
            gram=_symmetric(sentence["gram"]),
        ),
        text=TextInfo(**found["text"]),
        updates=Updates(**{name: np.array(values) for name, values in updates.items()}),
        positions=tuple(_position(p, len(updates["first"])) for p in found["positions"]),
        questions=tuple(Question(**q) for q in found["questions"]),
        answers=tuple(
            Answers(step=a["step"], removed=tuple(a["removed"]), written=tuple(a["written"])) for a in found["answers"]
        ),
        versions=found["versions"],
        created=found["created"],
    )


def _symmetric(rows: Sequence[Sequence[float]]) -> Floats:
    """Return the whole matrix, of which row i is given from its diagonal on."""
    size = len(rows)
    matrix = np.zeros((size, size))
    for i, row in enumerate(rows):
        matrix[i, i:] = matrix[i:, i] = row
    return matrix


def _position(found: Mapping[str, Any], layers: int) -> PositionAngles:
    mean, stderr = np.full((2, layers, layers), np.nan)
    for n in range(1, layers + 1):
        mean[n - 1, : layers - n + 1] = found["mean"][n - 1]
        stderr[n - 1, : layers - n + 1] = found["stderr"][n - 1]
    grid = Grid(mean=mean, stderr=stderr, samples=found["samples"])
    return PositionAngles(first=found["first"], last=found["last"], grid=grid)
