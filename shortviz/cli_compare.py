"""`shortviz sensitivity` (measure several texts) and `shortviz compare` (runs side by side); heavy imports inside."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortviz.cli_claim import claimed
from shortviz.cli_options import JsonOption, LoadOptions, ModelArgument, TextOptions, with_options
from shortviz.cli_session import INTERRUPTED, load_model, print_result, working
from shortviz.errors import ShortvizError, TextError
from shortviz.progress import Watch

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.records import Run, TextSpec, TokenSet

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
    from shortviz import runs
    from shortviz.sensitivity_tables import comparison_json, comparison_text

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
    from shortviz import criteria, texts
    from shortviz.sensitivity_tables import comparison_json, comparison_text

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
    for spec in specs:
        texts.read_rows(spec)  # a bad file is told before minutes are spent on loading a model
    found: dict[str, Run] = {}
    with working() as watch:
        handle = load_model(load.ref(model), watch)
        from shortviz.token_batches import check_rows

        sets = [texts.tokenize(spec, handle.tokenizer) for spec in specs]
        for tokens in sets:
            check_rows(handle.info, tokens)  # a text that does not fit is told before others are measured
        for tokens, name in zip(sets, folder_names(specs), strict=True):
            if watch.stopped:
                break
            named = watch.labelled(stage=f"measure {name}")
            found[str(out / name)] = _measure(handle, tokens, out / name, batch_size, watch=named)
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


def _measure(handle: "ModelHandle", tokens: "TokenSet", folder: Path, batch_size: int, *, watch: Watch) -> "Run":
    """Return the folder's run with the distances of the text; what it has of this model and text is not measured again.

    Raises RunError where the folder holds a run of something else.
    """
    from shortviz import runs
    from shortviz.checkpoint import discard_checkpoint
    from shortviz.distances import measure_distances

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
