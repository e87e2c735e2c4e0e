"""The commands that measure: `shortviz measure | map | curve | evaluate | sensitivity | compare | estimate`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shortviz.analysis.gate import require, verdict_words
from shortviz.cli.options import JsonOption, OutOption
from shortviz.cli.session import INTERRUPTED, how_to_go_on, print_result, working
from shortviz.errors import ShortvizError, TextError
from shortviz.records.formatting import percent
from shortviz.records.json import plain
from shortviz.records.text import TaskScore
from shortviz.service.execute import execute, new_service
from shortviz.service.place import Place
from shortviz.service.requests import (
    BlocksRequest,
    CurveRequest,
    EstimateRequest,
    EvaluateRequest,
    MapRequest,
    MeasureRequest,
    SearchRequest,
    SizeRequest,
    TextsRequest,
)
from shortviz.service.spelling import options_of

if TYPE_CHECKING:
    from shortviz.analysis.curve import RemovalCurve
    from shortviz.records.measured import Evaluation
    from shortviz.records.plan import Block
    from shortviz.records.run import Run
    from shortviz.service.inspect import Inspection
    from shortviz.streaming.model import StreamingEstimate


CriterionOption = Annotated[
    str | None, typer.Option(help="Criterion to compare by.  [default: angular_last, else the first of both]")
]
T = TypeVar("T", bound=MapRequest | SearchRequest | BlocksRequest | CurveRequest)
MODEL_OR_RUN = "A model as elsewhere, or a run directory: its model, and added to it."


def measure(request: MeasureRequest, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Measure the distance map: every criterion, every block."""
    from shortviz.cli.output import distances_text

    with working(shared=True) as watch:
        run = execute(request, watch, place=Place(out))
    if run is None:  # another process prints
        return
    distances = run.distances
    print_result(run if as_json else distances_text(distances, run.model))
    if distances.samples < run.text.rows:
        advice = how_to_go_on(out)
        tokens = f", {distances.tokens_words}" if distances.tokens_words else ""
        print(f"Stopped after {distances.rows_words}{tokens}; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def choose_map(values: Mapping[str, Any]) -> type[Any]:
    """Return which request the options of `shortviz map` mean; raises ShortvizError where they contradict."""
    search, stream, blocks, out = (values.get(name) for name in ("search", "stream", "blocks", "out"))
    if values.get("max_n") is not None and not search:
        raise ShortvizError("--max-n belongs to --search; give --search too, or leave it out.")
    if search and out is not None:
        raise ShortvizError("--out keeps whole maps, and --search only prints what it finds; leave one of them out.")
    if not stream and not blocks:
        return SearchRequest if search else MapRequest
    if not stream:
        raise ShortvizError("--blocks belongs to --stream; without it every block is measured.")
    if not blocks:
        raise ShortvizError(
            "--stream measures chosen blocks only; name them, such as --stream --blocks 12,4 --blocks 20,2."
        )
    if search or out is not None:
        raise ShortvizError("--stream only prints what it finds; leave --search and --out out.")
    return BlocksRequest


def measured_map(
    request: MapRequest | SearchRequest | BlocksRequest,
    metric: Annotated[str, typer.Option(help="What to print: nll or kl.")] = "nll",
    search: Annotated[bool, typer.Option("--search", help="Find only the best start of each n, far faster.")] = False,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="A model that does not fit: only --blocks, all in one sweep over the layers."),
    ] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what every block's removal really costs."""
    from shortviz.cli.output import losses_text, search_text

    if metric not in ("nll", "kl"):
        raise ShortvizError(f"--metric is {metric!r}; it must be nll or kl.")
    request, place, out = opened(request, out)
    with working(shared=not search) as watch:
        found = execute(request, watch, place=place)
    if found is None:  # another process prints
        return
    if isinstance(request, BlocksRequest):
        print_result(blocks_json(request.blocks, found) if as_json else blocks_text(request.blocks, found))
    elif isinstance(request, SearchRequest):
        print_result(found if as_json else search_text(found))
    else:
        print_result(found if as_json else losses_text(found, found.losses, metric))
        _tell_unfinished(found, out)


def _tell_unfinished(run: "Run", out: Path | None) -> None:
    """Exit with the code of a stopped map where the run's is not complete."""
    if run.losses is not None and not run.losses.complete:
        print(f"Stopped with part of the map measured; {how_to_go_on(out)}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def opened(request: T, out: Path | None) -> tuple[T, Place, Path | None]:
    """Return (the request, where its run is kept, the run directory) of a command whose MODEL may be a run directory.

    Raises RunError where --out holds a run of another model.
    """
    from shortviz.runs import run as runs

    asked, folder = request.model, Path(request.model.id)
    if not (folder / runs.FILE).is_file():
        place = Place(out)
        place.check_model(asked.id)
        return request, place, out
    run = runs.load_run(folder)
    dtype = run.model.dtype if asked.dtype == "auto" else asked.dtype
    ref = replace(asked, id=run.model.id, revision=asked.revision or run.model.revision, dtype=dtype)
    place = Place(out or folder, start=run)
    place.check_model(run.model.id)
    return replace(request, model=ref), place, out or folder


def removal_curve(
    request: CurveRequest, context: typer.Context, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Loss against layers removed, for every strategy; measures the map where the run has none.

    With --tasks also multiple-choice accuracy, of the uncut model and of the strategies' cuts of the chosen sizes.
    """
    from shortviz.analysis.curve import curve_of_run
    from shortviz.cli.output import curve_text
    from shortviz.service.curve import refuse_usual_text

    if request.task is None and (request.strategies or request.sizes):
        raise ShortvizError(
            "--strategies and --sizes say which cuts --tasks scores; give --tasks too, or leave them out."
        )
    request, place, folder = opened(request, out)
    service = new_service()
    with working() as watch:
        if _names_text(context):
            refuse_usual_text(request, service, place, watch)
        run = execute(request, watch, service=service, place=place)
    if out is not None:
        place.update(lambda _: run)
    curve = curve_of_run(run)
    assert curve is not None, "the map was measured or known"
    print_result(_json(curve, run) if as_json else "\n\n".join([curve_text(curve), *_accuracy(curve, run)]))
    if watch.stopped:
        _tell_unfinished(run, folder)
        print("Stopped; what was measured until then is above, and kept with --out.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _names_text(context: typer.Context) -> bool:
    """Tell whether an option of the text or its windows was typed, be it the default, which the request cannot tell."""
    about_text = set(options_of(MapRequest)) - set(options_of(SizeRequest))
    sources = [context.get_parameter_source(option.name) for option in about_text]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _json(curve: "RemovalCurve", run: "Run") -> dict[str, Any]:
    from shortviz.records.json import plain

    found: dict[str, Any] = plain(curve)
    return found | {"tasks": run.tasks}


def _accuracy(curve: "RemovalCurve", run: "Run") -> Sequence[str]:
    from shortviz.analysis.curve import accuracy_lines, task_sets
    from shortviz.cli.output import accuracy_text

    found = {one: accuracy_lines(curve, run.tasks, one) for one in task_sets(run.tasks)}
    return [accuracy_text(lines) for lines in found.values() if lines]


def evaluate(request: EvaluateRequest, as_json: JsonOption = False) -> None:
    """Measure perplexity, of the model or with layers removed; with --tasks, multiple-choice accuracy too.

    With --adapter the healed model is measured: MODEL is the uncut one, or the checkpoint of the cut. With layers to
    remove, the uncut model is measured on the same windows and questions for comparison.
    """
    from shortviz.cli.output import evaluation_text
    from shortviz.records.measured import evaluation_json

    with working(shared=request.stream is not False) as watch:
        found: Inspection | None = execute(request, watch)
    if found is None:  # another process prints
        return
    evaluation = found.evaluation
    assert evaluation is not None, "a stop before the first window raises"
    if as_json:
        written = {"written": {"uncut": found.uncut, "cut": found.cut}} if request.write else {}
        judged = {} if found.gate is None else {"gate": found.gate}
        scores = {} if found.score is None else {"tasks": plain(found.score) | {"base": found.base_score}}
        print_result(evaluation_json(evaluation) | scores | written | judged)
    else:
        written_lines = [f"{name:<18}{text.strip()}" for name, text in (("uncut", found.uncut), ("cut", found.cut))]
        lines = [line for line, text in zip(written_lines, (found.uncut, found.cut), strict=True) if text]
        held = [verdict_words(found.gate)] if found.gate is not None and found.gate.held else []
        print_result("\n".join([evaluation_text(evaluation), *scores_text(found), *lines, *held]))
    if not evaluation.complete:
        print(f"Stopped after {evaluation.score.windows} of {evaluation.text.rows} windows.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if request.task is not None and not all_answered(found):
        print("Stopped before every question was scored by every model.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if found.gate is not None:
        require(found.gate)


def all_answered(found: "Inspection") -> bool:
    """Tell whether every model answered every question; a stopped one has only the first of them."""
    scores = (found.score, found.base_score) if found.evaluation and found.evaluation.base else (found.score,)
    return all(score is not None and score.complete for score in scores)


def scores_text(found: "Inspection") -> list[str]:
    """Return the lines that --tasks adds to an evaluation in words."""
    score, base = found.score, found.base_score
    if score is None:
        return []
    lines = [_line("accuracy", score)] + ([_line("uncut model", base)] if base is not None else [])
    return [*lines, f"Over {score.behind}."]


def _line(label: str, score: TaskScore) -> str:
    return (
        f"{label:<18}{percent(score.accuracy, score.accuracy_stderr)}   by length "
        f"{percent(score.accuracy_norm, score.accuracy_norm_stderr)}"
    )


def compare(
    run: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", help="Run directories of one model, two or more.")
    ],
    criterion: CriterionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set runs side by side: where the best start moves from text to text, and how many rows each choice needs."""
    from shortviz.cli.output import comparison_json, comparison_text
    from shortviz.runs import run as runs

    found = {str(folder): runs.load_run(folder) for folder in run}
    print_result((comparison_json if as_json else comparison_text)(found, criterion))


def sensitivity(
    request: TextsRequest,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the runs go, one folder a text.  [required]")
    ] = None,
    criterion: CriterionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the distances on several texts and tell how far the choice depends on the text."""
    from shortviz import criteria
    from shortviz.cli.output import comparison_json, comparison_text

    if criterion is not None and criterion not in criteria.names():
        raise ShortvizError(
            f"There is no criterion {criterion!r} to compare by; choose from {', '.join(criteria.names())}."
        )
    if out is None:
        raise ShortvizError("Missing option '--out'; name a folder for the runs.")
    if len(request.texts) < 2:
        raise TextError(f"{len(request.texts)} texts were named; give --text or --builtin at least twice.")
    with working() as watch:
        found = execute(request, watch, place=Place(out))
    if len(found) > 1:
        print_result((comparison_json if as_json else comparison_text)(found, criterion))
    if watch.stopped:
        raise typer.Exit(INTERRUPTED)


def estimate(request: EstimateRequest, as_json: JsonOption = False) -> None:
    """Predict the memory and disk that a model takes, whole and streamed, from its config and weight headers."""
    with working() as watch:
        found = execute(request, watch)
    print_result(_estimate_json(found) if as_json else _estimate_text(found))


def _estimate_json(found: "StreamingEstimate") -> dict[str, object]:
    size = {f"size_{name}": getattr(found.size, name) for name in ("id", "parameters", "memory_bytes", "fits", "dtype")}
    names = ("streamed_memory_bytes", "states_bytes", "disk_bytes")
    work = {"rows": found.rows, "row_tokens": found.row_tokens}
    return size | {name: getattr(found, name) for name in names} | {"work": work}


def _estimate_text(found: "StreamingEstimate") -> str:
    from shortviz.records.formatting import counted, size

    whole = found.size
    fits = "fits" if whole.fits else "does not fit, and would be streamed"
    lines = [
        whole.words,
        f"memory   whole {size(whole.memory_bytes)}, {size(whole.available_bytes)} is free: it {fits}; streamed "
        f"{size(found.streamed_memory_bytes)} of weights and up to {size(found.states_bytes)} of states "
        f"({counted(found.rows, 'row')} of {found.row_tokens} tokens), in memory or in a file",
        f"disk     {size(found.disk_bytes)} for an export of all layers",
    ]
    return "\n".join(lines)


def blocks_json(blocks: "Sequence[Block]", found: "Sequence[Evaluation]") -> dict[str, Any]:
    """Return {"blocks": [{start, n, and what `evaluate --json` prints}, ...]}."""
    from shortviz.records.measured import evaluation_json

    pairs = zip(blocks, found, strict=True)
    return {"blocks": [{"start": block.start, "n": block.n} | evaluation_json(one) for block, one in pairs]}


def blocks_text(blocks: "Sequence[Block]", found: "Sequence[Evaluation]") -> str:
    """Return a table of the blocks, the best first."""
    from shortviz.cli.output import score_words
    from shortviz.records.formatting import block_text, counted, with_error
    from shortviz.records.table import Table, right

    base, text = found[0].base, found[0].text
    assert base is not None
    rows = []
    for block, one in sorted(zip(blocks, found, strict=True), key=lambda pair: pair[1].score.nll):
        increase = with_error(one.nll_increase, one.nll_increase_stderr, sign=True)
        change, score = with_error(one.kl, one.kl_stderr), one.score
        perplexity = with_error(score.perplexity, score.perplexity_stderr)
        rows.append([str(block.n), block_text(block.start, block.n), increase, change, perplexity])
    columns = right("n", "layers", "NLL increase, nats", "KL, nats", "perplexity")
    return "\n".join(
        [
            f"Uncut model: {score_words(base)}. Text: {text.words}; {counted(base.tokens, 'scored token')}, "
            f" windows of {text.max_length}. Streamed in one sweep over the layers.",
            Table(columns, rows).text(),
        ]
    )
