"""The plain records that travel between the stages: frozen, checked once, numpy inside, no torch, no streamlit.

Everything is 0-based. Layer i is `model.layers[i]`; boundary i is the residual stream entering layer i, and boundary L
leaves the last layer, before the final norm. A block (start, n) is the layers start .. start+n-1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shortviz.errors import PlanError, TextError

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]
Bos = Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """What a person asked to load."""

    id: str
    """A hub id, a checkpoint folder, a `.gguf` file, or `demo`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; None is the default branch."""
    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16`, `float16` or `float64`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEstimate:
    """What loading would cost, known before anything large is downloaded or read."""

    id: str
    revision: str | None
    """Resolved commit of a hub model."""
    architecture: str
    num_layers: int
    parameters: int
    download_bytes: int
    """Bytes still to be fetched; 0 for local files."""
    memory_bytes: int
    """Bytes of memory the loaded weights take in the chosen dtype."""
    available_bytes: int
    """Memory free for it now on the chosen device."""
    dtype: str
    device: str
    reason: str
    """One sentence: why this dtype and device."""

    @property
    def fits(self) -> bool:
        """Whether the weights and a fifth more for activations fit in the free memory."""
        return self.memory_bytes * 1.2 <= self.available_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A loaded model, as far as a saved run needs to know it."""

    id: str
    revision: str | None
    """Commit of a hub model; None for local files."""
    architecture: str
    """Class name, e.g. `LlamaForCausalLM`."""
    num_layers: int
    parameters: int
    dtype: str
    device: str
    reason: str
    """One sentence: why this dtype and device."""
    bytes: int
    """Bytes of all weights, tied ones counted once."""
    hidden_size: int
    vocab_size: int
    context_length: int | None
    layer_parameters: tuple[int, ...]
    """Parameters of each layer."""
    layer_bytes: tuple[int, ...]
    """Weight bytes of each layer."""
    layer_cache_bytes: tuple[int, ...]
    """Key/value cache bytes that one more token costs in each layer."""
    illegal: tuple[tuple[int, int, str], ...] = ()
    """(start, n, reason) of the blocks that the stock config cannot express."""

    def illegal_reason(self, block: "Block") -> str | None:
        """Return why the block cannot be exported, or None where it can."""
        return next((r for s, n, r in self.illegal if (s, n) == (block.start, block.n)), None)


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSet:
    """Token rows of different lengths, each at least 2 tokens."""

    rows: tuple[Tokens, ...]
    info: TextInfo

    def __post_init__(self) -> None:
        if not self.rows:
            raise TextError("The text has no rows; give some text.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowSet:
    """Evaluation windows of equal length, shape (windows, window)."""

    tokens: Tokens
    info: TextInfo

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape[0] < 1 or self.tokens.shape[1] < 2:
            raise TextError(f"Evaluation windows have shape {self.tokens.shape}; at least one window of two tokens.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The n consecutive layers start .. start+n-1."""

    start: int
    n: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the block, ascending."""
        return tuple(range(self.start, self.start + self.n))

    def check(self, num_layers: int) -> "Block":
        """Return self, or raise PlanError where the block is not inside a model of `num_layers` layers."""
        if self.n < 1:
            raise PlanError(f"n is {self.n}; a block has at least 1 layer.")
        if self.start < 0 or self.start + self.n > num_layers:
            raise PlanError(
                f"Block start {self.start}, n {self.n} does not fit: the model has layers 0-{num_layers - 1}, "
                f"so start can be 0-{max(num_layers - self.n, 0)} for n {self.n}."
            )
        return self

    def __str__(self) -> str:
        last = self.start + self.n - 1
        layers = f"layer {self.start}" if self.n == 1 else f"layers {self.start}-{last}"
        return f"{layers} (start {self.start}, n {self.n})"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """The set of layers to remove from a model of `num_layers` layers; it may be empty, never everything."""

    num_layers: int
    removed: tuple[int, ...]
    """Ascending, without repeats."""

    def __post_init__(self) -> None:
        if list(self.removed) != sorted(set(self.removed)):
            object.__setattr__(self, "removed", tuple(sorted(set(self.removed))))
        outside = [i for i in self.removed if not 0 <= i < self.num_layers]
        if outside:
            raise PlanError(f"There is no layer {outside[0]}: the model has layers 0-{self.num_layers - 1}.")
        if len(self.removed) >= self.num_layers:
            raise PlanError(f"The plan removes all {self.num_layers} layers; keep at least one.")

    @classmethod
    def of_blocks(cls, num_layers: int, *blocks: Block) -> "PrunePlan":
        """Return the plan that removes the union of the blocks; raises PlanError where one does not fit."""
        layers = {i for block in blocks for i in block.check(num_layers).layers}
        return cls(num_layers=num_layers, removed=tuple(sorted(layers)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Layers that stay, ascending: position in this tuple is the new number."""
        gone = set(self.removed)
        return tuple(i for i in range(self.num_layers) if i not in gone)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The removed layers as maximal runs of consecutive layers."""
        runs: list[list[int]] = []
        for layer in self.removed:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        return tuple(Block(start=run[0], n=len(run)) for run in runs)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """One number with its standard error for every block; `mean[n-1, start]`, NaN outside the triangle."""

    mean: Floats
    """Shape (L, L)."""
    stderr: Floats
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

    first: Floats
    """At position 0, where models keep the attention sink."""
    rest: Floats
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

    @property
    def samples(self) -> int:
        """Sequences measured so far; a criterion that fits something scores only some of them."""
        return max([self.rows, *(grid.samples for grid in self.criteria.values())])

    def sink_layers_in(self, block: Block) -> tuple[int, ...]:
        """Return the layers of the block that write the attention sink."""
        return tuple(i for i in self.norms.sink_layers if i in block.layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A model's loss on evaluation windows."""

    nll: float
    """Mean over scored tokens, in nats."""
    nll_stderr: float
    """Standard error over windows, in nats; NaN with one window."""
    tokens: int
    """Scored tokens."""
    windows: int
    forward_seconds: float
    """Median seconds of one window's forward pass."""
    parameters: int
    bytes: int
    cache_bytes_per_token: int

    @property
    def perplexity(self) -> float:
        """Exp of the token-weighted mean NLL."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.nll_stderr


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A model's loss and, for a pruned model, what changed from the uncut one on the same windows."""

    score: Score
    text: TextInfo
    removed: tuple[int, ...] = ()
    base: Score | None = None
    """The uncut model on the same windows; None when nothing is removed."""
    nll_increase: float | None = None
    """NLL(pruned) - NLL(uncut), in nats."""
    nll_increase_stderr: float | None = None
    """Paired: standard error of the per-window differences; NaN with one window."""
    kl: float | None = None
    """KL(uncut || pruned) per token, in nats."""
    kl_stderr: float | None = None
    same_top1: float | None = None
    """Share of tokens where both models have the same most likely next token."""
    complete: bool = True
    """False while windows are still being added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """A checkpoint written and proved equal."""

    folder: str
    removed: tuple[int, ...]
    kept: tuple[int, ...]
    parameters: int
    bytes: int
    files: Mapping[str, str]
    """File name -> SHA-256."""
    max_logit_diff: float
    """Largest absolute difference of logits, memory against reload in a fresh process; 0.0 is equal."""
    generation_equal: bool
    """Cached generation of the reloaded model equals uncached."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """Everything measured for one (model, text, settings)."""

    model: ModelInfo
    text: TextInfo
    distances: "BlockDistances | None" = None
    losses: "BlockLosses | None" = None
    """The measured map; its text is the evaluation set."""
    evaluations: tuple[Evaluation, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    name: str = ""

    def evaluation_of(self, removed: tuple[int, ...]) -> Evaluation | None:
        """Return the evaluation of exactly these removed layers, the one with the most tokens, or None."""
        found = [e for e in self.evaluations if e.removed == removed]
        return max(found, key=lambda e: e.score.tokens, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a long function stands; handed to `on_progress` at least once a batch."""

    stage: str
    """A word for people: `download`, `load`, `measure`, `evaluate`, `write`, `prove`, ..."""
    done: float
    total: float
    unit: str
    """What is counted: `rows`, `windows`, `bytes`, `steps`."""
    detail: str = ""
    snapshot: Callable[[], Any] | None = None
    """Builds the partial record (BlockDistances, Evaluation) on demand; call it from the callback only."""


OnProgress = Callable[[Progress], None]


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
    windows: NDArray[np.int64]
    """Whole windows behind each cell, shape (L, L); 0 where there is at most the coarse first value."""
    tokens: NDArray[np.int64]
    """Scored tokens behind each cell, shape (L, L)."""
    text: TextInfo
    replayed: bool = True
    """True: suffixes were replayed from the uncut model's boundaries; False: every pruned model was really run."""
    complete: bool = True
    seconds: float = 0.0


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
    """Its place in the source for people, e.g. `row 3` (from 0) or, in a .jsonl file, `line 4` (from 1)."""
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
    log_likelihoods: tuple[float, ...]
    """Of each choice after the question, in nats, summed over its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """How many multiple-choice questions a model gets right; shares between 0 and 1."""

    accuracy: float
    """By highest log-likelihood (lm_eval's `acc`)."""
    accuracy_stderr: float
    """Binomial: sqrt(p (1 - p) / (questions - 1)), as lm_eval; NaN with one question."""
    accuracy_norm: float
    """By highest log-likelihood per character of the choice (lm_eval's `acc_norm`)."""
    accuracy_norm_stderr: float
    questions: int
    """Questions scored so far."""
    chance: float
    """What blind guessing gets: the mean of 1 / choices."""
    majority: float
    """What always answering with the most frequent label gets."""
    source: str
    fingerprint: str
    removed: tuple[int, ...] = ()
    truncated: int = 0
    """Questions whose beginning was left out because the model's context is too short for them."""
    shared_prefixes: bool = False
    """True: choices continued from their question's key/value cache; False: each was run whole."""
    predictions: tuple[TaskPrediction, ...] = ()
    """In the order of the questions."""
    complete: bool = True
    """False while questions are still to be scored."""
    seconds: float = 0.0
