"""Texts, windows and multiple-choice questions, as asked for, as read, and as scored: plain records, no torch."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from shortviz.errors import FieldError, TextError
from shortviz.records.formatting import Help, counted, percent, spelled
from shortviz.records.json import Integers, Many, Number


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """Where multiple-choice questions come from, and which of their fields are what."""

    kind: Literal["file", "dataset"]
    value: str
    """Path of a .jsonl, .csv or .parquet file, or a hub data set id."""
    question: Annotated[str, Help("Questions: their column.")] = "question"
    """Column of the question."""
    choices: Annotated[tuple[str, ...], Help("Questions: column of the list of choices, or one column each: a,b.")] = (
        "choices",
    )
    """One column with a list, or with {"text": [...], "label": [...]}; or several columns, one choice in each."""
    label: Annotated[str, Help("Questions: column of the right choice.")] = "label"
    """Column of the right choice: its number, its letter, its own label or its own text (see `read_task`)."""
    first_label: Annotated[int, Help("Questions: the number that labels the first choice, 0 or 1.")] = 0
    """The number that labels the first choice, 0 or 1."""
    prompt: Annotated[str, Help("Questions: what the model reads before a choice.")] = "{question}"
    """What the model reads before a choice, e.g. `Question: {question}\\nAnswer:`."""
    delimiter: Annotated[str, Help("Questions: what stands between prompt and choice.")] = " "
    """What stands between prompt and choice; lm_eval calls it the target delimiter."""
    subset: Annotated[str | None, Help("Questions: subset (configuration) of a data set.")] = None
    split: Annotated[str, Help("Questions: split of a data set.  [default: validation]")] = "validation"
    limit: Annotated[int | None, Help("Questions: at most this many.")] = None
    """At most this many questions; None is all."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise TextError(f"The limit of questions is {self.limit}; it must be at least 1.")
        if not self.choices or not all(self.choices):
            raise TextError("No column of choices was named; name one that holds a list, or one for each choice.")
        if odd := next((name for name in self.choices if "," in name or name != name.strip()), None):
            raise TextError(
                f"The column of choices {odd!r} has a comma or a space at its end, which no list of columns can name; "
                "rename it."
            )
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


# Where text comes from, and the token rows and windows it becomes: plain records, no torch.

Tokens = Integers
Bos = Literal["auto", "always", "never"]
SpecialTokens = Literal["auto", "literal", "parsed"]
LongRows = Literal["auto", "cut", "truncate"]
Order = Literal["spread", "first"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSpec:
    """Where text comes from and how it becomes token rows."""

    kind: Literal["builtin", "paste", "file", "dataset"]
    value: str
    """Name of a built-in text, the pasted text itself, a path, or a hub data set id."""
    key: Annotated[str, Help("Column of text or chats.  [default: text, else messages or conversations]")] = "text"
    """Column that holds text, or chats (files with columns, data sets). Where there is no column `text`, chats in a
    column `messages` or `conversations` are read."""
    subset: Annotated[str | None, Help("Subset (configuration) of the data set.")] = None
    split: Annotated[str, Help("Split of the data set.  [default: train]")] = "train"
    limit: Annotated[
        int | None, Help("At most this many rows.  [default: all; 64 of the default text, 640 of a data set]")
    ] = None
    """At most this many rows; None is all."""
    max_length: Annotated[int, Help("measure: most tokens of a row; losses join the rows.  [default: 256]")] = 256
    """The most tokens of a row; what becomes of longer ones, `long_rows` says."""
    bos: Annotated[Bos, Help("auto (what the tokenizer itself does), always or never.")] = "auto"
    special_tokens: Annotated[
        SpecialTokens,
        Help("What `</s>` in a text is: literal, parsed (the token), or auto: literal in text, parsed in chats."),
    ] = "auto"
    """What the spelling of a special token is: text like any other (`literal`), or that token (`parsed`). `auto` is
    literal in plain text and parsed in what a chat template writes."""
    chat_template: Annotated[
        str, Help("Chats: a Jinja file, or off for the contents alone.  [default: the model's own]", metavar="FILE")
    ] = ""
    """What writes chats as text: "" for the model's own chat template, the path of a Jinja file, or `off` for the
    contents alone."""
    long_rows: Annotated[
        LongRows, Help("measure: text longer than a row is cut into rows, truncated, or auto: truncated if built-in.")
    ] = "auto"
    """What becomes of text longer than a row: it is `cut` into rows, of which the first of each text come before the
    second of any where not all fit in `limit`; or what is past the first is left out (`truncate`). `auto` cuts, except
    built-in texts, whose rows are made to fill 256 tokens."""

    @property
    def cuts(self) -> bool:
        """Whether text longer than a row becomes several rows."""
        return self.long_rows == "cut" or (self.long_rows == "auto" and self.kind != "builtin")

    @property
    def fit_length(self) -> int:
        """Tokens of a row that a repair is fitted to: 256 where the rows of the text are not cut."""
        return self.max_length if self.max_length < ALL_TOKENS else 256

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bos", self.bos, Bos),
            ("special_tokens", self.special_tokens, SpecialTokens),
            ("long_rows", self.long_rows, LongRows),
        ):
            if value not in get_args(known):
                *others, last = get_args(known)
                raise FieldError(name, f"is {value!r}; it must be {', '.join(others)} or {last}")
        if self.limit is not None and self.limit < 1:
            raise TextError(f"The row limit is {self.limit}; it must be at least 1.")
        if self.max_length < 2:
            raise TextError(f"The row length is {self.max_length} tokens; it must be at least 2.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSpec:
    """How evaluation text is cut: the joined rows, tokenised once, in windows without overlap, taken in an order."""

    window: Annotated[int, Help("evaluate: tokens in a window.")] = 512
    """Tokens in a window (with BOS, its first); window - 1 are scored."""
    windows: Annotated[int, Help("evaluate: at most this many windows.")] = 16
    """At most this many windows."""
    order: Annotated[
        Order, Help("evaluate: which windows: spread over the whole text, or the first, as published figures are made.")
    ] = "spread"
    """`spread`: a fixed order of which every beginning is spread over the whole text, so that more windows refine what
    fewer said; `first`: the windows as they follow each other."""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise TextError(f"Windows cannot be taken in the order {self.order!r}; choose spread or first.")
        if self.window < 2:
            raise TextError(f"The window is {self.window} tokens; it must be at least 2, to have one token to score.")
        if self.windows < 1:
            raise TextError(f"The number of windows is {self.windows}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextInfo:
    """What text stands behind a number."""

    source: str
    """For people, e.g. `built-in python-reference` or `file c4.jsonl, column text`."""
    rows: int
    tokens: int
    """Tokens in all rows or windows together, BOS included."""
    fingerprint: str
    """SHA-256 over the token ids and row lengths: same tokens, same fingerprint."""
    skipped: int = 0
    """Rows left out because they have fewer than 2 tokens."""
    bos: str = "auto"
    """The policy, and what it meant for this tokenizer, e.g. `auto: no BOS`."""
    max_length: int | None = None
    """The most tokens of a row, or the window length."""
    options: str = ""
    """The command line's options that name the text, as in `text_options`; empty where they cannot or are not known."""
    told: str = ""
    """What was found out, chosen, converted or left out on the way to tokens, for people; "" for nothing."""
    chats: bool = False
    """Whether a chat template wrote the rows: its marks part them, and no blank line stands between two."""

    @property
    def words(self) -> str:
        """The source, with what was made of it: what a person is to read beside a number."""
        return f"{self.source} ({self.told})" if self.told else self.source

    order: Order = "first"
    """In which windows of the text were taken, as in WindowSpec; records that do not say took the first, rows too."""

    @property
    def windows(self) -> WindowSpec | None:
        """How the text was cut into these windows; None where it was not."""
        if self.max_length is None or self.max_length < 2:
            return None
        return WindowSpec(window=self.max_length, windows=self.rows, order=self.order)

    @property
    def windows_words(self) -> str:
        """The windows in words, e.g. `16 windows of 512, spread over the text`."""
        taken = ", spread over the text" if self.order == "spread" else ", the first of the text"
        length = "" if self.max_length is None else f" of {self.max_length}"
        return f"{counted(self.rows, 'window')}{length}{taken * (self.rows > 1)}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSet:
    """Token rows of different lengths, each at least 2 tokens."""

    rows: tuple[Tokens, ...]
    info: TextInfo
    opening: tuple[int, ...] = ()
    """The tokens that open every row, as the BOS policy says: windows that are cut from the rows open so too."""
    between: tuple[int, ...] = ()
    """What stands between two rows where they are joined: a blank line."""
    continued: frozenset[int] = frozenset()
    """Rows that go on in the text of the one before them: nothing stands between."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise TextError("The text has no rows; give some text.")
        shortest = min(map(len, self.rows))
        if shortest < 2:
            raise TextError(f"A row has {shortest} of the 2 tokens that a distance needs at least; leave it out.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowSet:
    """Evaluation windows of equal length, shape (windows, window)."""

    tokens: Tokens
    info: TextInfo

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape[0] < 1 or self.tokens.shape[1] < 2:
            raise TextError(f"Evaluation windows have shape {self.tokens.shape}; at least one window of two tokens.")


ALL_TOKENS = 1 << 40
"""For TextSpec.max_length: rows are joined, so none need be truncated."""


# A text as options of the command line, for recipes that repeat what was done with it. No torch.

_OPTIONS: Mapping[Literal["builtin", "file", "dataset"], str] = {
    "builtin": "--builtin",
    "file": "--text",
    "dataset": "--dataset",
}
TEXT_FIELDS = tuple(name for name in TextSpec.__dataclass_fields__ if name not in ("kind", "value"))
"""How a text is read, beside its name."""
_FIELDS = tuple(name for name in TEXT_FIELDS if name not in ("limit", "max_length"))
_BUILT_IN = "built-in "
"""How the source of a built-in text begins."""


def text_options(spec: TextSpec, *, rows: bool = True) -> str:
    """Return the options that name a text, without the length of its rows; "" for pasted text, which none can name.

    Of a file's path only the name is told: where it lies is nobody's business. What became of long rows is said of
    `rows`, not of windows; a record that does not say truncated them.
    """
    if spec.kind == "paste":
        return ""
    parts = [_OPTIONS[spec.kind], Path(spec.value).name if spec.kind == "file" else spec.value]
    if spec.kind != "builtin" and spec.key != "text":
        parts += ["--key", spec.key]
    if spec.kind == "dataset":
        parts += [*(["--subset", spec.subset] if spec.subset else []), "--split", spec.split]
    parts += ["--limit", str(spec.limit)] if spec.limit is not None else []
    parts += ["--bos", spec.bos] if spec.bos != "auto" else []
    parts += ["--special-tokens", spec.special_tokens] if spec.special_tokens != "auto" else []
    parts += ["--chat-template", Path(spec.chat_template).name] if spec.chat_template else []
    parts += ["--long-rows", "cut"] if rows and spec.cuts else []
    return shlex.join(parts)


def text_of(info: TextInfo, *, rows: bool = True) -> TextSpec | None:
    """Return the text of a record, as its options or (in older ones) its name tell it; None where they do not.

    A file is named without its folder, as in the options. Rows are limited where the options say so. `rows` says
    whether the record is of rows, and not of windows.
    """
    try:
        words = shlex.split(info.options)
        named = dict(zip(words[::2], words[1::2], strict=True))
        fields: dict[str, Any] = {name: named[spelled(name)] for name in _FIELDS if spelled(name) in named}
        if "--limit" in named:
            fields["limit"] = int(named["--limit"])
        if info.max_length is not None:
            fields["max_length"] = info.max_length
        for kind, option in _OPTIONS.items():
            if option in named:
                if rows and kind != "builtin":  # cut is what such texts are by themselves; older records say nothing
                    fields["long_rows"] = "auto" if fields.get("long_rows") == "cut" else "truncate"
                return TextSpec(kind=kind, value=named[option], **fields)
        if info.source.startswith(_BUILT_IN):
            fields["bos"] = info.bos.partition(":")[0]
            return TextSpec(kind="builtin", value=info.source.removeprefix(_BUILT_IN), **fields)
    except (ValueError, TextError, FieldError):  # the record came from elsewhere
        pass
    return None
