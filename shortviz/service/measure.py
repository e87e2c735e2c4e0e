"""Measuring the maps of distances and of losses; each function carries out a request.

The signature is that of `execute`. Nothing here calls streamlit or prints; what needs torch is imported inside.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shortviz.errors import ResourceError, RunError, TextError
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import counted, size
from shortviz.records.measured import BlockDistances, Evaluation
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import Removal
from shortviz.records.run import Run
from shortviz.records.text import MOST_PAIRED, TaskRows, TaskScore, TaskSpec, TextInfo, TextSpec, WindowSpec
from shortviz.runs.run import new_run
from shortviz.service import policy
from shortviz.service import requests as r
from shortviz.service.place import Place, unfinished
from shortviz.settings import settings
from shortviz.text.sources import DEFAULT_ROWS, read_rows

if TYPE_CHECKING:
    from shortviz.measure.losses import BaseScores
    from shortviz.measure.processes import Ranks
    from shortviz.measure.search import SearchResult
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import TokenSet, WindowSet
    from shortviz.service.service import Service
    from shortviz.streaming.model import StreamingEstimate
    from shortviz.text.sources import Text


APP_WINDOWS: Final = WindowSpec(window=256, windows=32)
"""Small windows: the numbers grow steadier before one's eyes, and there are enough of them for an error bar."""

CPU_BATCH: Final = 2
"""Rows that hold the model at a time: the map redraws, a stop is heard and a clicked block gets its turn after each."""

GPU_BATCH: Final = 8

NEW_TOKENS: Final = 32
"""Of a continuation."""


def app_batch(device: str) -> int:
    """Return the rows that the app measures at a time on a device."""
    return CPU_BATCH if device == "cpu" else GPU_BATCH


# What is known already, in this process or in the run.


def windows_of(
    service: "Service", ref: ModelRef, text: "Text", handle: "ModelHandle", windows: WindowSpec = APP_WINDOWS
) -> "WindowSet":
    """Return the evaluation windows of a text, or of its rows where they were read, cut once per process."""
    from shortviz.text.tokens import make_windows

    key = (ref, text if isinstance(text, TextSpec) else text.spec, windows)
    return service.windows.get(key) or service.windows.put(key, make_windows(text, windows, handle.tokenizer))


def counts_of(
    service: "Service", ref: ModelRef | None, text: TextSpec, handle: "ModelHandle | None", *, windows: bool = False
) -> tuple[str, str]:
    """Return (how much of a text the app would measure on, what becomes of the rest), for people.

    The tokenizer of a loaded model counts, once per process; else it is an estimate, which is said. Raises where the
    text cannot be read.
    """
    from shortviz.text.tokens import COUNTED_CHARACTERS, count_rows

    file = Path(text.value).expanduser() if text.kind == "file" else None
    stat = file.stat() if file is not None and file.is_file() else None
    if windows:
        near = text.kind != "dataset" and (stat is None or stat.st_size <= COUNTED_CHARACTERS)
        if handle is None or ref is None or not near:
            return f"up to {APP_WINDOWS.windows} windows of {APP_WINDOWS.window} tokens", ""
        info = windows_of(service, ref, text, handle).info
        return f"{counted(info.rows, 'window')} of {APP_WINDOWS.window} tokens", ""
    if text.kind == "dataset":
        words = f"up to {text.limit or DEFAULT_ROWS:,} rows of {text.max_length:,} tokens"
        return words, "counted when they are fetched"
    key = (ref if handle is not None else None, text, stat.st_mtime_ns if stat is not None else 0)
    tokenizer = handle.tokenizer if handle is not None else None
    return service.counts.get(key) or service.counts.put(key, count_rows(text, tokenizer))


def measured_key(
    ref: ModelRef, text: TextSpec, removed: tuple[int, ...], windows: WindowSpec = APP_WINDOWS
) -> tuple[object, ...]:
    """Return what an evaluation is known by in this process."""
    return (ref, text, windows, removed)


def base_scores(service: "Service", ref: ModelRef, handle: "ModelHandle") -> "BaseScores":
    """Return the uncut model's kept results, which every block of the model shares."""
    from shortviz.measure.losses import BaseScores

    kept = service.base_scores.get(ref)
    if kept is None or kept.handle is not handle:
        kept = service.base_scores.put(ref, BaseScores(handle))
    return kept


def rows_of(service: "Service", spec: TaskSpec, watch: Watch = NO_WATCH) -> TaskRows:
    """Return the questions, read once as long as their file stays as it is; raises TextError for a bad one."""
    from shortviz.text.questions import read_task

    file = Path(spec.value).expanduser()
    stamp = file.stat().st_mtime_ns if spec.kind == "file" and file.is_file() else 0
    return service.questions.get((spec, stamp)) or service.questions.put((spec, stamp), read_task(spec, watch=watch))


def fetched_rows(service: "Service", spec: TaskSpec) -> TaskRows | None:
    """Return the questions of a data set where they were fetched; asks no network."""
    return service.questions.get((spec, 0))


def known_score(
    service: "Service", ref: ModelRef | None, run: Run | None, removed: tuple[int, ...], rows: TaskRows
) -> TaskScore | None:
    """Return the accuracy of a cut on these questions, measured in this process or kept in the run."""
    found = service.tasks.get((ref, removed, rows.fingerprint)) if ref is not None else None
    return found or (run.task_of(removed, rows.fingerprint) if run is not None else None)


def model_score(
    service: "Service", ref: ModelRef, run: Run | None, model: "ModelHandle", spec: TaskSpec, *, watch: Watch
) -> TaskScore | None:
    """Return how many questions a model gets right; of untreated ones a score that is known. None after a stop.

    A known score without its answers is measured anew: no error of a difference could be given.
    """
    from shortviz.measure.tasks import whole_score

    rows = rows_of(service, spec, watch=watch)
    known = known_score(service, ref, run, model.removed, rows) if not model.treatments else None
    if known is not None and (known.right or known.questions > MOST_PAIRED):
        return known
    found = whole_score(model, rows, watch=watch)
    if found is not None and not model.treatments:
        service.tasks.put((ref, model.removed, rows.fingerprint), found)
    return found


def read_early(text: TextSpec) -> "Text":
    """Return the rows of a local text: a bad one is told before minutes are spent on loading a model."""
    return text if text.kind == "dataset" else read_rows(text)


def _facts(handle: Any, text: TextInfo) -> tuple[object, ...]:
    """Return what tells one measurement of a kind from another, for the name of its checkpoint."""
    from shortviz.model.delta import model_facts

    return (*model_facts(handle), *text_facts(text))


def text_facts(text: TextInfo) -> tuple[object, ...]:
    """Return what tells one text from another, for the name of a checkpoint."""
    return (text.fingerprint, text.rows, text.max_length)


# Distances.


def measure(request: r.MeasureRequest, service: "Service", place: Place, watch: Watch) -> Run | None:
    """Return the run with the distance map; after a stop, with the rows measured until then.

    Of several processes each does its share; all but the one that writes return None.
    """
    from shortviz import criteria as known
    from shortviz.measure.processes import joined, share
    from shortviz.text.tokens import tokenize

    criteria = [known.resolve(name) for name in request.criteria or known.names()]
    text = read_early(request.text)
    with joined() as ranks:
        ref, watch = share(ranks, request.model, watch)
        streamed = request.tokens_per_row is not None or streams(service, ref, request.stream, watch)
        streamed = streamed if ranks is None else any(ranks.all(streamed))
        with _streamed(ref, watch) if streamed else nullcontext(service.models.load(ref, watch)) as model:
            watch.tell("read text", done=0, total=1, unit="steps")
            tokens = tokenize(text, model.tokenizer)
            info = tokens.info
            watch.say(f"Read {counted(info.rows, 'row')}, {counted(info.tokens, 'token')}, of {info.words}.")
            if ranks is not None:
                options = ([c.name for c in criteria], request.batch_size, model.info.dtype)
                ranks.agree({"text": tokens.info.fingerprint, "options": options})
            return _distances(request, model, tokens, criteria, place, ranks, watch)


@contextmanager
def _streamed(ref: ModelRef, watch: Watch) -> Iterator[Any]:
    from shortviz.streaming.model import open_streamed

    with open_streamed(ref, watch=watch) as opened:
        yield opened


def _distances(
    request: r.MeasureRequest, model: Any, tokens: "TokenSet", criteria: Sequence[Any], place: Place,
    ranks: "Ranks | None", watch: Watch,
) -> Run | None:  # fmt: skip
    """Return the place's run with the distances that a model in memory, or a streamed one, has on these rows."""
    from shortviz.measure.distances import measure_distances
    from shortviz.model.delta import discard_checkpoint
    from shortviz.streaming.distances import measure_streamed
    from shortviz.streaming.model import StreamedModel

    fresh = new_run(model.info, tokens.info)
    common: dict[str, Any] = {"criteria": criteria, "batch_size": request.batch_size, "ranks": ranks, "watch": watch}
    writes, rank = (True, 0) if ranks is None else (ranks.writes, ranks.rank)
    with place.claimed(fresh) if writes else nullcontext(fresh):
        if isinstance(model, StreamedModel):  # its states are large: they stay with the run
            path = None if place.folder is None else place.folder / "stream.npz"
            kept: Any = nullcontext(path)
        else:
            names = (*(c.name for c in criteria), *(_content(name) for name in request.criteria))
            kept = place.checkpoint("measure", model.info, *_facts(model, tokens.info), names, rank=rank)
        with kept as checkpoint:
            if isinstance(model, StreamedModel):
                per_row = request.tokens_per_row
                found = measure_streamed(model, tokens, tokens_per_row=per_row, checkpoint=checkpoint, **common)
            else:
                found = measure_distances(model, tokens, checkpoint=checkpoint, **common)
            if not writes:
                return None
            about = {"model": fresh.model, "text": fresh.text, "versions": fresh.versions, "created": fresh.created}

            def with_distances(old: Run | None) -> Run:
                if old is not None and place.replaces and _has_more(old, found, fresh.text):
                    return old  # in the app a stopped map does not push out a whole one; its checkpoint goes on
                return replace(old or fresh, **about, distances=found)  # type: ignore[arg-type]

            run = place.update(with_distances)
            if checkpoint is not None and found.samples == len(tokens.rows):
                discard_checkpoint(checkpoint)
    return run


def _has_more(run: Run, found: BlockDistances, text: TextInfo) -> bool:
    known = run.distances
    if known is None or run.text.fingerprint != text.fingerprint:
        return False
    return known.samples > found.samples and {*found.criteria} <= {*known.criteria}


def goes_on(service: "Service", request: r.MeasureRequest | r.MapRequest, run: Run | None) -> bool:
    """Return whether what was stopped of this map, of a model in memory, is kept; reads no file and no data set.

    What tells the text apart is known of the run, of this process, or from a built-in or pasted text itself.
    """
    handle = service.models.get(request.model)
    if handle is None:
        return False
    from shortviz import criteria as known
    from shortviz.text.tokens import tokenize

    names: tuple[tuple[str, ...], ...] = ()
    if isinstance(request, r.MapRequest):
        windows = service.windows.get((request.model, request.text, request.windows))
        info = windows.info if windows is not None else None
    else:
        info, names = service.texts.get((request.model, request.text)), (tuple(known.names()),)
        if info is None and request.text.kind in ("builtin", "paste"):
            with suppress(TextError):
                info = service.texts.put((request.model, request.text), tokenize(request.text, handle.tokenizer).info)
        elif info is None and run is not None and run.distances is not None:
            info = run.distances.text
    if info is None:
        return False
    with suppress(ResourceError):  # told when the measurement begins
        return unfinished(request.kind, handle.info, *_facts(handle, info), *names).exists()
    return False


def _content(name: str) -> str:
    """Return the fingerprint of a criterion's own file; "" of a criterion that is known by its name."""
    return hashlib.sha256(Path(name).read_bytes()).hexdigest() if name.endswith(".py") else ""


def streams(service: "Service", ref: ModelRef, asked: bool | None, watch: Watch) -> bool:
    """Return whether to stream: as asked, else where the model would not fit, which is then told."""
    if asked is not None or service.models.get(ref) is not None:
        return bool(asked)
    from shortviz.measure.processes import local_size

    found = service.models.estimate(ref)
    policy.check_estimate(settings(), found)
    fits = found.fits and found.memory_bytes * 1.2 * local_size() <= found.available_bytes
    if not fits:
        watch.say(
            f"{found.id} takes {size(found.memory_bytes)} and {size(found.available_bytes)} is free: it is streamed, "
            "one layer in memory at a time."
        )
    return not fits


def measure_texts(request: r.TextsRequest, service: "Service", place: Place, watch: Watch) -> dict[str, Run]:
    """Return the runs of the texts, by where they are kept; a text that has been measured is not measured again.

    A stop leaves out those that were not begun.
    """
    from shortviz import criteria as known

    texts = [read_early(text) for text in request.texts]
    handle = service.models.load(request.model, watch)
    from shortviz.measure.batches import check_rows
    from shortviz.text.tokens import tokenize

    sets = [tokenize(text, handle.tokenizer) for text in texts]
    for tokens in sets:
        check_rows(handle.info, tokens)  # a text that does not fit is told before others are measured
    found: dict[str, Run] = {}
    names, every = folder_names(request.texts), [known.resolve(name) for name in known.names()]
    for number, (text, tokens, name) in enumerate(zip(request.texts, sets, names, strict=True), start=1):
        if watch.stopped:
            break
        part = place.part(name, request.model, text)
        run = part.run
        if run is None or not _is_measured(run, handle.info, tokens):
            one = r.MeasureRequest(model=request.model, text=text, batch_size=request.batch_size, stream=False)
            detail = f"text {number} of {len(sets)}"
            named = watch.labelled(stage=f"measure {name}", detail=detail, snapshot=None)
            run = _distances(one, handle, tokens, every, part, None, named)
        assert run is not None, "this is one process"
        found[part.name] = run
    return found


def _is_measured(run: Run, info: ModelInfo, tokens: "TokenSet") -> bool:
    """Tell whether a run holds the distances of this model, on whichever device, on all rows of this text."""
    same = run.model == replace(info, device=run.model.device, reason=run.model.reason, left_out=run.model.left_out)
    known = run.distances
    whole = known is not None and known.samples == len(tokens.rows)
    return same and whole and run.text.fingerprint == tokens.info.fingerprint


def folder_names(texts: Sequence[TextSpec]) -> list[str]:
    """Return a folder name for each text, after its own name; texts of one name are numbered."""
    names: list[str] = []
    for text in texts:
        name = Path(text.value).name if text.kind == "file" else text.value
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "text"
        count = sum(known == name or known.startswith(f"{name}-") for known in names)
        names.append(f"{name}-{count + 1}" if count else name)
    return names


# Losses.


def measure_map(request: r.MapRequest, service: "Service", place: Place, watch: Watch) -> Run | None:
    """Return the run with the loss without every block; after a stop, as far as it was measured.

    Of several processes each does its share; all but the one that writes return None.
    """
    from shortviz.measure.processes import joined, share

    with joined() as ranks:
        ref, watch = share(ranks, request.model, watch)
        handle = service.models.load(ref, watch)
        windows = windows_of(service, ref, request.text, handle, request.windows)
        if ranks is not None:
            ranks.agree({"text": windows.info.fingerprint, "options": (windows.tokens.shape, handle.info.dtype)})
        run = place.run
        _warn_about(windows.info, run, watch)
        known = run.losses if run is not None else None
        if known is not None and known.complete and run is not None:
            same = known.text.fingerprint == windows.info.fingerprint
            if same and run.model.dtype == handle.info.dtype:
                watch.say("The run has this map already; nothing is measured again.")
                return place.update(lambda old: old or run)
            if not same and place.folder is not None and not place.replaces:
                raise RunError(
                    f"{place.name} holds a complete map on {known.text.source}, {known.text.windows_words}; choose "
                    "another folder for this one."
                )
        return measure_losses_into(service, handle, windows, place, ranks, watch)


def measure_losses_into(
    service: "Service", handle: "ModelHandle", windows: "WindowSet", place: Place, ranks: "Ranks | None", watch: Watch
) -> Run | None:
    """Return the place's run with the loss without every block on these windows."""
    from shortviz.measure.loss_map import measure_losses
    from shortviz.model.delta import discard_checkpoint

    fresh = place.run or new_run(handle.info, windows.info)
    writes, rank = (True, 0) if ranks is None else (ranks.writes, ranks.rank)
    facts = _facts(handle, windows.info)
    with (
        place.begun(fresh) if writes else nullcontext(),
        place.checkpoint("losses", handle.info, *facts, rank=rank) as checkpoint,
    ):
        losses = measure_losses(
            handle, windows, priority=service.wanted_rows, checkpoint=checkpoint, ranks=ranks, watch=watch
        )
        if not writes:
            return None
        run = place.update(lambda old: replace(old or fresh, losses=losses))
        if checkpoint is not None and losses.complete:
            discard_checkpoint(checkpoint)
    return run


def _warn_about(text: TextInfo, run: Run | None, watch: Watch) -> None:
    if run is not None and run.distances is not None and run.distances.text.source == text.source:
        watch.say(f"Warning: the losses are scored on the calibration text ({text.source}); choose another to be sure.")
    if text.rows < 2:
        watch.say("Note: one window gives no error bars; give 2 windows or more.")


def search(request: r.SearchRequest, service: "Service", place: Place, watch: Watch) -> "SearchResult":
    """Return the best start of every size, and the starts that are tied with it."""
    from shortviz.measure.search import check_max_n, search_best_starts

    most = request.max_n
    fits = None if most is None else lambda num_layers: check_max_n(num_layers, most)
    handle = service.models.load(request.model, watch, fits)
    windows = windows_of(service, request.model, request.text, handle, request.windows)
    _warn_about(windows.info, None, watch)
    if windows.info.rows < 3:
        watch.say("Note: the search measures two windows whole; give 3 windows or more.")
    return search_best_starts(handle, windows, max_n=most, watch=watch)


def measure_blocks(
    request: r.BlocksRequest, service: "Service", place: Place, watch: Watch
) -> tuple[Evaluation, ...] | None:
    """Return the evaluation of each block's removal, all in one sweep over the layers."""
    return evaluate_by_streaming(request, [Removal(block=block) for block in request.blocks], watch)


def evaluate_by_streaming(
    request: r.BlocksRequest | r.EvaluateRequest, cuts: Sequence[Removal], watch: Watch, read: "Text | None" = None
) -> tuple[Evaluation, ...] | None:
    """Return the evaluation of each cut, or of the uncut model alone, all in one sweep over the layers.

    `read` is the text, where it was read already.

    Of several processes each takes its share of the windows; all but the one that writes return None.
    """
    text = read or read_early(request.text)
    from shortviz.measure.processes import joined, share
    from shortviz.model.load import resolve
    from shortviz.streaming.losses import evaluate_streamed
    from shortviz.streaming.model import open_streamed
    from shortviz.text.tokens import make_windows

    with joined() as ranks:
        ref, watch = share(ranks, request.model, watch)
        resolved = resolve(ref, watch=watch)
        found = resolved.estimate
        watch.say(found.words)
        plans = [cut.of(found.num_layers) for cut in cuts]
        with open_streamed(resolved, watch=watch) as model:
            windows = make_windows(text, request.windows, model.tokenizer)
            if ranks is not None:
                ranks.agree({"text": windows.info.fingerprint, "options": (windows.tokens.shape, plans)})
            evaluations = evaluate_streamed(model, windows, plans, ranks=ranks, watch=watch)
    return tuple(evaluations) if ranks is None or ranks.writes else None


def estimate(request: r.EstimateRequest, service: "Service", place: Place, watch: Watch) -> "StreamingEstimate":
    """Return the memory and disk that a model takes, from its config and weight headers."""
    from shortviz.streaming.model import estimate_streaming

    return estimate_streaming(request.model, rows=request.rows, row_tokens=request.max_length)
