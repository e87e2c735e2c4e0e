"""What can be asked for, one frozen record a kind of work: it is the job, the recipe, the link, and what is judged.

A field that is added here is an option of its command, a key of its link, and a line of its recipe (`spelling`); the
hosted policy refuses it until its limit is named there. `execute` carries a request out. No torch.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from shortviz.errors import FieldError
from shortviz.records.formatting import Help, layers_text
from shortviz.records.heal import HealSettings, OwnText, preset
from shortviz.records.measured import Gate
from shortviz.records.model import SPREAD, STORED, ModelInfo, ModelRef, OutDtype
from shortviz.records.plan import Block, Removal
from shortviz.records.text import ALL_TOKENS, TaskSpec, TextSpec, WindowSpec
from shortviz.text.sources import PASTED, file_words
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, FIT_TOKENS

FIT_TEXT = replace(DEFAULT_CALIBRATION, value="assorted", limit=None)
"""What repairs are fitted to unless other text is chosen: of many kinds, for one kind helps less with others."""
TRAINING_TEXT = replace(FIT_TEXT, max_length=ALL_TOKENS)
"""What healing trains on unless other text is chosen; windows are cut from the joined rows."""

SELF = "self"
"""The text of a healing that the uncut model writes; a file of that name is `./self`."""

Stream = Annotated[
    bool | None,
    Help(
        "Never the whole model in memory: from its files, part by part.  [default: where it would not fit]",
        option="--stream/--no-stream",
    ),
]
Batch = Annotated[int, Help("Rows in a batch.")]
Adapter = Annotated[
    str | None,
    Help("An adapter of shortviz heal, merged in; its own cut is made where none is given.", metavar="FOLDER"),
]
Method = Annotated[str, Help("seam_refit, seam_trained (the same, then trained), linear_fold or scale.")]
FitTokens = Annotated[int, Help("Tokens of the text that a repair is fitted to, in rows of --max-length (256).")]
Write = Annotated[str, Help("A prompt that the models continue.")]
Anyway = Annotated[
    bool, Help("Write a repaired or healed model that is not better on the evaluation text.", option="--anyway")
]
Change = tuple[str, int | float | str | bool]
"""A setting of healing, by its field, and its value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureRequest:
    """The distance map: every criterion, every block."""

    kind: ClassVar = "measure"
    model: ModelRef
    text: TextSpec = DEFAULT_CALIBRATION
    criteria: Annotated[
        tuple[str, ...], Help("Criteria, separated by commas, or all; a .py file of your own too.")
    ] = ()
    batch_size: Batch = 8
    stream: Stream = None
    tokens_per_row: Annotated[
        int | None, Help("--stream: average over so many tokens of a row.  [default: all, 32 where they do not fit]")
    ] = None

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "tokens_per_row")
        if self.tokens_per_row is not None and self.stream is False:
            raise FieldError("tokens_per_row", "belongs to streaming; leave it out, or stream")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextsRequest:
    """The distance maps of several texts, each a run of its own: how far the choice depends on the text."""

    kind: ClassVar = "texts"
    model: ModelRef
    texts: tuple[TextSpec, ...]
    batch_size: Batch = 8

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class MapRequest:
    """The loss without every block."""

    kind: ClassVar = "losses"
    model: ModelRef
    text: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """The best start of every size, by successive elimination."""

    kind: ClassVar = "search"
    model: ModelRef
    text: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    max_n: Annotated[int | None, Help("--search: largest number of layers.  [default: all but one]")] = None

    def __post_init__(self) -> None:
        at_least(self, 1, "max_n")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlocksRequest:
    """The loss without chosen blocks of a model that is streamed, all in one sweep over its layers."""

    kind: ClassVar = "blocks"
    model: ModelRef
    blocks: Annotated[tuple[Block, ...], Help("--stream: a block to measure; may be given again.", metavar="START,N")]
    text: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateRequest:
    """Perplexity of a model, or of a cut one beside the uncut one; with questions, accuracy too."""

    kind: ClassVar = "evaluate"
    model: ModelRef
    removal: Removal | None = None
    text: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    task: TaskSpec | None = None
    adapter: Adapter = None
    stream: Stream = None
    write: Write = ""
    gate: Gate = Gate()

    def __post_init__(self) -> None:
        compares = self.removal is not None or self.adapter is not None
        self.gate.check_request(compares=compares, windows=self.windows.windows, asks=self.task is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveRequest:
    """Loss against layers removed for every strategy; measures the map, and what is asked beside it, where missing."""

    kind: ClassVar = "curve"
    model: ModelRef
    text: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    greedy: Annotated[int, Help("Also remove so many single layers greedily; 0 is none.")] = 0
    task: TaskSpec | None = None
    strategies: Annotated[
        tuple[str, ...], Help("--tasks: strategies to score, e.g. simple,greedy.  [default: all but random]")
    ] = ()
    sizes: Annotated[
        tuple[int, ...], Help("--tasks: layers removed, e.g. 1,4-6.  [default: 1 and eighths of the layers]")
    ] = ()

    def __post_init__(self) -> None:
        at_least(self, 0, "greedy")


@dataclass(frozen=True, kw_only=True, slots=True)
class _CutRequest:
    """What is asked of a cut: what is done to it takes one text, and its models are scored on the other."""

    model: ModelRef
    removal: Removal
    text: TextSpec = FIT_TEXT
    evaluation: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    task: TaskSpec | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairRequest(_CutRequest):
    """A cut, repaired, beside the uncut and the cut model on the same windows."""

    kind: ClassVar = "repair"
    method: Method = "seam_refit"
    fit_tokens: FitTokens = FIT_TOKENS
    batch_size: Batch = 8
    write: Write = ""
    anyway: Anyway = False

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        check_fit(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShrinkRequest:
    """Layer after layer removed where it costs least, with a repair after each."""

    kind: ClassVar = "shrink"
    model: ModelRef
    to_layers: Annotated[int, Help("Layers that are to be left.")]
    text: TextSpec = FIT_TEXT
    evaluation: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    task: TaskSpec | None = None
    method: Method = "seam_refit"
    fit_tokens: FitTokens = FIT_TOKENS
    batch_size: Batch = 8
    choose_on_text: Annotated[
        bool,
        Help("Choose layers on the text that is fitted to: the other takes no part.", option="--choose-on-text"),
    ] = False
    write: Write = ""
    anyway: Anyway = False

    def __post_init__(self) -> None:
        at_least(self, 1, "to_layers", "batch_size")
        check_fit(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealRequest(_CutRequest):
    """A cut, repaired if wanted, then trained, beside what it was before on the same windows."""

    kind: ClassVar = "heal"
    text: TextSpec = TRAINING_TEXT
    repair: Annotated[str | None, Help("Repair first: e.g. seam_refit.")] = None
    fit_tokens: FitTokens = FIT_TOKENS
    preset: Annotated[str, Help("quick, good, or paper (for a GPU); the options below change it.")] = "good"
    changes: tuple[Change, ...] = ()
    """Settings that differ from the preset's, by field: a setting that is not changed is fitted to the model."""
    own: OwnText = OwnText()
    """What of the training text the uncut model writes itself; a text file named `self` asks for nothing else."""
    write: Write = ""
    anyway: Anyway = False

    def __post_init__(self) -> None:
        if (self.text.kind, self.text.value) == ("file", SELF):
            self._read_self()
        if self.own.self_share is None and self.own != OwnText():
            first = next(
                name for name in OwnText.__dataclass_fields__ if getattr(self.own, name) != getattr(OwnText(), name)
            )
            raise FieldError(first, "is of text that the model writes itself; give self_share too, or leave it out")
        places = {name: place for place, name in enumerate(HealSettings.__dataclass_fields__)}
        ordered = sorted(self.changes, key=lambda change: places.get(change[0], -1))
        object.__setattr__(self, "changes", tuple(ordered))
        self.settings()
        check_fit(self)

    def _read_self(self) -> None:
        """Take the text `self` for a share of 1 where none is given, and the usual text for the rest and a repair."""
        for name in ("key", "chat_template"):
            if getattr(self.text, name) != getattr(TRAINING_TEXT, name):
                raise FieldError(name, "is for text that is read, and the model writes its own; leave it out")
        same = {name: getattr(self.text, name) for name in ("limit", "max_length", "bos", "special_tokens")}
        object.__setattr__(self, "text", replace(TRAINING_TEXT, **same))
        if self.own.self_share is None:
            object.__setattr__(self, "own", replace(self.own, self_share=1.0))

    def settings(self, model: ModelInfo | None = None) -> HealSettings:
        """Return the recipe, fitted to a model where it is known; raises ShortvizError for wrong values."""
        return preset(self.preset, model, **dict(self.changes))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceRequest(_CutRequest):
    """What a cut model can still do, and its treated ones: other texts, questions, probes, speed, all beside uncut."""

    kind: ClassVar = "evidence"
    other_texts: Annotated[
        tuple[str, ...], Help("Built-in texts or files that show other kinds of text, by commas.", option="--texts")
    ] = ("passages/prose", "passages/code", "passages/dialogue")
    repair: Annotated[str | None, Help("Also the repaired cut: e.g. seam_refit.")] = None
    adapter: Annotated[
        str | None, Help("An adapter of shortviz heal for this very cut: also the healed model.", metavar="FOLDER")
    ] = None
    fit_tokens: FitTokens = FIT_TOKENS
    batch_size: Batch = 8
    lm_eval: Annotated[
        tuple[str, ...], Help("Tasks of lm_eval, or .yaml files of tasks, by commas (pip install shortviz[eval]).")
    ] = ()
    lm_eval_limit: Annotated[int | None, Help("--lm-eval: at most so many samples of each task.")] = None
    probe_items: Annotated[int, Help("Items of each probe.")] = 100
    seed: Annotated[int, Help("Of the probes' items.")] = 0
    write: Write = ""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")
        at_least(self, 1, "probe_items", "lm_eval_limit", "batch_size")
        check_fit(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """A cut model, or what was made of it, written as a checkpoint and proved."""

    kind: ClassVar = "export"
    model: ModelRef
    folder: Annotated[
        str, Help("Where to write: a new or empty folder, or a new .gguf file.", option="--out", metavar="PATH")
    ]
    removal: Removal | None = None
    adapter: Adapter = None
    stream: Stream = None
    run: Annotated[str | None, Help("A run that keeps a repaired or healed model: write that.", metavar="RUN")] = None
    methods: Annotated[tuple[str, ...], Help("--run: what was done after the cut, e.g. seam_refit,lora.")] = ()
    anyway: Anyway = False
    adapter_only: Annotated[bool, Help("--run: write what was learned, alone.", option="--adapter-only")] = False
    archive: Annotated[bool, Help("Write one zip file in place of the folder.", option="--archive")] = False
    out_dtype: Annotated[OutDtype, Help("The dtype of the files: stored, float32, bfloat16 or float16.")] = STORED
    gate: Gate = Gate()
    """Judged before anything is written, on the text and the questions that follow."""
    text: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    task: TaskSpec | None = None

    def __post_init__(self) -> None:
        compares = self.removal is not None or self.adapter is not None
        self.gate.check_request(compares=compares, windows=self.windows.windows, asks=self.task is not None)
        if self.out_dtype not in get_args(OutDtype):
            raise FieldError("out_dtype", f"is {self.out_dtype!r}; give one of {', '.join(get_args(OutDtype))}")
        if self.out_dtype != STORED and (self.stream or self.adapter_only or self.folder.endswith(".gguf")):
            what = "an adapter" if self.adapter_only else "a stream of files" if self.stream else "a GGUF file"
            raise FieldError("out_dtype", f"is {self.out_dtype}, and {what} is written as it is stored; leave it out")
        if self.gate.asked and self.adapter_only:
            raise FieldError("adapter_only", "writes no model that could be judged; leave it or the limits out")
        if self.gate.max_nll_increase is None and (self.text, self.windows) != (DEFAULT_EVALUATION, WindowSpec()):
            raise FieldError("max_nll_increase", "is not given, and text and windows serve it alone; give all or none")
        if self.gate.min_accuracy is None and self.task is not None:
            raise FieldError("min_accuracy", "is not given, and tasks serve it alone; give both or none")


@dataclass(frozen=True, kw_only=True, slots=True)
class PushRequest:
    """A proved folder, sent to the Hugging Face hub. The token is no part of it."""

    kind: ClassVar = "push"
    folder: Annotated[str, Help("A folder that shortviz prune, repair, shrink or heal wrote.", metavar="FOLDER")]
    repo_id: Annotated[str, Help("The repository, as user/name.", metavar="REPOSITORY")]
    private: Annotated[bool, Help("Who may see a new repository.", option="--private/--public")] = True


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateRequest:
    """The memory and disk that a model takes, whole and streamed."""

    kind: ClassVar = "estimate"
    model: ModelRef
    rows: Annotated[int, Help("Rows of text, whose states are kept while streaming.")] = 64
    max_length: Annotated[int, Help("Tokens of a row.")] = 256

    def __post_init__(self) -> None:
        at_least(self, 1, "rows")
        at_least(self, 2, "max_length")


Request = (
    MeasureRequest | TextsRequest | MapRequest | SearchRequest | BlocksRequest | EvaluateRequest | CurveRequest
    | RepairRequest | ShrinkRequest | HealRequest | EvidenceRequest | ExportRequest | PushRequest | EstimateRequest
)  # fmt: skip
REQUESTS: tuple[type[Request], ...] = Request.__args__


def at_least(request: object, least: int, *names: str) -> None:
    """Raise FieldError for a number below `least`; None is one that was left out."""
    for name in names:
        value = getattr(request, name)
        if value is not None and value < least:
            raise FieldError(name, f"is {value}; it must be at least {least}")


def check_fit(request: RepairRequest | ShrinkRequest | HealRequest | EvidenceRequest) -> None:
    """Raise FieldError where a repair would have too little text to be fitted and judged, or there is no repair."""
    if isinstance(request, HealRequest | EvidenceRequest) and request.repair is None:
        if request.fit_tokens != FIT_TOKENS:
            raise FieldError("fit_tokens", "is of a repair; give repair too, or leave it out")
        return
    length = request.text.fit_length
    if request.fit_tokens < 2 * length:
        why = f"a repair is fitted on some rows and judged on others; give at least {2 * length}, two rows of {length}"
        raise FieldError("fit_tokens", f"is {request.fit_tokens}; {why}")


def check_device(request: Request, what: str) -> None:
    """Raise FieldError where work that needs one device was asked for on several."""
    model = getattr(request, "model", None)
    if model is not None and model.device == SPREAD:
        raise FieldError("device", f"is {SPREAD}; leave it out", before=f"{what} needs the model on one device, and ")


# What the app asks for beside that: it has no command of its own.


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeRequest:
    """What loading the model would cost: the first answer, before anything is loaded or built."""

    kind: ClassVar = "size"
    model: ModelRef


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadRequest:
    """The model in memory, ready for clicks that are scored on `text`."""

    kind: ClassVar = "load"
    model: ModelRef
    text: TextSpec = DEFAULT_EVALUATION


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareRequest:
    """The uncut model's share of the first look at a block, before anybody clicks."""

    kind: ClassVar = "prepare"
    model: ModelRef
    text: TextSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchRequest:
    """The questions of a data set."""

    kind: ClassVar = "questions"
    model: ModelRef
    task: TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksRequest:
    """The questions, asked of the model without each of these sets of layers."""

    kind: ClassVar = "tasks"
    model: ModelRef
    task: TaskSpec
    plans: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AskRequest:
    """The questions, asked of every model of a cut's ledger."""

    kind: ClassVar = "ask"
    model: ModelRef
    removal: Removal
    task: TaskSpec
    text: TextSpec = DEFAULT_EVALUATION
    """What the ledger is scored on, where there is none yet but for an evaluation of the cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BringBackRequest:
    """A treated model of a cut in memory again, from what is kept beside the run."""

    kind: ClassVar = "bring"
    model: ModelRef
    removal: Removal
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinueRequest:
    """What every model of a cut's ledger writes after a prompt."""

    kind: ClassVar = "continuations"
    model: ModelRef
    removal: Removal
    prompt: str


AppRequest = (
    SizeRequest | LoadRequest | PrepareRequest | FetchRequest | TasksRequest
    | AskRequest | BringBackRequest | ContinueRequest
)  # fmt: skip


_INSPECTS = ("estimate", "size", "prepare", "evaluate", "questions", "repair", "bring", "continuations")


def lane_of(request: Request | AppRequest) -> Literal["long", "inspect"]:
    """Return the lane of the queue that work waits in."""
    return "inspect" if request.kind in _INSPECTS else "long"


def title_of(request: Request | AppRequest) -> str:
    """Return what a job is called for people."""
    removal = getattr(request, "removal", None)
    cut = f" without layers {layers_text(removal.removed)}" if removal is not None else ""
    about, text = getattr(request, "model", None), ""
    if isinstance(request, MeasureRequest | MapRequest):  # the same model is measured on several texts
        named = {"paste": PASTED, "file": file_words(Path(request.text.value))}
        text = f" on {named.get(request.text.kind, request.text.value)}"
    return f"{TITLES[request.kind]}{cut} of {about.id}{text}" if about is not None else TITLES[request.kind]


TITLES = {
    "measure": "Distances", "texts": "Distances on several texts", "losses": "Losses", "search": "Search",
    "blocks": "Losses of chosen blocks", "evaluate": "Evaluation", "curve": "Removal curve", "tasks": "Questions",
    "load": "Loading", "prepare": "Preparation", "questions": "Fetching the questions", "estimate": "Estimate",
    "size": "Size", "repair": "Repair", "shrink": "Shrinking", "heal": "Healing", "ask": "Questions for the ledger",
    "evidence": "Evidence", "bring": "Bringing back a model", "continuations": "Continuations", "export": "Export",
    "push": "Push",
}  # fmt: skip
