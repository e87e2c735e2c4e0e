"""The commands over measured losses: `shortviz map` and `shortviz curve`. Heavy imports wait inside."""

import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_options import JsonOption, LoadOptions, TextOptions, with_options
from shortviz.cli_session import INTERRUPTED, load_model, print_result, working
from shortviz.errors import ShortvizError
from shortviz.records import ModelRef

if TYPE_CHECKING:
    from shortviz.records import BlockLosses, Run, TextInfo

_CHECKPOINT = "map-checkpoint.npz"
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
    out: Annotated[Path | None, typer.Option(help="Run directory; a map cut short goes on from there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what every block's removal really costs."""
    from shortviz import runs, texts
    from shortviz.cli_map_output import losses_text, search_json, search_text

    if metric not in ("nll", "kl"):
        raise ShortvizError(f"--metric is {metric!r}; it must be nll or kl.")
    if max_n is not None and not search:
        raise ShortvizError("--max-n belongs to --search; give --search too, or leave it out.")
    ref, run, out = _source(model, load, out)
    spec, windows = text.spec(texts.DEFAULT_EVALUATION), text.window_spec()
    with working() as (on_progress, stop):
        handle = load_model(ref, on_progress, stop)
        window_set = texts.make_windows(spec, windows, handle.tokenizer)
        _warn_about(window_set.info, run)
        if search:
            from shortviz.search import search_best_starts

            found = search_best_starts(handle, window_set, max_n=max_n, on_progress=on_progress, stop=stop)
        else:
            from shortviz.loss_map import measure_losses

            run = run or runs.new_run(handle.info, window_set.info)
            _refuse_other_text(run, window_set.info, out)
            if out is not None:
                runs.save_run(run, out)
            checkpoint = out / _CHECKPOINT if out is not None else None
            losses = measure_losses(handle, window_set, checkpoint=checkpoint, on_progress=on_progress, stop=stop)
    if search:
        print_result(search_json(found) if as_json else search_text(found))
        return
    assert run is not None
    run = replace(run, losses=losses)
    if out is not None:
        runs.save_run(run, out)
    print_result(runs.run_json(run) if as_json else losses_text(run, losses, metric))
    _finish(losses, out)


def _refuse_other_text(run: "Run", text: "TextInfo", out: Path | None) -> None:
    """Raise ShortvizError where a complete map on other windows would be replaced."""
    old = run.losses
    if out is not None and old is not None and old.complete and old.text.fingerprint != text.fingerprint:
        raise ShortvizError(
            f"{out} holds a complete map on {old.text.source}, {old.text.rows} windows of {old.text.max_length}; "
            "choose another --out for this one."
        )


def _finish(losses: "BlockLosses", out: Path | None) -> None:
    if not losses.complete:
        advice = "run the same command again to go on" if out is not None else "with --out it could go on from there"
        print(f"Stopped with part of the map measured; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if out is not None:
        (out / _CHECKPOINT).unlink(missing_ok=True)


@with_options
def removal_curve(
    model: MapArgument,
    load: LoadOptions,
    text: TextOptions,
    greedy: Annotated[int, typer.Option(help="Also remove so many single layers greedily; 0 is none.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run directory to keep the measured map in.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Loss against layers removed, for every strategy; measures the map where the run has none."""
    from shortviz import runs, texts
    from shortviz.cli_map_output import curve_text
    from shortviz.curve import curve_from_map

    ref, run, out = _source(model, load, out)
    line = None
    losses = run.losses if run is not None else None
    if losses is not None and not losses.complete and out is not None and (out / _CHECKPOINT).exists():
        losses = None  # a map cut short goes on from its checkpoint
    measured_here = losses is None
    if losses is None or greedy:
        spec, windows = text.spec(texts.DEFAULT_EVALUATION), text.window_spec()
        with working() as (on_progress, stop):
            from shortviz.greedy import greedy_removal
            from shortviz.loss_map import measure_losses

            handle = load_model(ref, on_progress, stop)
            window_set = texts.make_windows(spec, windows, handle.tokenizer)
            if losses is not None and losses.text.fingerprint != window_set.info.fingerprint:
                raise ShortvizError(
                    f"The run's map was measured on {losses.text.source}, windows of {losses.text.max_length}; greedy "
                    f"removal would be on {window_set.info.source}, windows of {window_set.info.max_length}; give "
                    "the same text and window options."
                )
            if losses is None:
                checkpoint = out / _CHECKPOINT if out is not None else None
                losses = measure_losses(handle, window_set, checkpoint=checkpoint, on_progress=on_progress, stop=stop)
            if greedy and not stop.is_set():
                line = greedy_removal(handle, window_set, max_removed=greedy, on_progress=on_progress, stop=stop)
            run = replace(run or runs.new_run(handle.info, window_set.info), losses=losses)
        if out is not None:
            runs.save_run(run, out)
    assert run is not None
    curve = curve_from_map(losses, run.distances, run.model, line)
    print_result(_without_nan(asdict(curve)) if as_json else curve_text(curve))
    if measured_here:
        _finish(losses, out)


def _source(model: str, load: LoadOptions, out: Path | None) -> tuple[ModelRef, "Run | None", Path | None]:
    """Return (what to load, the run to add to, where to save) for a model or a run directory."""
    from shortviz import runs

    folder = Path(model)
    if not (folder / runs.FILE).is_file():
        known = runs.load_run(out) if out is not None and (out / runs.FILE).is_file() else None
        if known is not None and known.model.id != model:
            raise ShortvizError(f"{out} holds a run of {known.model.id}, not of {model}; choose another --out.")
        return load.ref(model), known, out
    run = runs.load_run(folder)
    asked = load.ref(run.model.id)
    dtype = run.model.dtype if asked.dtype == "auto" else asked.dtype
    return replace(asked, revision=asked.revision or run.model.revision, dtype=dtype), run, out or folder


def _warn_about(text: "TextInfo", run: "Run | None") -> None:
    if run is not None and run.distances is not None and run.distances.text.source == text.source:
        print(
            f"Warning: the losses are scored on the calibration text ({text.source}); choose another to be sure.",
            file=sys.stderr,
        )
    if text.rows < 2:
        print("Note: one window gives no error bars; give --windows 2 or more.", file=sys.stderr)


def _without_nan(value: Any) -> Any:
    """Return JSON-ready data: NaN and infinity as null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
