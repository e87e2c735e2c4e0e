"""`shortviz advise`: the plan for a budget from what a run holds. Opens no model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shortviz.advice_records import Advice, Budget, Candidate, parse_bytes
from shortviz.cli_options import JsonOption
from shortviz.cli_session import print_result
from shortviz.record_json import plain
from shortviz.words import count, counted, layers_text, percent, size

_SHOWN_TIES = 4


def advise_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    layers: Annotated[int | None, typer.Option(help="Remove at least so many layers.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--bytes", help="Weights of at most this size, e.g. 400MB or 1.5GB.")
    ] = None,
    max_increase: Annotated[
        float | None, typer.Option(help="Remove as much as possible while the NLL rises by at most so many nats.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Propose what to cut for a budget, from what the run has measured, and say how sure that is."""
    from shortviz.advice import advise
    from shortviz.runs import load_run

    wanted = None if max_bytes is None else parse_bytes(max_bytes)
    budget = Budget(layers=layers, bytes=wanted, max_increase=max_increase)
    found = advise(load_run(run), budget)
    print_result(advice_json(found) if as_json else advice_text(found))


def advice_text(advice: Advice) -> str:
    """Return the advice in sentences: what to do, what it costs, what it leaves, and how sure that is."""
    lines = [f"{what_to_do(advice.plan)}: {cost(advice.plan) if advice.measured else 'its loss was not measured'}."]
    left = size(advice.bytes)
    lines.append(f"Leaves {count(advice.parameters)} parameters, {left}; compared with {_others(advice)}.")
    if advice.ties:
        lines.append(f"Not told apart from it on this text (two errors): {tie_words(advice)}.")
    if advice.expected is not None:
        low, high = advice.expected
        share = percent(low) if low == high else f"{percent(low)} to {percent(high)}"
        lines.append(f"Not repaired yet: {_words(advice.expected_method)} won back {share} of other cuts in this run.")
    return "\n".join([*lines, *advice.notes])


def what_to_do(plan: Candidate) -> str:
    """Return `Remove layers 12-15 (4 layers), then seam refit`."""
    what = "layer" if len(plan.removed) == 1 else f"{len(plan.removed)} layers,"
    then = "".join(f", then {_words(method)}" for method in plan.methods)
    return f"Remove {what} {layers_text(plan.removed)}{then}"


def cost(plan: Candidate) -> str:
    """Return what the plan costs, with its error and the text behind it."""
    source = plan.text.source if plan.text is not None else "unknown text"
    return (
        f"NLL {plan.cost} nats a token ({plan.source}, "
        f"{counted(plan.tokens, 'token')} in {counted(plan.windows, 'window')} of {source})"
    )


def tie_words(advice: Advice) -> str:
    """Return the tied plans, the first few by name."""
    shown = [f"{what_to_do(plan)[7:]} ({plan.cost})" for plan in advice.ties[:_SHOWN_TIES]]
    more = len(advice.ties) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _others(advice: Advice) -> str:
    return f"{advice.compared - 1} other measured plans that fit" if advice.measured else "no measured plan"


def _words(method: str) -> str:
    return method.replace("_", " ")


def advice_json(advice: Advice) -> dict[str, Any]:
    """Return the advice as one JSON object, without the loss of each window; its shape is stable."""
    found: dict[str, Any] = plain(advice)
    for plan in (found["plan"], *found["ties"]):
        del plan["window_nll"]
    return found
