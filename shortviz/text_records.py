"""Where text comes from, and the token rows and windows it becomes: plain records, no torch."""

from dataclasses import dataclass
from typing import Literal

from shortviz.errors import TextError
from shortviz.record_json import Integers

Tokens = Integers
Bos = Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSpec:
    """Where text comes from and how it becomes token rows."""

    kind: Literal["builtin", "paste", "file", "dataset"]
    value: str
    """Name of a built-in text, the pasted text itself, a path, or a hub data set id."""
    key: str = "text"
    """Column that holds the text (.jsonl, .csv, .parquet, data sets)."""
    subset: str | None = None
    split: str = "train"
    limit: int | None = None
    """At most this many rows; None is all."""
    max_length: int = 256
    """Tokens a row is truncated to."""
    bos: Bos = "auto"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise TextError(f"The row limit is {self.limit}; it must be at least 1.")
        if self.max_length < 2:
            raise TextError(f"The row length is {self.max_length} tokens; it must be at least 2.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSpec:
    """How evaluation text is cut: the joined rows, tokenised once, in consecutive windows without overlap."""

    window: int = 512
    """Tokens in a window (with BOS, its first); window - 1 are scored."""
    windows: int = 16
    """At most this many windows."""

    def __post_init__(self) -> None:
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
    """Tokens a row was truncated to, or the window length."""
    options: str = ""
    """The command line's options that name the text, as in `text_options`; empty where they cannot or are not known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSet:
    """Token rows of different lengths, each at least 2 tokens."""

    rows: tuple[Tokens, ...]
    info: TextInfo

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
