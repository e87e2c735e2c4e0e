"""A request as a command, as Python, as a link, and back: one flattening of its fields, three spellings of it.

`options_of` lists the flat fields of a kind of request, `values_of` gives those that differ from their defaults, and
`request_of` makes the request again. The command line derives its options from the same list.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import TypeAdapter, ValidationError

from shortviz.analysis.planning import parse_layers
from shortviz.errors import FieldError, PlanError, ShortvizError, TextError
from shortviz.records.formatting import Help, spelled
from shortviz.records.heal import HealSettings
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TEXT_FIELDS, TaskSpec, TextSpec
from shortviz.service.requests import REQUESTS, PushRequest, Request
from shortviz.text.sources import builtin_names

COMMANDS = {
    "losses": "map", "search": "map --search", "blocks": "map --stream", "texts": "sensitivity", "export": "prune",
}  # fmt: skip
"""Where the command has another name than the kind of request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One flat field of a request."""

    name: str
    kind: Any
    """str, int, float, bool or Path; a tuple of them where it may be given again."""
    default: Any
    help: str
    spelled: str
    metavar: str = ""
    required: bool = False


Values = dict[str, Any]
"""Flat fields by name, those left out at their defaults."""
_TEXTS: Mapping[Literal["file", "dataset", "builtin", "paste"], str] = {
    "file": "text", "dataset": "dataset", "builtin": "builtin", "paste": "paste",
}  # fmt: skip
_TEXT_HELP = {
    "text": Help("A .txt (one row), .json, .jsonl, .csv, .tsv or .parquet file; .bz2, .gz or .zst of one."),
    "dataset": Help("A data set of the hub, streamed."),
    "builtin": Help("A built-in text: passages, passages/prose, assorted, python-reference."),
    "paste": Help("The text itself."),
}
_FILES = ("text", "eval_text", "chat_template", "eval_chat_template", "prompts")
"""Fields that name a file, but for a chat template that is `off`."""
_REMOVAL_HELP = {
    "start": (int, Help("First layer of the block, from 0; with --n.")),
    "n": (int, Help("Number of layers of the block; with --start.")),
    "remove": (str, Help("Layers to remove, e.g. 3,7,8 or 3-5,9.")),
}
_TASK = {field.name: field.name for field in fields(TaskSpec) if field.name not in ("kind", "value")} | {
    name: f"task_{name}" for name in ("limit", "subset", "split", "delimiter")
}
_CHANGES = {field.name: field.name for field in fields(HealSettings)} | {"batch_size": "train_batch"}
"""Fields of questions and of a training, by what they are called among a request's."""


def options_of(kind: type[Any]) -> tuple[Option, ...]:
    """Return the flat fields of a kind of request, in their order."""
    found: tuple[Option, ...] = _options_of(kind)  # type: ignore[arg-type]  # mypy takes no class for Hashable
    return found


@cache
def _options_of(kind: Any) -> tuple[Option, ...]:
    return tuple(option for name, hint, default in _parts(kind) for option in _part(name, hint, default))


def _parts(kind: Any) -> tuple[tuple[str, Any, Any], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((field.name, hints[field.name], field.default) for field in fields(kind))


def _bare(hint: Any) -> tuple[Any, Help | None]:
    """Return a type without its metadata and without None, and its help."""
    found = None
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        found = next((one for one in more if isinstance(one, Help)), None)
    if get_origin(hint) in (UnionType, Union):
        hint = next(one for one in get_args(hint) if one is not type(None))
    return hint, found


def _option(name: str, kind: Any, default: Any, said: Help | None) -> Option:
    said = said or Help("")
    return Option(
        name=name, kind=kind, default=None if default is MISSING else default, help=said.text,
        spelled=said.option or spelled(name), metavar=said.metavar, required=default is MISSING,
    )  # fmt: skip


def _inner(kind: Any, names: Mapping[str, str], usual: Mapping[str, Any]) -> list[Option]:
    """Return the options of a record inside a request: `names` says of which fields, and what they are called."""
    hints = get_type_hints(kind, include_extras=True)
    bare = {field: _bare(hints[field]) for field in names}
    return [_option(flat, _scalar(bare[f][0]), usual.get(f), bare[f][1]) for f, flat in names.items()]


def _part(name: str, hint: Any, default: Any) -> list[Option]:
    kind, said = _bare(hint)
    if kind is TextSpec:
        prefix = _prefix(name)
        named = [_option(prefix + key, str, None, one) for key, one in _TEXT_HELP.items()]
        return named + _inner(TextSpec, {field: prefix + field for field in TEXT_FIELDS}, {})
    if kind is Removal:
        return [_option(key, inner, None, told) for key, (inner, told) in _REMOVAL_HELP.items()]
    if kind is TaskSpec:
        told = Help("Multiple-choice rows: a .json, .jsonl, .csv or .parquet file, or a data set id.")
        usual = {field.name: _written(field.default) for field in fields(TaskSpec)}
        return [_option("tasks", str, None, told), *_inner(TaskSpec, _TASK, usual)]
    if name == "changes":
        return _inner(HealSettings, _CHANGES, {})
    if name == "texts":
        named = [_option(key, tuple[str, ...], (), _TEXT_HELP[key]) for key in ("text", "builtin", "dataset")]
        return named + [one for one in _part("text", TextSpec, None) if one.name in TEXT_FIELDS]
    if is_dataclass(kind):
        names = {field.name: field.name for field in fields(kind)} | ({"id": "model"} if kind is ModelRef else {})
        usual = {f.name: f.default if default is MISSING else getattr(default, f.name) for f in fields(kind)}
        return _inner(kind, names, usual)
    if get_origin(kind) is tuple:
        blocks = get_args(kind)[0] is Block
        return [_option(name, tuple[str, ...] if blocks else str, () if blocks else None, said)]
    return [_option(name, kind, default, said)]


def _scalar(kind: Any) -> Any:
    return str if get_origin(kind) in (Literal, tuple) else kind


def _prefix(name: str) -> str:
    return "" if name == "text" else "eval_"


def _written(value: Any) -> Any:
    """Return a value as one option's text has it; scalars stay."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


# From a request to its flat fields.


def values_of(request: Request) -> Values:
    """Return the flat fields of a request that differ from their defaults.

    Raises TextError for texts that no one set of options can name.
    """
    found: Values = {}
    for name, hint, default in _parts(type(request)):
        value = getattr(request, name)
        if name == "evaluation":  # its BOS policy is the other text's, unless it is said
            default = replace(default, bos=request.text.bos)  # type: ignore[union-attr]
        if value != default:
            found |= _flat(request, name, _bare(hint)[0], value, default)
    return found


def _flat(request: Any, name: str, kind: Any, value: Any, default: Any) -> Values:
    if kind is TextSpec:
        inherits = {"bos": request.text.bos} if name == "evaluation" else {}
        return _flat_text(_prefix(name), value, replace(default, **inherits))
    if kind is Removal:
        block = value.block
        return {"remove": _written(value.layers)} if block is None else {"start": block.start, "n": block.n}
    if kind is TaskSpec:
        own = {field: getattr(value, field) for field in _TASK}
        changed = {k: v for k, v in own.items() if v != TaskSpec.__dataclass_fields__[k].default}
        return {"tasks": value.value} | {_TASK[k]: _written(v) for k, v in changed.items()}
    if name == "changes":
        return {_CHANGES[key]: inner for key, inner in value}
    if name == "texts":
        return _flat_texts(value)
    if isinstance(value, ModelRef):
        rest = {f.name: getattr(value, f.name) for f in fields(ModelRef) if getattr(value, f.name) != f.default}
        return {"model": rest.pop("id")} | rest
    if is_dataclass(kind):
        return {
            f.name: getattr(value, f.name) for f in fields(kind) if getattr(value, f.name) != getattr(default, f.name)
        }
    if get_origin(kind) is tuple:
        blocks = get_args(kind)[0] is Block
        return {name: tuple(f"{one.start},{one.n}" for one in value) if blocks else _written(value)}
    return {name: value}


def _base(default: TextSpec, kind: str, value: str) -> TextSpec:
    """Return a named text with its fields at their defaults: the limit of the default text is that text's own."""
    return TextSpec(kind=kind, value=value, max_length=default.max_length)  # type: ignore[arg-type]


def _flat_text(prefix: str, spec: TextSpec, default: TextSpec) -> Values:
    same = (spec.kind, spec.value) == (default.kind, default.value)
    named = {} if same and (spec.limit is not None or default.limit is None) else {_TEXTS[spec.kind]: spec.value}
    base = default if not named else replace(_base(default, spec.kind, spec.value), bos=default.bos)
    changed = {name: getattr(spec, name) for name in TEXT_FIELDS if getattr(spec, name) != getattr(base, name)}
    return {prefix + name: value for name, value in (named | changed).items()}


def _flat_texts(specs: Sequence[TextSpec]) -> Values:
    found: Values = {}
    first = specs[0]
    common = {name: getattr(first, name) for name in TEXT_FIELDS}
    if first.limit is None or any({n: getattr(spec, n) for n in TEXT_FIELDS} != common for spec in specs):
        raise TextError("These texts are cut in different ways, which no one command can say; measure them one by one.")
    for kind in ("file", "builtin", "dataset"):
        values = tuple(spec.value for spec in specs if spec.kind == kind)
        found |= {_TEXTS[kind]: values} if values else {}
    base = TextSpec(kind="builtin", value="", limit=64)
    return found | {name: value for name, value in common.items() if value != getattr(base, name)}


# From flat fields to a request.


def request_of(kind: type[Any], values: Mapping[str, Any]) -> Request:
    """Return the request with these flat fields, the others at their defaults.

    Raises ShortvizError where they contradict each other, or a value makes no sense.
    """
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    made: Values = {}
    for name, hint, default in _parts(kind):
        value = _built(name, _bare(hint)[0], given, default, made)
        if value is not MISSING:
            made[name] = value
    missing = [name for name, _, default in _parts(kind) if default is MISSING and name not in made]
    if missing:
        raise ShortvizError(f"{spelled(missing[0])} is missing; a request of this kind needs it.")
    request: Request = kind(**made)
    return request


def _built(name: str, kind: Any, given: Values, default: Any, made: Values) -> Any:
    if kind is TextSpec:
        inherited = made["text"].bos if name == "evaluation" else "auto"
        return _built_text(_prefix(name), given, replace(default, bos=inherited))
    if kind is Removal:
        return _removal(given, default)
    if kind is TaskSpec:
        return _task(given)
    if name == "changes":
        return tuple((field, given[flat]) for field, flat in _CHANGES.items() if flat in given)
    if name == "texts":
        return _texts(given)
    if kind is ModelRef:
        return _model(given)
    if is_dataclass(kind):
        return replace(default, **{f.name: given[f.name] for f in fields(kind) if f.name in given})
    if name not in given:
        return default
    if get_origin(kind) is tuple:
        return _sequence(name, get_args(kind)[0], given[name])
    return given[name]


def _model(given: Values) -> Any:
    own = {name: given[name] for name in ("revision", "dtype", "device") if name in given}
    return ModelRef(id=given["model"], **own) if "model" in given else MISSING


def _sequence(name: str, kind: Any, value: Any) -> tuple[Any, ...]:
    if kind is Block:
        return tuple(dict.fromkeys(_block(text) for text in value))
    if kind is int:
        return parse_layers(value)
    return () if value == "all" else tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def _block(text: str) -> Block:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
        raise FieldError("blocks", f"is {text!r}; give start,n, such as 12,4, once for each block")
    return Block(start=int(parts[0]), n=int(parts[1]))


def _built_text(prefix: str, given: Values, default: TextSpec) -> TextSpec:
    names = {kind: prefix + name for kind, name in _TEXTS.items() if prefix + name in given}
    if len(names) > 1:
        one, other = map(spelled, list(names.values())[:2])
        raise TextError(f"{one} and {other} both name a text; give one of them.")
    own = {name: given[prefix + name] for name in TEXT_FIELDS if prefix + name in given}
    chosen = next(iter(names), None)
    if chosen != "dataset" and ("subset" in own or "split" in own):
        raise TextError(
            f"{spelled(prefix + 'subset')} and {spelled(prefix + 'split')} belong to a data set of the hub; give "
            f"{spelled(prefix + 'dataset')} too."
        )
    for name, does in (("key", "names a column of"), ("chat_template", "is for chats in")):
        if chosen not in ("file", "dataset") and name in own:
            raise TextError(
                f"{spelled(prefix + name)} {own[name]} {does} a file or a data set; give {spelled(prefix + 'text')} or "
                f"{spelled(prefix + 'dataset')} too."
            )
    base = default if chosen is None else _base(default, chosen, str(given[names[chosen]]))
    try:
        return replace(base, **{"bos": default.bos} | own)
    except FieldError as error:
        raise FieldError(prefix + error.field, error.why) from error


def _texts(given: Values) -> tuple[TextSpec, ...]:
    own = {"limit": 64} | {name: given[name] for name in TEXT_FIELDS if name in given}
    return tuple(
        TextSpec(kind=kind, value=str(value), **own)
        for kind in ("file", "builtin", "dataset")
        for value in given.get(_TEXTS[kind], ())
    )


def _removal(given: Values, default: Any) -> Any:
    start, n, layers = given.get("start"), given.get("n"), given.get("remove")
    block = start is not None or n is not None
    if layers is not None and block:
        raise PlanError("--start/--n and --remove both say what to remove; give one of them.")
    if layers is not None:
        return Removal(layers=parse_layers(layers))
    if start is not None and n is not None:
        return Removal(block=Block(start=start, n=n))
    if block:
        raise PlanError(f"A block needs --start and --n; {'--n' if n is None else '--start'} is missing.")
    if default is MISSING:
        raise PlanError("Nothing says what to remove; give --start and --n, --remove or --plan.")
    return default


def _task(given: Values) -> TaskSpec | None:
    value = given.get("tasks")
    if value is None:
        return None
    is_file = names_file(value)
    own = {field: given[flat] for field, flat in _TASK.items() if flat in given}
    if "choices" in own:
        own["choices"] = tuple(name.strip() for name in own["choices"].split(","))
    found = TaskSpec(kind="file" if is_file else "dataset", value=value, **own)
    if is_file and (found.subset, found.split) != (None, TaskSpec.__dataclass_fields__["split"].default):
        raise TextError(f"--task-subset and --task-split belong to a data set; {value} is a file.")
    return found


def names_file(text: str) -> bool:
    """Tell a file of questions from a data set: ids of the hub may end in a version, as org/rows-v1.5 does."""
    suffix = Path(text).suffix[1:]
    return Path(text).is_file() or (suffix.isalpha() and not Path(text).is_dir())


# The three spellings.


def to_command(request: Request, *, out: str | None = None, share: bool = False) -> str:
    """Return the command line that asks for this.

    Args:
        request: what is asked for.
        out: a run directory to keep it in.
        share: name files without their folders: where they lie is nobody's business.
    """
    values, words = values_of(request), ["shortviz", *COMMANDS.get(request.kind, request.kind).split()]
    known = {option.name: option for option in options_of(type(request))}
    named = [str(values.pop(name)) for name in positional(type(request)) if name in values]
    last = ["--", *named] if any(name.startswith("-") for name in named) else []  # or they would read as options
    words += [] if last else named
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else (value,):
            words += _words(known[name], Path(str(one)).name if share and name in _FILES else one)
    return shlex.join([*words, *(["--out", out] if out is not None else []), *last])


def positional(kind: type[Any]) -> tuple[str, ...]:
    """Return the flat fields that a command takes without naming them."""
    if kind is PushRequest:
        return ("folder", "repo_id")
    return ("model",)


def _words(option: Option, value: Any) -> list[str]:
    if option.kind is bool:
        yes, _, no = option.spelled.partition("/")
        return [yes] if value else [no] if no else []
    return [option.spelled, str(value)]


def to_python(request: Request, name: str = "") -> str:
    """Return the Python lines that ask for this, and print what comes or give it a name."""
    names: set[str] = {type(request).__name__, "execute"}
    body = _source(request, names)
    found = f"{name} = execute({body})" if name else f"print(execute({body}))"
    return f"from shortviz import {', '.join(sorted(names))}\n\n{found}\n"


def _source(value: Any, names: set[str]) -> str:
    if not is_dataclass(value) or isinstance(value, type):
        if isinstance(value, tuple) and any(is_dataclass(one) for one in value):
            return "(" + "".join(f"{_source(one, names)}, " for one in value) + ")"
        return repr(value)
    names.add(type(value).__name__)
    parts = [
        f"{f.name}={_source(getattr(value, f.name), names)}"
        for f in fields(value)
        if getattr(value, f.name) != f.default
    ]
    return f"{type(value).__name__}({', '.join(parts)})"


def to_url(request: Request) -> str:
    """Return a link that fills a page in with this; raises TextError where it would name a file or pasted text."""
    values = values_of(request)
    pairs = [(name, one) for name, value in values.items() for one in (value if isinstance(value, tuple) else (value,))]
    for name, value in pairs:
        _check_linked(name, str(value))
    return f"/?{urlencode([('do', request.kind), *pairs])}"


def _check_linked(name: str, value: str) -> None:
    """Raise TextError for what no link may carry: it must not make a machine read or run a file of its sender's."""
    code = name == "criteria" and any(part.strip().endswith(".py") for part in value.split(","))
    file = name in _FILES and value != "off"
    file = file or (name == "other_texts" and any(part not in builtin_names() for part in value.split(",")))
    file = file or (name == "lm_eval" and ".yaml" in value)
    if file or name in ("paste", "eval_paste") or code or (name == "tasks" and names_file(value)):
        raise TextError("A link carries neither files nor pasted text; choose them here, or send the run.")


def from_url(url: str) -> Request:
    """Return the request of a link; raises ShortvizError where it is not one."""
    every = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    asked = dict(every).get("do")
    kind = next((one for one in REQUESTS if one.kind == asked), None)
    if kind is None:
        raise ShortvizError(f"This link asks for {asked!r}, which is no kind of work here.")
    values: Values = {}
    for option in options_of(kind):
        found = [value for name, value in every if name == option.name]
        if not found:
            continue
        for value in found:
            _check_linked(option.name, value)
        many = get_origin(option.kind) is tuple
        try:
            values[option.name] = tuple(found) if many else TypeAdapter(option.kind).validate_python(found[-1])
        except ValidationError:
            raise ShortvizError(f"This link says {option.name} is {found[-1][:80]!r}, which it cannot be.") from None
    return request_of(kind, values)
