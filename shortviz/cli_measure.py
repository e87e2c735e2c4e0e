"""The command `shortviz measure`: in memory, or streamed where the model does not fit. Heavy imports wait inside."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_claim import claimed
from shortviz.cli_numbers import at_least
from shortviz.cli_options import JsonOption, LoadOptions, ModelArgument, TextOptions, readable, with_options
from shortviz.cli_session import INTERRUPTED, how_to_go_on, load_model, print_result, working
from shortviz.progress import Watch

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.records import ModelRef
    from shortviz.streamed_model import StreamedModel

    Opened = ModelHandle | StreamedModel


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
    from shortviz import runs, texts
    from shortviz.checkpoint import discard_checkpoint
    from shortviz.cli_output import distances_text
    from shortviz.cli_ranks import share
    from shortviz.errors import ShortvizError
    from shortviz.ranks import joined

    at_least(1, tokens_per_row=tokens_per_row)
    if tokens_per_row is not None and stream is False:
        raise ShortvizError("--tokens-per-row belongs to --stream; leave it out, or give --stream.")
    text.note_unused("window", "windows", "seed")
    chosen = known.names() if criteria == "all" else tuple(dict.fromkeys(c.strip() for c in criteria.split(",")))
    own = [known.resolve(name) for name in chosen]
    spec = readable(text.spec(texts.DEFAULT_CALIBRATION))
    with working(shared=True) as watch, joined() as ranks:
        ref, watch = share(ranks, load.ref(model), watch)
        streamed = tokens_per_row is not None or streams(ref, stream)
        streamed = streamed if ranks is None else any(ranks.all(streamed))
        with (_streamed if streamed else _loaded)(ref, watch) as opened:
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
                    from shortviz.streaming import measure_streamed

                    distances = measure_streamed(opened, tokens, tokens_per_row=tokens_per_row, **common)
                else:
                    from shortviz.distances import measure_distances

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


def streams(ref: "ModelRef", asked: bool | None) -> bool:
    """Return whether to stream: as asked, else where the model would not fit, which is then told."""
    if asked is not None:
        return asked
    from shortviz.cli_ranks import local_size
    from shortviz.loading import estimate
    from shortviz.words import size

    found = estimate(ref)
    fits = found.fits and found.memory_bytes * 1.2 * local_size() <= found.available_bytes
    if not fits:
        print(
            f"{found.id} takes {size(found.memory_bytes)} and {size(found.available_bytes)} is free: it is streamed, "
            "one layer in memory at a time.",
            file=sys.stderr,
        )
    return not fits


@contextmanager
def _loaded(ref: "ModelRef", watch: Watch) -> "Iterator[Any]":
    yield load_model(ref, watch)


@contextmanager
def _streamed(ref: "ModelRef", watch: Watch) -> "Iterator[Any]":
    from shortviz.streamed_model import open_streamed

    with open_streamed(ref, watch=watch) as opened:
        yield opened
