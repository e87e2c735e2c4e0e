"""`shortviz curve`: loss, and with --tasks accuracy, against layers removed. Heavy imports wait inside."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.analysis.curve import check_sizes, check_strategies, strategies_to_come
from shortviz.analysis.planning import parse_layers
from shortviz.cli.options import (
    TEXT_OPTIONS,
    JsonOption,
    LoadOptions,
    ModelArgument,
    TaskOptions,
    TextOptions,
    at_least,
    readable,
    with_options,
)
from shortviz.cli.session import INTERRUPTED, how_to_go_on, load_model, print_result, working
from shortviz.errors import ShortvizError, Stopped, TextError
from shortviz.progress import Watch
from shortviz.records.formatting import percent
from shortviz.records.json import plain
from shortviz.records.model import ModelRef
from shortviz.records.text import TaskRows, TaskScore
from shortviz.text.sources import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from shortviz.analysis.curve import RemovalCurve
    from shortviz.model.handle import ModelHandle
    from shortviz.model.load import ResolvedModel
    from shortviz.records.measured import BlockLosses
    from shortviz.records.model import ModelRef
    from shortviz.records.run import Run
    from shortviz.records.text import TextInfo, TextSpec, TokenSet, WindowSet, WindowSpec
    from shortviz.streaming.model import StreamedModel, StreamingEstimate
    from shortviz.text.sources import Text

    Opened = ModelHandle | StreamedModel

    from shortviz.model.handle import ModelHandle
    from shortviz.records.measured import Evaluation
    from shortviz.records.plan import Block, Removal


# A run directory while a command works on it: there before the long work starts, gone where that is refused.


@contextmanager
def begun(run: "Run", out: Path) -> Iterator[None]:
    """Save a run that is to be measured; where its text, criterion or numbers are refused, leave nothing new behind.

    Raises RunError where the folder holds something else, ResourceError where it cannot be written.
    """
    from shortviz.runs import run as runs

    new_folder, new_run = not out.exists(), not (out / runs.FILE).exists()
    runs.save_run(run, out)
    try:
        yield
    except Stopped:
        raise
    except ShortvizError:
        # Whatever was measured before the refusal stands in files beside the run, and then it stays.
        if new_run and [entry.name for entry in out.iterdir()] == [runs.FILE]:
            (out / runs.FILE).unlink()
            if new_folder:
                out.rmdir()
        raise


@contextmanager
def claimed(run: "Run", out: Path) -> Iterator["Run"]:
    """Yield the run without distances, saved, with all that the folder's run has but those; `begun` says the rest."""
    from shortviz.runs import run as runs

    old = runs.load_run(out) if (out / runs.FILE).exists() else run
    facts = {"model": run.model, "text": run.text, "versions": run.versions, "created": run.created}
    mine = replace(old, **facts, distances=None)  # type: ignore[arg-type]
    with begun(replace(mine, distances=old.distances), out):
        yield mine


# `shortviz map`: the measured loss of every block. Heavy imports wait inside.

CHECKPOINT = "map-checkpoint.npz"
"""In the run directory, while a map is unfinished."""

MapArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL|RUN", help="A model as elsewhere, or a run directory: its model, and added to it."),
]


@with_options
def measured_map(
    model: MapArgument,
    load: LoadOptions,
    text: TextOptions,
    metric: Annotated[str, typer.Option(help="What to print: nll or kl.")] = "nll",
    search: Annotated[bool, typer.Option("--search", help="Find only the best start of each n, far faster.")] = False,
    max_n: Annotated[int | None, typer.Option(help="--search: largest n.  [default: all but one layer]")] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="A model that does not fit: only --blocks, all in one sweep over the layers."),
    ] = False,
    blocks: Annotated[
        list[str] | None, typer.Option(metavar="START,N", help="--stream: a block to measure; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; a map cut short goes on from there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what every block's removal really costs."""
    from shortviz.cli.output import losses_text, search_text
    from shortviz.measure.processes import joined, share
    from shortviz.runs import run as runs
    from shortviz.text import tokens as texts

    _check_options(metric, search, max_n, out)
    text.note_unused("max_length", "batch_size", "seed")
    if stream or blocks:
        _streamed_blocks(
            model, load, text, stream=stream, blocks=blocks or [], alone=not search and out is None, as_json=as_json
        )
        return
    ref, run, out = source(model, load, out)
    spec, windows = text.spec(texts.DEFAULT_EVALUATION), text.window_spec()
    with working(shared=True) as watch, joined() as ranks:
        if search and ranks is not None:
            raise ShortvizError("--search runs in one process; start it without a launcher.")
        ref, watch = share(ranks, ref, watch)
        handle = load_model(ref, watch, fits=_fits(max_n))
        window_set = texts.make_windows(spec, windows, handle.tokenizer)
        if ranks is not None:
            ranks.agree({"text": window_set.info.fingerprint, "options": (window_set.tokens.shape, handle.info.dtype)})
        _warn_about(window_set.info, run)
        if search:
            if window_set.info.rows < 3:
                print("Note: the search measures two windows whole; give --windows 3 or more.", file=sys.stderr)
            from shortviz.measure.search import search_best_starts

            found = search_best_starts(handle, window_set, max_n=max_n, watch=watch)
        else:
            from shortviz.measure.loss_map import measure_losses

            run = run or runs.new_run(handle.info, window_set.info)
            _refuse_other_map(run, window_set.info, out)
            losses = _complete(run, window_set.info, handle.info.dtype)
            checkpoint = out / CHECKPOINT if out is not None else None
            writes = out is not None and (ranks is None or ranks.writes)
            if losses is not None:
                print("The run has this map already; nothing is measured again.", file=sys.stderr)
            else:
                with begun(run, out) if out is not None and writes else nullcontext():
                    losses = measure_losses(handle, window_set, checkpoint=checkpoint, ranks=ranks, watch=watch)
    if ranks is not None and not ranks.writes:
        return
    if search:
        print_result(found if as_json else search_text(found))
        return
    assert run is not None
    assert losses is not None
    run = replace(run, losses=losses)
    if out is not None:
        runs.save_run(run, out)
    print_result(run if as_json else losses_text(run, losses, metric))
    finish(losses, out)


def _fits(max_n: int | None) -> "Callable[[int], None] | None":
    """Return the check that there is a largest n to search in a model of so many layers."""
    from shortviz.measure.search import check_max_n

    return None if max_n is None else lambda num_layers: check_max_n(num_layers, max_n)


def _streamed_blocks(
    model: str, load: LoadOptions, text: TextOptions, *, stream: bool, blocks: list[str], alone: bool, as_json: bool
) -> None:
    """Print the losses of chosen blocks of a model that is streamed."""
    from shortviz.records.plan import Removal

    if not stream or not blocks:
        raise ShortvizError(
            "--stream measures chosen blocks only; name them, such as --stream --blocks 12,4 --blocks 20,2."
            if stream
            else "--blocks belongs to --stream; without it every block is measured."
        )
    if not alone:
        raise ShortvizError("--stream only prints what it finds; leave --search and --out out.")
    from shortviz.text import tokens as texts

    asked = blocks_asked(blocks)
    with working(shared=True) as watch:
        ref, _, _ = source(model, load, None)
        spec, cuts = readable(text.spec(texts.DEFAULT_EVALUATION)), [Removal(block=block) for block in asked]
        found = streamed_evaluations(ref, spec, text.window_spec(), cuts, watch)
    print_result(blocks_json(asked, found) if as_json else blocks_text(asked, found))


def _check_options(metric: str, search: bool, max_n: int | None, out: Path | None) -> None:
    at_least(1, max_n=max_n)
    if metric not in ("nll", "kl"):
        raise ShortvizError(f"--metric is {metric!r}; it must be nll or kl.")
    if max_n is not None and not search:
        raise ShortvizError("--max-n belongs to --search; give --search too, or leave it out.")
    if search and out is not None:
        raise ShortvizError("--out keeps whole maps, and --search only prints what it finds; leave one of them out.")


def _complete(run: "Run", text: "TextInfo", dtype: str) -> "BlockLosses | None":
    """Return the run's map where it is complete, on this text, of the model in this dtype."""
    known = run.losses if run.model.dtype == dtype else None
    same = known is not None and known.complete and known.text.fingerprint == text.fingerprint
    return known if same else None


def _refuse_other_map(run: "Run", text: "TextInfo", out: Path | None) -> None:
    """Raise ShortvizError where a complete map on other windows would be replaced."""
    old = run.losses
    if out is not None and old is not None and old.complete and old.text.fingerprint != text.fingerprint:
        raise ShortvizError(
            f"{out} holds a complete map on {old.text.source}, {old.text.rows} windows of {old.text.max_length}; "
            "choose another --out for this one."
        )


def finish(losses: "BlockLosses", out: Path | None) -> None:
    """Remove the checkpoint of a complete map; exit with the code of a stopped one otherwise."""
    from shortviz.model.delta import discard_checkpoint

    if not losses.complete:
        advice = how_to_go_on(out)
        print(f"Stopped with part of the map measured; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if out is not None:
        discard_checkpoint(out / CHECKPOINT)


def source(model: str, load: LoadOptions, out: Path | None) -> tuple[ModelRef, "Run | None", Path | None]:
    """Return (what to load, the run to add to, where to save) for a model or a run directory."""
    from shortviz.runs import run as runs

    folder = Path(model)
    if not (folder / runs.FILE).is_file():
        known = runs.load_run(out) if out is not None and (out / runs.FILE).is_file() else None
        if known is not None and known.model.id != model:
            raise ShortvizError(f"{out} holds a run of {known.model.id}, not of {model}; choose another --out.")
        return load.ref(model), known, out
    run = _added_to(runs.load_run(folder), folder, out)
    asked = load.ref(run.model.id)
    dtype = run.model.dtype if asked.dtype == "auto" else asked.dtype
    return replace(asked, revision=asked.revision or run.model.revision, dtype=dtype), run, out or folder


def _added_to(run: "Run", folder: Path, out: Path | None) -> "Run":
    """Return the run to add to: that of --out where it has one of this model, with the distances of the run given.

    Raises ShortvizError where --out holds a run of another model.
    """
    from shortviz.runs import run as runs

    if out is None or out.resolve() == folder.resolve() or not (out / runs.FILE).is_file():
        return run
    known = runs.load_run(out)
    if known.model.id != run.model.id:
        raise ShortvizError(f"{out} holds a run of {known.model.id}, not of {run.model.id}; choose another --out.")
    return known if known.distances is not None else replace(known, distances=run.distances, text=run.text)


def _warn_about(text: "TextInfo", run: "Run | None") -> None:
    if run is not None and run.distances is not None and run.distances.text.source == text.source:
        print(
            f"Warning: the losses are scored on the calibration text ({text.source}); choose another to be sure.",
            file=sys.stderr,
        )
    if text.rows < 2:
        print("Note: one window gives no error bars; give --windows 2 or more.", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command is to measure."""

    spec: "Text"
    windows: "WindowSpec"
    greedy: int
    questions: TaskRows | None
    strategies: tuple[str, ...]
    sizes: tuple[int, ...]

    def fits(self, num_layers: int) -> None:
        """Raise PlanError where a model of so many layers has fewer than are to be removed."""
        from shortviz.measure.search import check_removed

        if self.greedy:
            check_removed(num_layers, self.greedy)
        check_sizes(num_layers, self.sizes)


@with_options
def removal_curve(
    model: MapArgument,
    load: LoadOptions,
    text: TextOptions,
    task: TaskOptions,
    greedy: Annotated[int, typer.Option(help="Also remove so many single layers greedily; 0 is none.")] = 0,
    strategies: Annotated[
        str, typer.Option(help="--tasks: strategies to score, e.g. simple,greedy.  [default: all but random]")
    ] = "all",
    sizes: Annotated[
        str | None, typer.Option(help="--tasks: layers removed, e.g. 1,4-6.  [default: 1 and eighths of the layers]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to keep what is measured in.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Loss against layers removed, for every strategy; measures the map where the run has none.

    With --tasks also multiple-choice accuracy, of the uncut model and of the strategies' cuts of the chosen sizes.
    """
    from shortviz.analysis.curve import curve_of_run
    from shortviz.cli.output import curve_text
    from shortviz.text import tokens as texts
    from shortviz.text.questions import read_task

    at_least(0, greedy=greedy)
    text.note_unused("max_length", "batch_size", "seed")
    spec = task.task()
    if spec is None and (strategies != "all" or sizes is not None):
        raise ShortvizError(
            "--strategies and --sizes say which cuts --tasks scores; give --tasks too, or leave them out."
        )
    ref, run, out = source(model, load, out)
    asked = _Asked(
        spec=text.spec(texts.DEFAULT_EVALUATION),
        windows=text.window_spec(),
        greedy=greedy,
        questions=read_task(spec) if spec is not None else None,
        strategies=() if strategies == "all" else tuple(name.strip() for name in strategies.split(",")),
        sizes=() if sizes is None else parse_layers(sizes),
    )
    check_strategies(strategies_to_come(run, greedy=greedy > 0), asked.strategies)
    losses = run.losses if run is not None else None
    if losses is not None and not losses.complete and out is not None and (out / CHECKPOINT).exists():
        losses = None  # a map cut short goes on from its checkpoint
    found: ModelRef | ResolvedModel = ref
    if losses is not None and text.typed & TEXT_OPTIONS:
        asked, found = _refuse_other_text(asked, ref, losses)
    stopped = False
    if losses is None or greedy or asked.questions is not None:
        run, stopped = _measure(asked, found, run, losses, out)
    elif out is not None and run is not None and out != Path(model):
        _saved(run, out)
    assert run is not None
    curve = curve_of_run(run)
    assert curve is not None, "the map was measured or known"
    print_result(_json(curve, run) if as_json else "\n\n".join([curve_text(curve), *_accuracy(curve, run)]))
    if losses is None and run.losses is not None:
        finish(run.losses, out)
    if stopped:
        print("Stopped; what was measured until then is above, and kept with --out.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _measure(
    asked: _Asked, model: "ModelRef | ResolvedModel", run: "Run | None", losses: "BlockLosses | None", out: Path | None
) -> tuple["Run", bool]:
    """Return the run with what was asked for and not known, and whether it was stopped.

    Saved after each stage, so that nothing is lost.
    """
    from shortviz.runs import run as runs
    from shortviz.text import tokens as texts

    with working() as watch:
        from shortviz.measure.loss_map import measure_losses

        handle = load_model(model, watch, fits=asked.fits)
        window_set = texts.make_windows(asked.spec, asked.windows, handle.tokenizer)
        run = run or runs.new_run(handle.info, window_set.info)
        if losses is None:
            checkpoint = out / CHECKPOINT if out is not None else None
            losses = measure_losses(handle, window_set, checkpoint=checkpoint, watch=watch)
            run = _saved(replace(run, losses=losses), out)
        if asked.greedy and not watch.stopped:
            run = _saved(_with_greedy(run, handle, window_set, asked.greedy, watch), out)
        if asked.questions is not None and not watch.stopped:
            run = _with_tasks(run, handle, asked, out, watch)
        return run, watch.stopped


def _refuse_other_text(asked: _Asked, ref: ModelRef, losses: "BlockLosses") -> "tuple[_Asked, ResolvedModel]":
    """Return both, the text read and the model resolved.

    Raises ShortvizError where the text options say other windows than those that the map was measured on.
    """
    from shortviz.text import tokens as texts

    with working() as watch:
        from shortviz.model.load import prepare, read_tokenizer, resolve

        resolved = resolve(ref, watch=watch)
        asked = replace(asked, spec=read_rows(asked.spec))
        tokenizer = read_tokenizer(ref.id, prepare(resolved, watch=watch))
        found = texts.make_windows(asked.spec, asked.windows, tokenizer).info
    known = losses.text
    if found.fingerprint != known.fingerprint:
        raise ShortvizError(
            f"The run's map is on {known.source}, {known.rows} windows of {known.max_length}, and the text options say "
            f"{found.source}, {found.rows} windows of {found.max_length}; give the map's own, or the model with "
            "another --out to measure another map."
        )
    return asked, resolved


def _saved(run: "Run", out: Path | None) -> "Run":
    from shortviz.runs import run as runs

    if out is not None:
        runs.save_run(run, out)
    return run


def _with_greedy(run: "Run", handle: "ModelHandle", windows: "WindowSet", wanted: int, watch: Watch) -> "Run":
    from shortviz.analysis.curve import further
    from shortviz.measure.search import greedy_removal

    losses, known = run.losses, run.greedy
    if losses is not None and losses.text.fingerprint != windows.info.fingerprint:
        raise ShortvizError(
            f"The run's map was measured on {losses.text.source}, windows of {losses.text.max_length}; greedy "
            f"removal would be on {windows.info.source}, windows of {windows.info.max_length}; give "
            "the same text and window options."
        )
    if known is not None and known.text.fingerprint == windows.info.fingerprint and len(known.line.points) > wanted:
        return run
    found = greedy_removal(handle, windows, max_removed=wanted, watch=watch)
    return replace(run, greedy=further(known, found))


def _with_tasks(run: "Run", handle: "ModelHandle", asked: _Asked, out: Path | None, watch: Watch) -> "Run":
    from shortviz.analysis.curve import curve_of_run, default_sizes, plans_to_score, strategies_of
    from shortviz.measure.tasks import score_plans
    from shortviz.runs.run import with_task

    curve, questions = curve_of_run(run), asked.questions
    assert curve is not None
    assert questions is not None
    sizes = asked.sizes or default_sizes(curve.num_layers)
    plans = plans_to_score(curve, asked.strategies or strategies_of(curve), sizes)
    left = [plan for plan in plans if run.task_of(plan, questions.fingerprint) is None]
    print(f"{len(questions.rows)} questions with each of {len(left)} models", file=sys.stderr)
    kept = [run]

    def keep(score: Any) -> None:
        kept[0] = _saved(with_task(kept[0], score), out)

    if left:
        try:
            score_plans(handle, questions, left, on_score=keep, watch=watch)
        except Stopped:
            print("Stopped before the first model had answered every question.", file=sys.stderr)
    return kept[0]


def _json(curve: "RemovalCurve", run: "Run") -> dict[str, Any]:
    from shortviz.records.json import plain

    found: dict[str, Any] = plain(curve)
    return found | {"tasks": run.tasks}


def _accuracy(curve: "RemovalCurve", run: "Run") -> Sequence[str]:
    from shortviz.analysis.curve import accuracy_lines, task_sets
    from shortviz.cli.output import accuracy_text

    found = {one: accuracy_lines(curve, run.tasks, one) for one in task_sets(run.tasks)}
    return [accuracy_text(lines) for lines in found.values() if lines]


# `shortviz sensitivity` (measure several texts) and `shortviz compare` (runs side by side); heavy imports inside.

CriterionOption = Annotated[
    str | None, typer.Option(help="Criterion to compare by.  [default: angular_last, else the first of both]")
]


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


@with_options
def sensitivity(
    model: ModelArgument,
    load: LoadOptions,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the runs go, one folder a text.")],
    text: Annotated[list[Path] | None, typer.Option(help="A text file; give it again for the next one.")] = None,
    builtin: Annotated[list[str] | None, typer.Option(help="A built-in text; give it again for the next one.")] = None,
    key: Annotated[str | None, typer.Option(help="Column that holds the text, of all files.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many rows of each text.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens a row is truncated to.")] = 256,
    bos: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Rows in a batch.")] = 8,
    criterion: CriterionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the distances on several texts and tell how far the choice depends on the text."""
    from shortviz import criteria
    from shortviz.cli.output import comparison_json, comparison_text
    from shortviz.text import tokens as texts

    if criterion is not None and criterion not in criteria.names():
        raise ShortvizError(
            f"There is no criterion {criterion!r} to compare by; choose from {', '.join(criteria.names())}."
        )
    common = TextOptions(limit=limit, max_length=max_length, bos=bos, batch_size=batch_size)
    asked = [replace(common, text=path, key=key) for path in text or ()]
    specs = [one.spec(texts.DEFAULT_CALIBRATION) for one in asked]
    specs += [replace(common, builtin=name).spec(texts.DEFAULT_CALIBRATION) for name in builtin or ()]
    if len(specs) < 2:
        raise TextError(f"{len(specs)} texts were named; give --text or --builtin at least twice.")
    read = [read_rows(spec) for spec in specs]  # a bad file is told before minutes are spent on loading a model
    found: dict[str, Run] = {}
    with working() as watch:
        handle = load_model(load.ref(model), watch)
        from shortviz.measure.batches import check_rows

        sets = [texts.tokenize(rows, handle.tokenizer) for rows in read]
        for tokens in sets:
            check_rows(handle.info, tokens)  # a text that does not fit is told before others are measured
        for tokens, name in zip(sets, folder_names(specs), strict=True):
            if watch.stopped:
                break
            named = watch.labelled(stage=f"measure {name}")
            found[str(out / name)] = _measure_texts(handle, tokens, out / name, batch_size, watch=named)
    if len(found) > 1:
        print_result((comparison_json if as_json else comparison_text)(found, criterion))
    if watch.stopped:
        raise typer.Exit(INTERRUPTED)


def folder_names(specs: "list[TextSpec]") -> list[str]:
    """Return a folder name for each text, after its own name; texts of one name are numbered."""
    names: list[str] = []
    for spec in specs:
        name = Path(spec.value).name if spec.kind == "file" else spec.value
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "text"
        count = sum(known == name or known.startswith(f"{name}-") for known in names)
        names.append(f"{name}-{count + 1}" if count else name)
    return names


def _measure_texts(handle: "ModelHandle", tokens: "TokenSet", folder: Path, batch_size: int, *, watch: Watch) -> "Run":
    """Return the folder's run with the distances of the text; what it has of this model and text is not measured again.

    Raises RunError where the folder holds a run of something else.
    """
    from shortviz.measure.distances import measure_distances
    from shortviz.model.delta import discard_checkpoint
    from shortviz.runs import run as runs

    run = runs.new_run(handle.info, tokens.info)
    if (folder / runs.FILE).is_file():
        old = runs.load_run(folder)
        same = old.model == replace(run.model, device=old.model.device, reason=old.model.reason)
        if same and old.text.fingerprint == run.text.fingerprint:
            run = old
    if run.distances is not None and run.distances.samples == len(tokens.rows):
        return run
    checkpoint = folder / "checkpoint.npz"
    with claimed(run, folder) as run:
        distances = measure_distances(handle, tokens, batch_size=batch_size, checkpoint=checkpoint, watch=watch)
    run = replace(run, distances=distances)
    runs.save_run(run, folder)
    if distances.samples == len(tokens.rows):
        discard_checkpoint(checkpoint)
    return run


# The command `shortviz estimate`: what a model takes, before it is loaded. Heavy imports wait inside.


@with_options
def estimate(
    model: ModelArgument,
    load: LoadOptions,
    rows: Annotated[int, typer.Option(help="Rows of text, whose states are kept while streaming.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Predict the memory and disk that a model takes, whole and streamed, from its config and weight headers."""
    at_least(1, rows=rows)
    at_least(2, max_length=max_length)
    with working():
        from shortviz.streaming.model import estimate_streaming

        found = estimate_streaming(load.ref(model), rows=rows, row_tokens=max_length)
    print_result(_estimate_json(found) if as_json else _estimate_text(found))


def _estimate_json(found: "StreamingEstimate") -> dict[str, object]:
    size = {f"size_{name}": getattr(found.size, name) for name in ("id", "parameters", "memory_bytes", "fits", "dtype")}
    names = ("streamed_memory_bytes", "states_bytes", "disk_bytes")
    work = {"rows": found.rows, "row_tokens": found.row_tokens}
    return size | {name: getattr(found, name) for name in names} | {"work": work}


def _estimate_text(found: "StreamingEstimate") -> str:
    from shortviz.cli.output import estimate_line
    from shortviz.records.formatting import size

    whole = found.size
    fits = "fits" if whole.fits else "does not fit, and would be streamed"
    lines = [
        estimate_line(whole),
        f"memory   whole {size(whole.memory_bytes)}, {size(whole.available_bytes)} is free: it {fits}; streamed "
        f"{size(found.streamed_memory_bytes)} of weights and up to {size(found.states_bytes)} of states "
        f"({found.rows} rows of {found.row_tokens} tokens), in memory or in a file",
        f"disk     {size(found.disk_bytes)} for an export of all layers",
    ]
    return "\n".join(lines)


# The command `shortviz measure`: in memory, or streamed where the model does not fit. Heavy imports wait inside.


StreamOption = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Never the whole model in memory: from its files, part by part.  [default: where it would not fit]",
    ),
]


@with_options
def measure(
    model: ModelArgument,
    load: LoadOptions,
    text: TextOptions,
    criteria: Annotated[
        str, typer.Option(help="Criteria, separated by commas, or all; a .py file of your own too.")
    ] = "all",
    stream: StreamOption = None,
    tokens_per_row: Annotated[
        int | None,
        typer.Option(help="--stream: average over so many tokens of a row.  [default: all, 32 where they do not fit]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; a measurement cut short goes on from there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the distance map: every criterion, every block."""
    from shortviz import criteria as known
    from shortviz.cli.output import distances_text
    from shortviz.errors import ShortvizError
    from shortviz.measure.processes import joined, share
    from shortviz.model.delta import discard_checkpoint
    from shortviz.runs import run as runs
    from shortviz.text import tokens as texts

    at_least(1, tokens_per_row=tokens_per_row)
    if tokens_per_row is not None and stream is False:
        raise ShortvizError("--tokens-per-row belongs to --stream; leave it out, or give --stream.")
    text.note_unused("window", "windows", "seed")
    chosen = known.names() if criteria == "all" else tuple(dict.fromkeys(c.strip() for c in criteria.split(",")))
    own = [known.resolve(name) for name in chosen]
    spec = readable(text.spec(texts.DEFAULT_CALIBRATION))
    with working(shared=True) as watch, joined() as ranks:
        ref, watch = share(ranks, load.ref(model), watch)
        resolved, streamed = streams(ref, True if tokens_per_row is not None else stream, watch)
        streamed = streamed if ranks is None else any(ranks.all(streamed))
        with (_streamed if streamed else _loaded)(resolved, watch) as opened:
            tokens = texts.tokenize(spec, opened.tokenizer)
            if ranks is not None:
                ranks.agree({"text": tokens.info.fingerprint, "options": (chosen, text.batch_size, opened.info.dtype)})
            run = runs.new_run(opened.info, tokens.info)
            checkpoint = None if out is None else out / ("stream.npz" if streamed else "checkpoint.npz")
            common: dict[str, Any] = {"criteria": own, "batch_size": text.batch_size, "checkpoint": checkpoint}
            common |= {"ranks": ranks, "watch": watch}
            writes = out is not None and (ranks is None or ranks.writes)
            with claimed(run, out) if out is not None and writes else nullcontext(run) as run:
                if streamed:
                    from shortviz.streaming.distances import measure_streamed

                    distances = measure_streamed(opened, tokens, tokens_per_row=tokens_per_row, **common)
                else:
                    from shortviz.measure.distances import measure_distances

                    distances = measure_distances(opened, tokens, **common)
        if ranks is not None and not ranks.writes:
            return
        run = replace(run, distances=distances)
        if out is not None:
            runs.save_run(run, out)
    print_result(run if as_json else distances_text(distances, run.model))
    if distances.samples < len(tokens.rows):
        advice = how_to_go_on(out)
        print(f"Stopped after {distances.samples} of {len(tokens.rows)} rows; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if checkpoint is not None:
        discard_checkpoint(checkpoint)


def streams(ref: "ModelRef", asked: bool | None, watch: Watch) -> "tuple[ModelRef | ResolvedModel, bool]":
    """Return (the model, whether to stream it): as asked, else where it would not fit, which is then told."""
    if asked is not None:
        return ref, asked
    from shortviz.measure.processes import local_size
    from shortviz.model.load import resolve
    from shortviz.records.formatting import size

    resolved = resolve(ref, watch=watch)
    found = resolved.estimate
    fits = found.fits and found.memory_bytes * 1.2 * local_size() <= found.available_bytes
    if not fits:
        print(
            f"{found.id} takes {size(found.memory_bytes)} and {size(found.available_bytes)} is free: it is streamed, "
            "one layer in memory at a time.",
            file=sys.stderr,
        )
    return resolved, not fits


@contextmanager
def _loaded(model: "ModelRef | ResolvedModel", watch: Watch) -> "Iterator[Any]":
    yield load_model(model, watch)


@contextmanager
def _streamed(model: "ModelRef | ResolvedModel", watch: Watch) -> "Iterator[Any]":
    from shortviz.streaming.model import open_streamed

    with open_streamed(model, watch=watch) as opened:
        yield opened


# `map --stream --blocks` and `evaluate --stream`: losses of a model that does not fit. Heavy imports wait inside.


def blocks_asked(given: Sequence[str]) -> "list[Block]":
    """Return the blocks written as `12,4`, start first; raises ShortvizError."""
    from shortviz.records.plan import Block

    found = []
    for text in given:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 2 or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
            raise ShortvizError(f"--blocks is {text!r}; give start,n, such as --blocks 12,4, once for each block.")
        found.append(Block(start=int(parts[0]), n=int(parts[1])))
    return list(dict.fromkeys(found))


def check_streamable(*, task: bool, adapter: bool) -> None:
    """Raise ShortvizError where more is asked of a streamed model than its loss."""
    if task:
        raise ShortvizError("Questions are not scored while a model is streamed; leave --tasks or --stream out.")
    if adapter:
        raise ShortvizError("An adapter is not put into a streamed model; leave --adapter or --stream out.")


def streamed_evaluations(
    model: "ModelRef | ResolvedModel", spec: "Text", windows: "WindowSpec", cuts: "Sequence[Removal]", watch: Watch
) -> "list[Evaluation]":
    """Return the evaluation of each cut, or of the uncut model alone, all in one sweep over the layers.

    Of several processes that a launcher started each takes its share of the windows, and all but one end here.
    """
    from shortviz.cli.output import estimate_line
    from shortviz.measure.processes import joined, share
    from shortviz.model.load import resolve
    from shortviz.streaming.losses import evaluate_streamed
    from shortviz.streaming.model import open_streamed
    from shortviz.text import tokens as texts

    with joined() as ranks:
        model, watch = share(ranks, model, watch)
        resolved = resolve(model, watch=watch)
        found = resolved.estimate
        if ranks is None or ranks.writes:
            print(estimate_line(found), file=sys.stderr)
        plans = [cut.of(found.num_layers) for cut in cuts]
        with open_streamed(resolved, watch=watch) as opened:
            window_set = texts.make_windows(spec, windows, opened.tokenizer)
            if ranks is not None:
                ranks.agree({"text": window_set.info.fingerprint, "options": (window_set.tokens.shape, plans)})
            evaluations = evaluate_streamed(opened, window_set, plans, ranks=ranks, watch=watch)
    if ranks is not None and not ranks.writes:
        raise typer.Exit
    return evaluations


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
            f"Uncut model: {score_words(base)}. Text: {text.source}; {counted(base.tokens, 'scored token')}, "
            f" windows of {text.max_length}. Streamed in one sweep over the layers.",
            Table(columns, rows).text(),
        ]
    )


# `shortviz evaluate --tasks`: multiple-choice accuracy of the model and of the cut one.

Scores = tuple[TaskScore, TaskScore | None]
"""(of the model evaluated, of the uncut one where layers were removed)."""


def score_both(handle: "ModelHandle", pruned: "ModelHandle | None", questions: TaskRows, watch: Watch) -> Scores:
    """Return the scores of the model evaluated and, where layers were removed, of the uncut one beside it."""
    from shortviz.measure.tasks import score_tasks

    base = score_tasks(handle, questions, watch=watch)
    if pruned is None:
        return base, None
    return score_tasks(pruned, questions, watch=watch), base


def complete(scores: Scores) -> bool:
    """Tell whether every model answered every question; a stopped one has only the first of them."""
    return all(score.complete for score in scores if score is not None)


def scores_json(scores: Scores | None) -> dict[str, Any]:
    """Return what --tasks adds to the JSON object of an evaluation: nothing without it."""
    if scores is None:
        return {}
    score, base = scores
    return {"tasks": plain(score) | {"base": base}}


def scores_text(scores: Scores | None) -> list[str]:
    """Return the lines that --tasks adds to an evaluation in words."""
    if scores is None:
        return []
    score, base = scores
    lines = [_line("accuracy", score)] + ([_line("uncut model", base)] if base is not None else [])
    return [*lines, f"Over {score.behind}."]


def _line(label: str, score: TaskScore) -> str:
    return (
        f"{label:<18}{percent(score.accuracy, score.accuracy_stderr)}   by length "
        f"{percent(score.accuracy_norm, score.accuracy_norm_stderr)}"
    )
