"""Command-line options made from the fields of a command's request, and the request made of what was typed."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from shortviz.errors import FieldError, PlanError, ShortvizError
from shortviz.records.formatting import spelled
from shortviz.records.text import WindowSpec
from shortviz.service.requests import Request
from shortviz.service.spelling import Option, options_of, positional, request_of

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
OutOption = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Run directory; work that was cut short goes on from there.")
]
ExportOption = Annotated[
    Path | None,
    typer.Option("--export", metavar="PATH", help="Write the model, proved: a new folder, or a new .gguf file."),
]
LARGEST = 2**63 - 1
"""What 64 bits hold: Python's numbers are endless, and torch, numpy and a file's fields are not."""
_ARGUMENTS = {
    "model": "A hub id, a checkpoint folder, a .gguf file, or demo.",
    "folder": "A folder that shortviz prune, repair, shrink or heal wrote.",
    "repo_id": "The repository, as user/name.",
}
_WITHOUT_EFFECT = {"window": int, "windows": int, "order": str, "max_length": int, "batch_size": int, "seed": int}
"""Options that every command on a text takes; where the request has no such field they do nothing, which is said."""
_PLAN = Annotated[
    Path | None, typer.Option(help='A JSON file: a list of layers, or an object with "removed" (shortviz.json).')
]

Choose = Callable[[Mapping[str, Any]], type[Any]]


def request_command(body: Callable[..., None], *, choose: Choose | None = None, model: str = "") -> Callable[..., None]:
    """Return the command that takes the fields of `body`'s request as options, and hands `body` the request.

    The request is the parameter `request` of `body`; its other parameters are options of the command alone. Where it
    is of several kinds, `choose` tells from the options which one is meant. `model` is the help of MODEL.
    """
    hints = get_type_hints(body, include_extras=True)
    asked = hints["request"]
    kinds = get_args(asked) or (asked,)
    options = {option.name: option for kind in kinds for option in options_of(kind)}
    first = [name for name in positional(kinds[0]) if name in options]
    own = [p for p in inspect.signature(body).parameters.values() if p.name != "request"]
    parameters = [_argument(options[name], model) for name in first]
    parameters += [_parameter(option) for name, option in options.items() if name not in first]
    if "remove" in options:
        parameters.append(_keyword("plan", _PLAN, None))
    if "limit" in options:
        idle = {name: kind for name, kind in _WITHOUT_EFFECT.items() if name not in options}
        parameters += [
            _keyword(name, Annotated[kind | None, typer.Option(hidden=True)], None) for name, kind in idle.items()
        ]
    names = {parameter.name for parameter in own}
    parameters = [p for p in parameters if p.name not in names]
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own]

    def build(given: Mapping[str, Any]) -> Request:
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
        if values.get("plan") is not None:
            if any(values.get(name) is not None for name in ("start", "n", "remove")):
                raise PlanError("--plan and another option both say what to remove; give one of them.")
            values["remove"] = ",".join(map(str, plan_file(values["plan"])))
        kind = choose(values) if choose is not None else kinds[0]
        asked = {option.name: values.get(option.name) for option in options_of(kind)}
        flags = {option.name for option in options_of(kind) if option.kind is bool and option.default is None}
        unset = {n for n in flags if asked[n] is False and "/" not in options[n].spelled}  # a flag that was left out
        return request_of(kind, {name: value for name, value in asked.items() if name not in unset})

    @wraps(body)
    def opened(**arguments: Any) -> None:
        refuse_huge(arguments)
        request = build(arguments)
        meant = {option.name for option in options_of(type(request))} | names | {"plan"}
        if "window" in meant and "eval_limit" not in meant:  # the text is cut into windows, not into rows
            meant -= {"max_length", "long_rows"}
        check_unused({name: value for name, value in arguments.items() if value is not None and name not in meant})
        note_unused(name for name, value in arguments.items() if value is not None and name not in meant)
        body(request=request, **{name: arguments[name] for name in names})

    del opened.__wrapped__  # typer would read the options of the function inside
    opened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # how inspect is told
    opened.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    opened.build = build  # type: ignore[attr-defined]
    return opened


def _argument(option: Option, said: str) -> inspect.Parameter:
    told = said or _ARGUMENTS[option.name]
    kind = Annotated[str, typer.Argument(metavar=option.metavar or option.name.upper(), help=told)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)


def _parameter(option: Option) -> inspect.Parameter:
    kind: Any = list[str] | None if get_origin(option.kind) is tuple else option.kind
    default = None if get_origin(option.kind) is tuple else option.default
    said: dict[str, Any] = {"help": option.help, "metavar": option.metavar or None}
    if kind is bool and default is None and "/" not in option.spelled:
        kind, default = bool, False
    elif default is None and not option.required:
        kind = kind | None
    annotation = Annotated[kind, typer.Option(option.spelled, **said)]
    return _keyword(
        option.name,
        annotation,
        inspect.Parameter.empty if option.required and get_origin(option.kind) is not tuple else default,
    )


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def note_unused(names: Any) -> None:
    """Say on stderr which options were given and do nothing in this command."""
    given = [spelled(name) for name in names]
    if given:
        have = "have" if len(given) > 1 else "has"
        print(f"Note: {' and '.join(given)} {have} no effect on this command.", file=sys.stderr)


def check_unused(values: Mapping[str, Any]) -> None:
    """Raise ShortvizError where an option makes no sense, though it does nothing here."""
    for name, least in (("batch_size", 1), ("seed", 0)):
        if values.get(name, least) < least:
            raise FieldError(name, f"is {values[name]}; it must be at least {least}")
    WindowSpec(**{name: values[name] for name in ("window", "windows", "order") if name in values})


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


def refuse_huge(values: Mapping[str, Any]) -> None:
    """Raise ShortvizError for a whole number, by parameter, that no 64 bits hold."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) > LARGEST:
            digits = len(str(abs(value)))
            raise ShortvizError(f"{spelled(name)} is a number of {digits} digits; give at most {LARGEST}.")
