"""Multiple-choice questions and what a model makes of them: plain records, no torch."""

from dataclasses import dataclass
from typing import Literal

from shortviz.errors import TextError
from shortviz.record_json import Many, Number
from shortviz.words import counted, percent


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """Where multiple-choice questions come from, and which of their fields are what."""

    kind: Literal["file", "dataset"]
    value: str
    """Path of a .jsonl, .csv or .parquet file, or a hub data set id."""
    question: str = "question"
    """Column of the question."""
    choices: tuple[str, ...] = ("choices",)
    """One column with a list, or with {"text": [...], "label": [...]}; or several columns, one choice in each."""
    label: str = "label"
    """Column of the right choice: its number, its letter, its own label or its own text (see `read_task`)."""
    first_label: int = 0
    """The number that labels the first choice, 0 or 1."""
    prompt: str = "{question}"
    """What the model reads before a choice, e.g. `Question: {question}\\nAnswer:`."""
    delimiter: str = " "
    """What stands between prompt and choice; lm_eval calls it the target delimiter."""
    subset: str | None = None
    split: str = "validation"
    limit: int | None = None
    """At most this many questions; None is all."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise TextError(f"The limit of questions is {self.limit}; it must be at least 1.")
        if not self.choices or not all(self.choices):
            raise TextError("No column of choices was named; name one that holds a list, or one for each choice.")
        if self.first_label not in (0, 1):
            raise TextError(f"Labels cannot start from {self.first_label}; choose 0 or 1 for the first choice.")
        if "{question}" not in self.prompt:
            raise TextError(f"The prompt {self.prompt!r} has no {{question}} in it; say where the question goes.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """One multiple-choice question."""

    where: str
    """Its place in the source for people, e.g. `row 3 (from 0)` or, in a .jsonl file, `line 4` (from 1)."""
    context: str
    """What the model reads before a choice."""
    choices: tuple[str, ...]
    """At least two, none empty."""
    label: int
    """Index of the right choice, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRows:
    """Multiple-choice questions, ready to be scored."""

    rows: tuple[TaskRow, ...]
    source: str
    """For people, e.g. `file piqa.jsonl, columns goal, sol1, sol2, label`."""
    fingerprint: str
    """SHA-256 over contexts, choices, labels and delimiter: same questions, same fingerprint."""
    delimiter: str = " "

    def __post_init__(self) -> None:
        if not self.rows:
            raise TextError(f"The {self.source} has no questions; give at least one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPrediction:
    """What the model chose in one question; all indices from 0."""

    question: int
    """Index in `TaskRows.rows`."""
    label: int
    """The right choice."""
    chosen: int
    """The choice of highest log-likelihood; the first of equals."""
    chosen_norm: int
    """The choice of highest log-likelihood per character."""
    log_likelihoods: Many[float]
    """Of each choice after the question, in nats, summed over its tokens."""


MOST_PAIRED = 10_000
"""Questions up to which a score keeps which of them were right; above, the error of an accuracy is small anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """How many multiple-choice questions a model gets right; shares between 0 and 1."""

    accuracy: Number
    """By highest log-likelihood (lm_eval's `acc`)."""
    accuracy_stderr: Number
    """Binomial: sqrt(p (1 - p) / (questions - 1)), as lm_eval; NaN with one question."""
    accuracy_norm: Number
    """By highest log-likelihood per character of the choice (lm_eval's `acc_norm`)."""
    accuracy_norm_stderr: Number
    questions: int
    """Questions scored so far."""
    chance: Number
    """What blind guessing gets: the mean of 1 / choices."""
    majority: Number
    """What always answering with the most frequent label gets."""
    source: str
    fingerprint: str
    removed: Many[int] = ()
    truncated: int = 0
    """Questions whose beginning was left out because the model's context is too short for them."""
    shared_prefixes: bool = False
    """True: choices continued from their question's key/value cache; False: each was run whole."""
    predictions: Many[TaskPrediction] = ()
    """In the order of the questions."""
    right: str = ""
    """`1` or `0` for each question, in order: right by highest log-likelihood or not. It is kept where predictions are
    not, for paired comparisons; empty for more than MOST_PAIRED questions."""
    complete: bool = True
    """False while questions are still to be scored."""
    seconds: float = 0.0

    @property
    def behind(self) -> str:
        """How many questions of what, and what an accuracy on them is to be read against."""
        return (
            f"{counted(self.questions, 'question')} of {self.source}; chance {percent(self.chance)}, always the most "
            f"frequent label {percent(self.majority)}"
        )
