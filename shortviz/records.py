"""The plain records that travel between the stages: frozen, checked once, numpy inside, no torch, no streamlit.

Everything is 0-based. Layer i is `model.layers[i]`; boundary i is the residual stream entering layer i, and boundary L
leaves the last layer, before the final norm. A block (start, n) is the layers start .. start+n-1.
The records of models, texts, plans and tasks have files of their own; import all of them from here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shortviz.model_records import SPREAD, ModelEstimate, ModelInfo, ModelRef
from shortviz.plan_records import Block, PrunePlan
from shortviz.record_json import Floats, FloatTriangle, FloatVector, IntegerTriangle, Known, Many, Number, plain
from shortviz.settling_records import RowsNeeded
from shortviz.task_records import TaskPrediction, TaskRow, TaskRows, TaskScore, TaskSpec
from shortviz.text_records import Bos, TextInfo, TextSpec, Tokens, TokenSet, WindowSet, WindowSpec

if TYPE_CHECKING:
    from shortviz.curve import GreedyRemoval
    from shortviz.ledger import Ledger

__all__ = [
    "SPREAD",
    "Block",
    "BlockDistances",
    "BlockLosses",
    "Bos",
    "BoundaryNorms",
    "Evaluation",
    "ExportReport",
    "Floats",
    "Grid",
    "ModelEstimate",
    "ModelInfo",
    "ModelRef",
    "PrunePlan",
    "RowsNeeded",
    "Run",
    "Score",
    "TaskPrediction",
    "TaskRow",
    "TaskRows",
    "TaskScore",
    "TaskSpec",
    "TextInfo",
    "TextSpec",
    "Tokens",
    "TokenSet",
    "WindowSet",
    "WindowSpec",
    "evaluation_json",
    "perplexity",
]


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

    @property
    def samples(self) -> int:
        """Sequences measured so far; a criterion that fits something scores only some of them."""
        return max([self.rows, *(grid.samples for grid in self.criteria.values())])

    def sink_layers_in(self, block: Block) -> tuple[int, ...]:
        """Return the layers of the block that write the attention sink."""
        return tuple(i for i in self.norms.sink_layers if i in block.layers)


def perplexity(nll: float) -> float:
    """Return exp of a mean NLL in nats; infinity where a float cannot hold it."""
    return math.exp(nll) if nll < 700 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A model's loss on evaluation windows."""

    nll: float
    """Mean over scored tokens, in nats."""
    nll_stderr: Number
    """Standard error over windows, in nats; NaN with one window."""
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
    """Paired: standard error of the per-window differences; NaN with one window."""
    kl: Known = None
    """KL(uncut || pruned) per token, in nats."""
    kl_stderr: Known = None
    same_top1: Known = None
    """Share of tokens where both models have the same most likely next token."""
    same_top1_stderr: Known = None
    """Over windows, as the others are: tokens of one window are not independent. NaN with one, and in older records."""
    complete: bool = True
    """False while windows are still being added."""


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation in the shape that `shortviz evaluate --json` prints: flat, every key there, NaN as null."""
    found: dict[str, Any] = dict.fromkeys(field.name for field in fields(evaluation)) | plain(evaluation)
    del found["score"]
    base = None if evaluation.base is None else _score_json(evaluation.base)
    return _score_json(evaluation.score) | found | {"base": base}


def _score_json(score: Score) -> dict[str, Any]:
    found = {"perplexity": score.perplexity, "perplexity_stderr": score.perplexity_stderr} | plain(score)
    return dict(plain(found))


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """Everything measured for one (model, text, settings)."""

    schema: Literal[2] = 2
    """Of run.json; `runs.parse_run` reads the older one too."""
    model: ModelInfo
    text: TextInfo
    distances: "BlockDistances | None" = None
    losses: "BlockLosses | None" = None
    """The measured map; its text is the evaluation set."""
    evaluations: Many[Evaluation] = ()
    ledgers: "Many[Ledger]" = ()
    """What repair and healing gave back, one for each cut and evaluation text."""
    greedy: "GreedyRemoval | None" = None
    """The loss after each step of greedy removal; its text is the evaluation set."""
    tasks: Many[TaskScore] = ()
    """Accuracies, one for each cut (none removed: the uncut model) and set of questions; without the answers."""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    name: str = ""

    def evaluation_of(self, removed: tuple[int, ...]) -> Evaluation | None:
        """Return the evaluation of exactly these removed layers, the one with the most tokens, or None."""
        found = [e for e in self.evaluations if e.removed == removed]
        return max(found, key=lambda e: e.score.tokens, default=None)

    def task_of(self, removed: tuple[int, ...], fingerprint: str) -> TaskScore | None:
        """Return the accuracy of exactly this cut on these questions, or None."""
        return next((t for t in self.tasks if (t.removed, t.fingerprint) == (removed, fingerprint)), None)


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
