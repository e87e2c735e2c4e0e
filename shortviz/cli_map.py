"""`shortviz map`: the measured loss of every block. Heavy imports wait inside."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortviz.cli_claim import begun
from shortviz.cli_numbers import at_least
from shortviz.cli_options import JsonOption, LoadOptions, TextOptions, with_options
from shortviz.cli_session import INTERRUPTED, how_to_go_on, load_model, print_result, working
from shortviz.errors import ShortvizError
from shortviz.records import ModelRef

if TYPE_CHECKING:
    from collections.abc import Callable

    from shortviz.records import BlockLosses, Run, TextInfo

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
    from shortviz import runs, texts
    from shortviz.cli_map_output import losses_text, search_text
    from shortviz.cli_ranks import share
    from shortviz.ranks import joined

    _check_options(metric, search, max_n, out)
    text.note_unused("max_length", "batch_size", "seed")
    if stream or blocks:
        _streamed(
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
            from shortviz.search import search_best_starts

            found = search_best_starts(handle, window_set, max_n=max_n, watch=watch)
        else:
            from shortviz.loss_map import measure_losses

            run = run or runs.new_run(handle.info, window_set.info)
            _refuse_other_text(run, window_set.info, out)
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
    from shortviz.race import check_max_n

    return None if max_n is None else lambda num_layers: check_max_n(num_layers, max_n)


def _streamed(
    model: str, load: LoadOptions, text: TextOptions, *, stream: bool, blocks: list[str], alone: bool, as_json: bool
) -> None:
    """Print the losses of chosen blocks of a model that is streamed."""
    from shortviz.cli_options import Removal
    from shortviz.cli_streamed import blocks_asked, blocks_json, blocks_text, streamed_evaluations

    if not stream or not blocks:
        raise ShortvizError(
            "--stream measures chosen blocks only; name them, such as --stream --blocks 12,4 --blocks 20,2."
            if stream
            else "--blocks belongs to --stream; without it every block is measured."
        )
    if not alone:
        raise ShortvizError("--stream only prints what it finds; leave --search and --out out.")
    asked = blocks_asked(blocks)
    with working(shared=True) as watch:
        ref, _, _ = source(model, load, None)
        found = streamed_evaluations(ref, text, [Removal(block=block) for block in asked], watch)
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


def _refuse_other_text(run: "Run", text: "TextInfo", out: Path | None) -> None:
    """Raise ShortvizError where a complete map on other windows would be replaced."""
    old = run.losses
    if out is not None and old is not None and old.complete and old.text.fingerprint != text.fingerprint:
        raise ShortvizError(
            f"{out} holds a complete map on {old.text.source}, {old.text.rows} windows of {old.text.max_length}; "
            "choose another --out for this one."
        )


def finish(losses: "BlockLosses", out: Path | None) -> None:
    """Remove the checkpoint of a complete map; exit with the code of a stopped one otherwise."""
    from shortviz.checkpoint import discard_checkpoint

    if not losses.complete:
        advice = how_to_go_on(out)
        print(f"Stopped with part of the map measured; {advice}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if out is not None:
        discard_checkpoint(out / CHECKPOINT)


def source(model: str, load: LoadOptions, out: Path | None) -> tuple[ModelRef, "Run | None", Path | None]:
    """Return (what to load, the run to add to, where to save) for a model or a run directory."""
    from shortviz import runs

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
    from shortviz import runs

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
