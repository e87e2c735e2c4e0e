"""What can be asked for, one frozen record a kind of work: it is the job, the recipe, the link, and what is judged.

A field that is added here is an option of its command, a key of its link, and a line of its recipe (`spelling`); the
hosted policy refuses it until its limit is named there. `execute` carries a request out. No torch.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from shortviz.errors import FieldError
from shortviz.records.heal import HealSettings, preset
from shortviz.records.help import Help
from shortviz.records.model import SPREAD, ModelInfo, ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import ALL_TOKENS, TaskSpec, TextSpec, WindowSpec
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, FIT_LENGTH, FIT_TOKENS

FIT_TEXT = replace(DEFAULT_CALIBRATION, limit=None)
"""What repairs are fitted to unless other text is chosen: as many rows as are needed."""
TRAINING_TEXT = replace(FIT_TEXT, max_length=ALL_TOKENS)
"""What healing trains on unless other text is chosen; windows are cut from the joined rows."""

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
Method = Annotated[str, Help("seam_refit, linear_fold or scale.")]
FitTokens = Annotated[int, Help("Tokens of the text to fit on, in rows of --max-length (256).")]
Write = Annotated[str, Help("A prompt that the models continue.")]
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
class RepairRequest:
    """A cut, repaired in closed form, beside the uncut and the cut model on the same windows."""

    kind: ClassVar = "repair"
    model: ModelRef
    removal: Removal
    text: TextSpec = FIT_TEXT
    evaluation: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    task: TaskSpec | None = None
    method: Method = "seam_refit"
    fit_tokens: FitTokens = FIT_TOKENS
    batch_size: Batch = 8
    write: Write = ""

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
        at_least(self, 1, "to_layers")
        check_fit(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealRequest:
    """A cut, repaired if wanted, then trained, beside what it was before on the same windows."""

    kind: ClassVar = "heal"
    model: ModelRef
    removal: Removal
    text: TextSpec = TRAINING_TEXT
    evaluation: TextSpec = DEFAULT_EVALUATION
    windows: WindowSpec = WindowSpec()
    task: TaskSpec | None = None
    repair: Annotated[str | None, Help("Repair first, in closed form: e.g. seam_refit.")] = None
    preset: Annotated[str, Help("quick, good, or paper (for a GPU); the options below change it.")] = "good"
    changes: tuple[Change, ...] = ()
    """Settings that differ from the preset's, by field: a setting that is not changed is fitted to the model."""
    write: Write = ""

    def __post_init__(self) -> None:
        places = {name: place for place, name in enumerate(HealSettings.__dataclass_fields__)}
        ordered = sorted(self.changes, key=lambda change: places.get(change[0], -1))
        object.__setattr__(self, "changes", tuple(ordered))
        self.settings()

    def settings(self, model: ModelInfo | None = None) -> HealSettings:
        """Return the recipe, fitted to a model where it is known; raises ShortvizError for wrong values."""
        return preset(self.preset, model, **dict(self.changes))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """A cut model, or what was made of it, written as a checkpoint and proved."""

    kind: ClassVar = "export"
    model: ModelRef
    folder: Annotated[str, Help("Where to write; must be new or empty.", option="--out", metavar="FOLDER")]
    removal: Removal | None = None
    adapter: Adapter = None
    stream: Stream = None
    run: Annotated[str | None, Help("A run that keeps a repaired or healed model: write that.", metavar="RUN")] = None
    methods: Annotated[tuple[str, ...], Help("--run: what was done after the cut, e.g. seam_refit,lora.")] = ()
    adapter_only: Annotated[bool, Help("--run: write what was learned, alone.", option="--adapter-only")] = False
    archive: Annotated[bool, Help("Write one zip file in place of the folder.", option="--archive")] = False


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
    | RepairRequest | ShrinkRequest | HealRequest | ExportRequest | PushRequest | EstimateRequest
)  # fmt: skip
REQUESTS: tuple[type[Request], ...] = Request.__args__


def at_least(request: object, least: int, *names: str) -> None:
    """Raise FieldError for a number below `least`; None is one that was left out."""
    for name in names:
        value = getattr(request, name)
        if value is not None and value < least:
            raise FieldError(name, f"is {value}; it must be at least {least}")


def check_fit(request: RepairRequest | ShrinkRequest) -> None:
    """Raise FieldError where a repair would have too little text to be fitted and judged."""
    at_least(request, 1, "batch_size")
    length = request.text.max_length or FIT_LENGTH
    if request.fit_tokens < 2 * length:
        raise FieldError(
            "fit_tokens",
            f"is {request.fit_tokens}; a repair is fitted on some rows and judged on others, so give at least "
            f"{2 * length}, two rows of {length}",
        )


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
    SizeRequest
    | LoadRequest
    | PrepareRequest
    | FetchRequest
    | TasksRequest
    | AskRequest
    | BringBackRequest
    | ContinueRequest
)
