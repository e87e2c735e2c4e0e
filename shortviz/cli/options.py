"""What the commands accept: groups of options as records, and how they become a ModelRef, a TextSpec and a plan."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from shortviz.analysis.planning import parse_layers
from shortviz.errors import ModelError, PlanError, ShortvizError, TextError
from shortviz.records.model import SPREAD, ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import Bos, TaskSpec, TextSpec, WindowSpec
from shortviz.text.sources import Text, read_rows

if TYPE_CHECKING:
    from shortviz.records.heal import HealSettings
    from shortviz.records.model import ModelInfo


# Numbers of the command line: refused before a model is loaded, and what was typed apart from what is a default.

LARGEST = 2**63 - 1
"""What 64 bits hold: Python's numbers are endless, and torch, numpy and a file's fields are not."""


def option(name: str) -> str:
    """Return how a parameter is written: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


def refuse_huge(values: Mapping[str, Any]) -> None:
    """Raise ShortvizError for a whole number, by parameter, that no 64 bits hold."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            digits = len(str(abs(value)))
            raise ShortvizError(f"{option(name)} is a number of {digits} digits; give at most {LARGEST}.")


def at_least(least: int, **values: int | None) -> None:
    """Raise ShortvizError for a number, by parameter, below `least`; None is an option that was left out."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ShortvizError(f"{option(name)} is {value}; it must be at least {least}.")


def typed(context: typer.Context) -> frozenset[str]:
    """Return the parameters that stand on the command line; the others have their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A hub id, a checkpoint folder, a .gguf file, or demo.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


NO_OPTION = {"option": False}
"""Metadata of a field that is filled in, not asked for."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How the model is loaded and run."""

    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, or spread (over all GPUs).")] = "auto"

    def ref(self, model: str, *, one_device: str = "") -> ModelRef:
        """Return what is to be loaded; raises ModelError where it is spread and `one_device` names what may not be."""
        if one_device and self.device == SPREAD:
            raise ModelError(f"{one_device} needs the model on one device, and --device is {SPREAD}; leave it out.")
        return ModelRef(id=model, revision=self.revision, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Where the text comes from and how it is cut."""

    text: Annotated[Path | None, typer.Option(help="A .txt (one row), .jsonl, .csv or .parquet file.")] = None
    key: Annotated[str | None, typer.Option(help="Column that holds the text.  [default: text]")] = None
    dataset: Annotated[str | None, typer.Option(help="A data set of the hub, streamed.")] = None
    subset: Annotated[str | None, typer.Option(help="Subset (configuration) of the data set.")] = None
    split: Annotated[str | None, typer.Option(help="Split of the data set.  [default: train]")] = None
    builtin: Annotated[
        str | None, typer.Option(help="A built-in text: passages, passages/prose, python-reference.")
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(help="At most this many rows.  [default: all; 64 of the default text, 640 of a data set]"),
    ] = None
    max_length: Annotated[
        int | None, typer.Option(help="measure: tokens a row is truncated to; losses join the rows.  [default: 256]")
    ] = None
    window: Annotated[int, typer.Option(help="evaluate: tokens in a window.")] = 512
    windows: Annotated[int, typer.Option(help="evaluate: at most this many windows.")] = 16
    bos: Annotated[str, typer.Option(help="auto (what the tokenizer itself does), always or never.")] = "auto"
    batch_size: Annotated[int, typer.Option(help="measure: rows in a batch.")] = 8
    seed: Annotated[int, typer.Option(help="heal: of first weights, order of the text, dropout.")] = 0
    typed: frozenset[str] = field(default=frozenset(), metadata=NO_OPTION)
    """Parameters of the command that stand on the command line."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        at_least(0, seed=self.seed)
        self.window_spec()

    def note_unused(self, *names: str) -> None:
        """Say on stderr which of these options were given and do nothing in this command."""
        given = [option(name) for name in names if name in self.typed]
        if given:
            have = "have" if len(given) > 1 else "has"
            print(f"Note: {' and '.join(given)} {have} no effect on this command.", file=sys.stderr)

    def spec(self, default: TextSpec) -> TextSpec:
        """Return the text that the options name; without --text, --dataset and --builtin it is `default`.

        Raises TextError where two texts are named, or an option has nothing to apply to.
        """
        named = {"--text": self.text, "--dataset": self.dataset, "--builtin": self.builtin}
        given = [name for name, value in named.items() if value is not None]
        if len(given) > 1:
            raise TextError(f"{given[0]} and {given[1]} both name a text; give one of them.")
        if self.dataset is None and (self.subset is not None or self.split is not None):
            raise TextError("--subset and --split belong to a data set of the hub; give --dataset too.")
        if self.text is None and self.dataset is None and self.key is not None:
            raise TextError(f"--key {self.key} names a column of a file or a data set; give --text or --dataset too.")
        # A text that was named is used whole; the default's own limit belongs to the default text.
        changes: dict[str, Any] = {"bos": bos_policy(self.bos)} | ({"limit": None} if given else {})
        if self.text is not None:
            changes |= {"kind": "file", "value": str(self.text)}
        elif self.dataset is not None:
            changes |= {"kind": "dataset", "value": self.dataset, "subset": self.subset, "split": self.split or "train"}
        elif self.builtin is not None:
            changes |= {"kind": "builtin", "value": self.builtin}
        optional: dict[str, Any] = {"key": self.key, "limit": self.limit, "max_length": self.max_length}
        changes |= {name: value for name, value in optional.items() if value is not None}
        return replace(default, **changes)

    def window_spec(self) -> WindowSpec:
        """Return how evaluation text is cut."""
        return WindowSpec(window=self.window, windows=self.windows)


TEXT_OPTIONS = frozenset({"text", "key", "dataset", "subset", "split", "builtin", "limit", "window", "windows", "bos"})
"""Parameters that say which windows a loss is scored on."""


def bos_policy(text: str) -> Bos:
    """Return the BOS policy of that name; raises TextError naming the three."""
    for policy in ("auto", "always", "never"):
        if text == policy:
            return policy
    raise TextError(f"--bos is {text!r}; it must be auto, always or never.")


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a person asked to remove, before the model is known."""

    block: Block | None = None
    layers: tuple[int, ...] = ()

    def of(self, num_layers: int) -> PrunePlan:
        """Return the plan for a model of `num_layers` layers; raises PlanError where it does not fit."""
        if self.block is not None:
            return PrunePlan.of_blocks(num_layers, self.block)
        return PrunePlan(num_layers=num_layers, removed=self.layers)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Which layers to remove: one block, or a list."""

    start: Annotated[int | None, typer.Option(help="First layer of the block, from 0; with --n.")] = None
    n: Annotated[int | None, typer.Option(help="Number of layers of the block; with --start.")] = None
    remove: Annotated[str | None, typer.Option(help="Layers to remove, e.g. 3,7,8 or 3-5,9.")] = None
    plan: Annotated[
        Path | None, typer.Option(help='A JSON file: a list of layers, or an object with "removed" (shortviz.json).')
    ] = None

    def chosen(self) -> Removal | None:
        """Return what the options say, None without any; needs no model.

        Raises PlanError where two options contradict, half a block is given, or the plan file cannot be used.
        """
        block = self.start is not None or self.n is not None
        given = [name for name, value in (("--remove", self.remove), ("--plan", self.plan)) if value is not None]
        given = ["--start/--n", *given] if block else given
        if len(given) > 1:
            raise PlanError(f"{given[0]} and {given[1]} both say what to remove; give one of them.")
        if self.plan is not None:
            return Removal(layers=plan_file(self.plan))
        if self.remove is not None:
            return Removal(layers=parse_layers(self.remove))
        if self.start is not None and self.n is not None:
            return Removal(block=Block(start=self.start, n=self.n))
        if block:
            missing = "--n" if self.n is None else "--start"
            raise PlanError(f"A block needs --start and --n; {missing} is missing.")
        return None


def plan_file(path: Path) -> tuple[int, ...]:
    """Return the layers a plan file removes; raises PlanError where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"The plan file {path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise PlanError(f"The plan file {path} is not JSON ({error}).") from error
    layers = content
    while isinstance(layers, dict):
        layers = layers.get("removed", layers.get("plan"))
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise PlanError(f'The plan file {path} holds neither a list of layer numbers nor an object with "removed".')
    return tuple(layers)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The text that a model is scored on, where another text is fitted or trained on."""

    eval_text: Annotated[Path | None, typer.Option(help="Text to score on: a .txt, .jsonl, .csv or .parquet file.")] = (
        None
    )
    eval_key: Annotated[str | None, typer.Option(help="Column that holds the text to score on.")] = None
    eval_builtin: Annotated[str | None, typer.Option(help="A built-in text to score on.  [default: passages]")] = None

    def spec(self, default: TextSpec, bos: Bos) -> TextSpec:
        """Return the text to score on; raises TextError where two are named, or --eval-key names no file's column."""
        if self.eval_text is not None and self.eval_builtin is not None:
            raise TextError("--eval-text and --eval-builtin both name a text; give one of them.")
        if self.eval_key is not None and self.eval_text is None:
            raise TextError(f"--eval-key {self.eval_key} names a column of a file; give --eval-text too.")
        if self.eval_text is not None:
            return replace(
                default, kind="file", value=str(self.eval_text), key=self.eval_key or "text", limit=None, bos=bos
            )
        return replace(default, value=self.eval_builtin or default.value, bos=bos)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with each parameter that is an options record opened into that record's options.

    So the help lists every option, and the body gets checked records instead of twenty arguments.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        group_hints = get_type_hints(group, include_extras=True)
        for entry in _options_of(group):
            assert entry.default is not MISSING
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(
                inspect.Parameter(entry.name, kind, default=entry.default, annotation=group_hints[entry.name])
            )
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    @wraps(command)
    def opened(context: typer.Context, **arguments: Any) -> None:
        refuse_huge(arguments)
        records = {}
        for name, group in groups.items():
            values = {entry.name: arguments.pop(entry.name) for entry in _options_of(group)}
            filled = {"typed": typed(context)} if len(values) < len(fields(group)) else {}
            records[name] = group(**values, **filled)
        command(**arguments, **records)

    del opened.__wrapped__  # typer would read the options of the function inside
    opened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # how inspect is told
    opened.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return opened


def _options_of(group: Any) -> list[Field[Any]]:
    return [entry for entry in fields(group) if entry.metadata.get("option", True)]


def readable(spec: TextSpec) -> Text:
    """Return the text, a local one read: a bad file is told before minutes are spent on loading a model."""
    return spec if spec.kind == "dataset" else read_rows(spec)


# What `shortviz heal` accepts of a recipe: a preset, and each setting behind it.


@dataclass(frozen=True, kw_only=True)
class HealOptions:
    """The recipe: a preset, and what is changed in it."""

    preset: Annotated[str, typer.Option(help="quick, good, or paper (for a GPU); the options below change it.")] = (
        "good"
    )
    method: Annotated[str | None, typer.Option(help="lora, or partial: final norm, head, last layers.")] = None
    objective: Annotated[str | None, typer.Option(help="next_token, distill, seam, or mixed (distill and seam).")] = (
        None
    )
    rank: Annotated[int | None, typer.Option(help="lora: rank of the adapters.")] = None
    alpha: Annotated[int | None, typer.Option(help="lora: scale times rank.  [default: the rank]")] = None
    dropout: Annotated[float | None, typer.Option(help="lora: share of inputs dropped.")] = None
    targets: Annotated[str | None, typer.Option(help="lora: mlp, all, or names such as q_proj,v_proj.")] = None
    last_layers: Annotated[int | None, typer.Option(help="partial: layers trained at the end of the stack.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="The highest one.")] = None
    warmup_steps: Annotated[int | None, typer.Option(help="Steps until it is reached.")] = None
    steps: Annotated[int | None, typer.Option(help="Updates.")] = None
    train_batch: Annotated[int | None, typer.Option(help="Windows run at once.")] = None
    accumulate: Annotated[int | None, typer.Option(help="Batches behind one update.")] = None
    length: Annotated[int | None, typer.Option(help="Tokens in a training window.")] = None
    temperature: Annotated[float | None, typer.Option(help="distill, mixed: temperature.")] = None
    mix: Annotated[float | None, typer.Option(help="distill, mixed: share of distillation, the rest next tokens.")] = (
        None
    )
    seam_weight: Annotated[float | None, typer.Option(help="mixed: weight of the seam's error.")] = None
    eval_every: Annotated[int | None, typer.Option(help="Steps between two looks at held-out text.")] = None
    precision: Annotated[str | None, typer.Option(help="model (its dtype), or bfloat16 while training.")] = None
    quantize: Annotated[str | None, typer.Option(help="none, or 4bit while training (CUDA, bitsandbytes).")] = None
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False

    def changes(self, seed: int) -> dict[str, Any]:
        """Return what is changed in the preset."""
        names = {"train_batch": "batch_size"}
        given = {names.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        return {name: value for name, value in given.items() if value is not None and value is not False} | {
            "seed": seed
        }

    def settings(self, model: "ModelInfo | None", seed: int) -> "HealSettings":
        """Return the recipe, fitted to a model; raises ShortvizError where a value makes no sense."""
        from shortviz.records.heal import preset

        return preset(self.preset, model, **self.changes(seed))


# What the commands accept of multiple-choice questions, and how it becomes a TaskSpec.


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Multiple-choice questions to score beside the loss."""

    tasks: Annotated[
        str | None, typer.Option(help="Multiple-choice rows: a .jsonl, .csv or .parquet file, or a data set id.")
    ] = None
    question: Annotated[str, typer.Option(help="--tasks: column of the question.")] = "question"
    choices: Annotated[str, typer.Option(help="--tasks: column of the list of choices, or one column each: a,b.")] = (
        "choices"
    )
    label: Annotated[str, typer.Option(help="--tasks: column of the right choice.")] = "label"
    first_label: Annotated[int, typer.Option(help="--tasks: the number that labels the first choice, 0 or 1.")] = 0
    prompt: Annotated[str, typer.Option(help="--tasks: what the model reads before a choice.")] = "{question}"
    task_limit: Annotated[int | None, typer.Option(help="--tasks: at most this many questions.")] = None
    task_subset: Annotated[str | None, typer.Option(help="--tasks: subset (configuration) of a data set.")] = None
    task_split: Annotated[str | None, typer.Option(help="--tasks: split of a data set.  [default: validation]")] = None

    def task(self) -> TaskSpec | None:
        """Return the questions that are asked for, None without --tasks; raises TextError for a bad option."""
        if self.tasks is None:
            return None
        is_file = names_file(self.tasks)
        if is_file and (self.task_subset is not None or self.task_split is not None):
            raise TextError(f"--task-subset and --task-split belong to a data set; {self.tasks} is a file.")
        return TaskSpec(
            kind="file" if is_file else "dataset",
            value=self.tasks,
            question=self.question,
            choices=tuple(name.strip() for name in self.choices.split(",")),
            label=self.label,
            first_label=self.first_label,
            prompt=self.prompt,
            limit=self.task_limit,
            subset=self.task_subset,
            split=self.task_split or "validation",
        )


def names_file(text: str) -> bool:
    """Tell a file of questions from a data set: ids of the hub may end in a version, as org/rows-v1.5 does."""
    suffix = Path(text).suffix[1:]
    return Path(text).is_file() or (suffix.isalpha() and not Path(text).is_dir())
