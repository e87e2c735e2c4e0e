"""The command `shortviz estimate`: what work on a model would take, before it is loaded. Heavy imports wait inside."""

from typing import Annotated

import typer

from shortviz.cli_numbers import at_least
from shortviz.cli_options import JsonOption, LoadOptions, ModelArgument, with_options
from shortviz.cli_session import print_result, working


@with_options
def estimate(
    model: ModelArgument,
    load: LoadOptions,
    rows: Annotated[int, typer.Option(help="Rows of text for measure and repair.")] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    window: Annotated[int, typer.Option(help="Tokens of a window for the measured map.")] = 512,
    windows: Annotated[int, typer.Option(help="Windows for the measured map.")] = 16,
    heal_steps: Annotated[int, typer.Option(help="Steps of healing, of 512 tokens each.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Predict memory, disk and seconds on this machine, from one layer timed with made-up weights."""
    from shortviz.prediction_records import Work

    at_least(1, rows=rows, windows=windows, heal_steps=heal_steps)
    at_least(2, max_length=max_length, window=window)
    work = Work(rows=rows, row_tokens=max_length, window=window, windows=windows, heal_steps=heal_steps)
    with working() as watch:
        from shortviz.prediction import predict, prediction_json

        found = predict(load.ref(model), work, watch=watch)
    print_result(prediction_json(found) if as_json else prediction_text(found))


def prediction_text(found: object) -> str:
    """Return the prediction in words, each figure with what it is for."""
    from shortviz.cli_output import estimate_line
    from shortviz.prediction_records import Prediction
    from shortviz.words import duration, size

    assert isinstance(found, Prediction)
    work, whole, loads = found.work, found.size, found.load_seconds
    fits = "fits" if whole.fits else "does not fit, and would be streamed"
    text = f"{work.rows} rows of {work.row_tokens} tokens"
    lines = [
        estimate_line(whole),
        f"memory   whole {size(whole.memory_bytes)}, {size(whole.available_bytes)} is free: it {fits}; streamed "
        f"{size(found.streamed_memory_bytes)} of weights and up to {size(found.states_bytes)} of states, in memory or "
        "in a file",
        f"disk     {size(found.disk_bytes)} for an export of all layers",
        f"load     {duration(loads) if loads else 'not known: the weights are not on this machine yet'}",
        f"measure  {duration(found.measure_seconds)}; streamed{'' if loads else ', without reading,'} "
        f"{duration(found.streamed_seconds)} ({text})",
        f"map      {duration(found.map_seconds)} ({work.windows} windows of {work.window} tokens)",
        f"repair   {duration(found.repair_seconds)} (one seam, {text})",
        f"heal     {duration(found.heal_seconds)} ({work.heal_steps} steps of {work.heal_tokens} tokens)",
        f"Seconds are predicted from one layer of each kind, timed for {duration(found.calibration_seconds)} on the "
        "machine as busy as it is now.",
    ]
    return "\n".join(lines)
