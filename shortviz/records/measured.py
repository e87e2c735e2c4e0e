"""What was measured: distances and losses of every block, an evaluation, the gate it was judged by, an export.

Plain records that travel between the stages: frozen, checked once, numpy inside, no torch, no streamlit.

Everything is 0-based. Layer i is `model.layers[i]`; boundary i is the residual stream entering layer i, and boundary L
leaves the last layer, before the final norm. A block (start, n) is the layers start .. start+n-1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import numpy as np

from shortviz.errors import FieldError
from shortviz.records.formatting import Help, counted
from shortviz.records.json import (
    FloatMatrix,
    Floats,
    FloatTriangle,
    FloatVector,
    IntegerTriangle,
    Known,
    Many,
    Number,
    plain,
)
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.text import TextInfo


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowsNeeded:
    """When the choice of a start stops changing, by one criterion, for each n = 1 .. L-1.

    The orders are drawn without replacement from the rows that were measured, so the last count always agrees with
    itself: a need of more than half of the rows says only that these rows are too few.
    """

    rows: int
    """Rows behind it."""
    orders: int
    """Random orders that were looked at."""
    counts: Many[int]
    """Row counts that were looked at, ascending; the last is `rows`."""
    agree: FloatMatrix
    """Share of the orders whose best start among the first rows is that of all rows, shape (len(counts), L-1)."""
    needed: Many[int]
    """For each n the row count from which on, in 19 of 20 orders, the best start no longer changes."""

    def enough(self, n: int) -> bool:
        """Return whether the rows were enough to say so: the choice for n stood still over the second half of them."""
        return self.needed[n - 1] <= self.rows / 2

    def words(self, n: int) -> str:
        """Return the rows that n needs: `12`, or `> 32` where half of the rows were not enough."""
        return str(self.needed[n - 1]) if self.enough(n) else f"> {self.rows // 2}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """One number with its standard error for every block; `mean[n-1, start]`, NaN outside the triangle."""

    mean: FloatTriangle
    """Shape (L, L)."""
    stderr: FloatTriangle
    """Shape (L, L); NaN where fewer than two samples make an error bar impossible."""
    samples: int
    """Sequences the mean is taken over."""

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.mean.shape[0])

    def at(self, block: Block) -> tuple[float, float]:
        """Return (mean, standard error) of a block."""
        return float(self.mean[block.n - 1, block.start]), float(self.stderr[block.n - 1, block.start])

    def row(self, n: int) -> Floats:
        """Return the means of all blocks of n layers, by start; length L-n+1."""
        return self.mean[n - 1, : self.num_layers - n + 1]

    def rank(self, block: Block) -> int:
        """Return the block's place in its row, 1 = lowest."""
        row = self.row(block.n)
        return int(np.sum(row < row[block.start])) + 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoundaryNorms:
    """Mean Euclidean norm of the residual stream at every boundary, shape (L+1,)."""

    first: FloatVector
    """At position 0, where models keep the attention sink."""
    rest: FloatVector
    """At all other positions."""

    @property
    def sink_layers(self) -> tuple[int, ...]:
        """Layers that write the attention sink: position 0 grows past ten times the rest, fivefold in one layer.

        The factors are ours. In the demo model layer 11 takes position 0 from 183 to 25,300 where others stay near 200.
        """
        first = np.maximum(self.first, 1e-12)
        grows = first[1:] / first[:-1]
        stands_out = first[1:] / np.maximum(self.rest[1:], 1e-12)
        return tuple(int(i) for i in np.flatnonzero((grows > 5) & (stands_out > 10)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockDistances:
    """Every criterion for every block, over `samples` sequences."""

    num_layers: int
    criteria: Mapping[str, Grid]
    """By criterion name, e.g. `angular_last`."""
    norms: BoundaryNorms
    text: TextInfo
    seconds: float = 0.0
    rows: int = 0
    """Sequences run; 0 where only the criteria's own counts are known."""
    settling: Mapping[str, RowsNeeded] = field(default_factory=dict)
    """By criterion: how many rows the best start of each n needs; only of a finished or stopped measurement."""
    tokens_per_row: int | None = None
    """Evenly spaced tokens of a row that token means are taken over; None is all but the first."""
    tokens: int = 0
    """Tokens of the rows that were run; 0 where that is not known, as in records of before."""

    @property
    def tokens_words(self) -> str:
        """Of the rows measured, e.g. `16,384 tokens`; "" where a stopped measurement did not count them."""
        known = self.tokens or (self.text.tokens if self.samples >= self.text.rows else 0)
        return counted(known, "token") if known else ""

    @property
    def rows_words(self) -> str:
        """The rows measured, of how many, e.g. `3 of 64 rows`."""
        part = f"{self.samples:,} of " if self.samples < self.text.rows else ""
        return f"{part}{counted(self.text.rows, 'row')}"

    @property
    def samples(self) -> int:
        """Sequences measured so far; a criterion that fits something scores only some of them."""
        return max([self.rows, *(grid.samples for grid in self.criteria.values())])

    def sink_layers_in(self, block: Block) -> tuple[int, ...]:
        """Return the layers of the block that write the attention sink."""
        return tuple(i for i in self.norms.sink_layers if i in block.layers)


STUDENT = (math.nan, math.nan, 1.8373, 1.3213, 1.1969, 1.1416, 1.1105, 1.0906)
"""By how many samples, fewer than eight, what their standard error is multiplied by: the value that |t| of Student's
distribution with one degree of freedom fewer stays below in 68.3 % of cases. So one ± covers as much as it does for
many; so few samples make their own spread uncertain. From eight on the factor, at most 1.077, is left out."""


def student(samples: int) -> float:
    """Return the factor of a standard error over so many samples; NaN below two."""
    return STUDENT[samples] if samples < len(STUDENT) else 1.0


def perplexity(nll: float) -> float:
    """Return exp of a mean NLL in nats; infinity where a float cannot hold it."""
    return math.exp(nll) if nll < 700 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A model's loss on evaluation windows."""

    nll: float
    """Mean over scored tokens, in nats."""
    nll_stderr: Number
    """Standard error over windows, in nats, for fewer than eight with Student's factor (`STUDENT`); NaN with one."""
    tokens: int
    """Scored tokens."""
    windows: int
    forward_seconds: float
    """Median seconds of one window's forward pass."""
    parameters: int
    bytes: int
    cache_bytes_per_token: int
    window_nll: Many[float] = ()
    """Of each window in order, in nats: what paired errors of anything else are made of; empty where not kept."""

    @property
    def perplexity(self) -> float:
        """Exp of the token-weighted mean NLL."""
        return perplexity(self.nll)

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.nll_stderr


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A model's loss and, for a pruned model, what changed from the uncut one on the same windows."""

    score: Score
    text: TextInfo
    removed: Many[int] = ()
    base: Score | None = None
    """The uncut model on the same windows; None when nothing is removed."""
    nll_increase: Known = None
    """NLL(pruned) - NLL(uncut), in nats."""
    nll_increase_stderr: Known = None
    """Paired: standard error of the per-window differences, as that of the NLL; NaN with one window."""
    kl: Known = None
    """KL(uncut || pruned) per token, in nats."""
    kl_stderr: Known = None
    same_top1: Known = None
    """Share of tokens where both models have the same most likely next token."""
    same_top1_stderr: Known = None
    """Over windows, as the others are: tokens of one window are not independent. NaN with one, and in older records."""
    complete: bool = True
    """False while windows are still being added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLoss:
    """A piece of a passage under the uncut and the cut model: a token, or those that only together are a character."""

    text: str
    tokens: int
    special: bool
    """Whether it is a special token, such as the one that texts begin with."""
    before: float
    """NLL of the uncut model in nats, of its tokens together; NaN where there is nothing to predict it from."""
    after: float
    """The same of the cut model."""
    uncut: tuple[tuple[str, float], ...]
    """What the uncut model thinks likeliest in the place of its first token, with probabilities."""
    cut: tuple[tuple[str, float], ...]

    @property
    def rise(self) -> float:
        """By how much its loss rises under the cut, in nats."""
        return self.after - self.before


def windows_words(windows: int, text: TextInfo) -> str:
    """Return the windows behind a number: `16 windows of 512, spread over the text`; and what few mean to errors."""
    words, factor = replace(text, rows=windows).windows_words, student(windows)
    if windows < 2:
        return f"{words} (no error from one)"
    if factor == 1:
        return words
    return f"{words} (errors widened by {factor:.2f} as there are only {windows} windows: Student's t)"


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation in the shape that `shortviz evaluate --json` prints: flat, every key there, NaN as null."""
    found: dict[str, Any] = dict.fromkeys(field.name for field in fields(evaluation)) | plain(evaluation)
    for name, score in (("score", evaluation.score), ("base", evaluation.base)):
        if score is not None:
            found[name] = plain({"perplexity": score.perplexity, "perplexity_stderr": score.perplexity_stderr})
            found[name] |= plain(score)
    scored: dict[str, Any] = found.pop("score")
    return scored | found


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What a model must be shown to hold, two errors included; None asks nothing."""

    max_nll_increase: Annotated[
        float | None, Help("Exit code 3 unless the NLL increase, plus two errors, is at most so many nats a token.")
    ] = None
    """Of the paired difference to the uncut model."""
    min_accuracy: Annotated[
        float | None, Help("--tasks: exit code 3 unless the accuracy, less two errors, is at least this share.")
    ] = None
    """Between 0 and 1, of `TaskScore.accuracy`."""

    def __post_init__(self) -> None:
        rise, share = self.max_nll_increase, self.min_accuracy
        if rise is not None and not (rise >= 0 and math.isfinite(rise)):
            raise FieldError("max_nll_increase", f"is {rise}; give a number of nats from 0 up")
        if share is not None and not 0 <= share <= 1:
            raise FieldError("min_accuracy", f"is {share}; give a share from 0 to 1, such as 0.4")

    @property
    def asked(self) -> bool:
        """Whether there is a limit to judge by."""
        return self != Gate()

    def check_request(self, *, compares: bool, windows: int, asks: bool) -> None:
        """Raise FieldError where work of this kind cannot be judged by the limits.

        Args:
            compares: layers are removed or an adapter is merged in, so that there is an uncut model beside it.
            windows: how many are scored at most; one gives no error.
            asks: questions are asked.
        """
        if self.min_accuracy is not None and not asks:
            raise FieldError("min_accuracy", "is a share of questions, and none are asked; give tasks too")
        if self.max_nll_increase is None:
            return
        if not compares:
            raise FieldError("max_nll_increase", "is against the uncut model; say what is removed, or leave it out")
        if windows < 2:
            raise FieldError("windows", f"is {windows}, and one window has no error to judge by; give 2 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateCheck:
    """One limit, and what was measured."""

    name: str
    """The field of `Gate`."""
    limit: Number
    estimate: Number
    error: Number
    """Standard error of the estimate; NaN where it is not known."""
    end: Number
    """The end of the interval that is judged: two errors above an increase, two below an accuracy."""
    held: bool
    """Whether that end is within the limit; never where it is not a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateVerdict:
    """Whether every limit was shown to be held."""

    held: bool
    checks: tuple[GateCheck, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """A checkpoint written and proved equal."""

    folder: str
    removed: Many[int]
    kept: Many[int]
    parameters: int
    bytes: int
    files: Mapping[str, str]
    """File name -> SHA-256."""
    max_logit_diff: float | None
    """Largest absolute difference of logits, memory against reload in a fresh process; 0.0 is equal. None: not run."""
    generation_equal: bool | None
    """Cached generation of the reloaded model equals uncached; None where it was not run."""
    seconds: float
    proof: Literal["fresh process", "streamed", "bytes"] = "fresh process"
    """By stock transformers in a fresh process; by streaming the files, where the model does not fit; by comparing
    every kept byte, where the weights cannot be run here."""
    notes: Many[str] = ()
    """Sentences for people: what was chosen or changed on the way."""
    dtypes: str = ""
    """What the weights are written in, e.g. `bfloat16, 3 of 57 tensors float32`."""
    gate: GateVerdict | None = None
    """What the model was judged by before it was written, where that was asked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockLosses:
    """The measured loss of the model without each block, n < L, all on the same windows."""

    num_layers: int
    base: Score
    """The uncut model on the windows measured so far."""
    nll: Grid
    """NLL of the pruned model, in nats per scored token; row n = L is NaN."""
    increase: Grid
    """NLL(pruned) - NLL(uncut); the error is paired, over windows."""
    kl: Grid
    """KL(uncut || pruned) per token, in nats."""
    windows: IntegerTriangle
    """Whole windows behind each cell, shape (L, L); 0 where there is at most the coarse first value."""
    tokens: IntegerTriangle
    """Scored tokens behind each cell, shape (L, L)."""
    text: TextInfo
    replayed: bool = True
    """True: suffixes were replayed from the uncut model's boundaries; False: every pruned model was really run."""
    complete: bool = True
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """The loss with n layers removed."""

    n: int
    removed: Many[int]
    """Empty for the mean over random blocks."""
    nll: float
    """In nats per token."""
    stderr: Number
    """Paired standard error of the increase from the uncut model; for random blocks the spread between starts (SD)."""

    @property
    def perplexity(self) -> float:
        """Exp of the NLL."""
        return perplexity(self.nll)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveLine:
    """One strategy, by ascending n; sizes it has no measured plan for are left out."""

    strategy: str
    """`best measured`, `simple`, `random`, `greedy`, or the name of a criterion."""
    label: str
    points: Many[CurvePoint]


@dataclass(frozen=True, kw_only=True, slots=True)
class GreedyRemoval:
    """Greedy removal as a run keeps it."""

    line: CurveLine
    text: TextInfo
    """The evaluation windows that every step was measured on."""
    complete: bool = True
    """False: stopped before the layers asked for were gone."""


def from_map(losses: BlockLosses | None, model: ModelInfo, block: Block) -> Evaluation | None:
    """Return the map's cell of a block as an evaluation, so that nothing is measured twice; None where it has none.

    What only a run of the cut model itself can tell (same next token, seconds) is left out.
    """
    if losses is None or block.n >= losses.num_layers or not losses.windows[block.n - 1, block.start]:
        return None
    increase, error = losses.increase.at(block)
    nll, nll_error = losses.nll.at(block)
    if increase != increase:
        return None
    parameters, weights, cache = model.sizes(block.layers)
    score = Score(
        nll=nll,
        nll_stderr=nll_error,
        tokens=int(losses.tokens[block.n - 1, block.start]),
        windows=int(losses.windows[block.n - 1, block.start]),
        forward_seconds=float("nan"),
        parameters=model.parameters - parameters,
        bytes=model.bytes - weights,
        cache_bytes_per_token=sum(model.layer_cache_bytes) - cache,
    )
    kl, kl_error = losses.kl.at(block)
    return Evaluation(
        score=score,
        text=losses.text,
        removed=block.layers,
        base=replace(losses.base, nll=nll - increase),
        nll_increase=increase,
        nll_increase_stderr=error,
        kl=kl,
        kl_stderr=kl_error,
        complete=losses.complete,
    )
