"""The removal curve: the map, greedy removal and questions on the same windows; each function carries out a request."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shortviz.analysis.curve import (
    check_sizes,
    check_strategies,
    curve_of_run,
    default_sizes,
    further,
    plans_to_score,
    strategies_of,
    strategies_to_come,
)
from shortviz.errors import RunError, Stopped
from shortviz.progress import Watch
from shortviz.records.measured import BlockLosses
from shortviz.records.model import ModelRef
from shortviz.records.run import Run
from shortviz.records.text import TaskRows, TaskScore, TextInfo, WindowSpec
from shortviz.runs.run import with_task
from shortviz.service import measure
from shortviz.service import requests as r
from shortviz.service.place import Place, unfinished
from shortviz.text.tokens import DEFAULT_EVALUATION

if TYPE_CHECKING:
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import WindowSet
    from shortviz.service.service import Service


def measure_curve(request: r.CurveRequest, service: "Service", place: Place, watch: Watch) -> Run:
    """Return the run with what a removal curve is read off: what is asked for and not known is measured.

    The run is kept after each step, so that a stop loses nothing. A text and windows that are not the usual ones must
    be those of the run's map, where it has one, and so must those that a stopped map would be gone on with.
    """
    questions = measure.rows_of(service, request.task, watch) if request.task is not None else None
    run = place.run
    check_strategies(strategies_to_come(run, greedy=request.greedy > 0), request.strategies)
    losses = run.losses if run is not None else None
    usual = _is_usual(request)
    if losses is not None and usual:  # a map of a text's first windows, as older ones are, is gone on with on those
        request = replace(request, windows=replace(request.windows, order=losses.text.order))
    goes_on = run is not None and losses is not None and _goes_on(request.model, run, losses)
    if losses is not None and (goes_on or not usual):
        _refuse_other_text(request, service, losses, place, watch)
    if goes_on:
        losses = None
    if run is not None and losses is not None and not request.greedy and questions is None:
        return run
    handle = service.models.load(request.model, watch, lambda num_layers: _check_curve(request, num_layers))
    windows = measure.windows_of(service, request.model, request.text, handle, request.windows)
    if losses is None:
        run = measure.measure_losses_into(service, handle, windows, place, None, watch)
    assert run is not None, "this is one process"
    if request.greedy and not watch.stopped:
        run = _with_greedy(request, handle, windows, run, place, watch)
    if questions is not None and not watch.stopped:
        run = _with_tasks(request, service, handle, questions, run, place, watch)
    return run


def _is_usual(request: r.CurveRequest) -> bool:
    return (request.text, request.windows) == (DEFAULT_EVALUATION, WindowSpec())


def refuse_usual_text(request: r.CurveRequest, service: "Service", place: Place, watch: Watch) -> None:
    """Raise RunError where the run's map is on other windows than the usual ones, which a person asked for by name.

    A request with them looks like one that names no text; `measure_curve` compares every other.
    """
    if place.run is not None and place.run.losses is not None and _is_usual(request):
        _refuse_other_text(request, service, place.run.losses, place, watch)


def _check_curve(request: r.CurveRequest, num_layers: int) -> None:
    """Raise PlanError where a model of so many layers has fewer than are to be removed."""
    from shortviz.measure.search import check_removed

    if request.greedy:
        check_removed(num_layers, request.greedy)
    check_sizes(num_layers, request.sizes)


def _goes_on(ref: ModelRef, run: Run, losses: BlockLosses) -> bool:
    """Tell whether a map that was cut short has a checkpoint to go on from."""
    from shortviz.model.delta import facts_of

    facts = (*facts_of(run.model, ref), *measure.text_facts(losses.text))
    return not losses.complete and unfinished("losses", run.model, *facts).exists()


def _refuse_other_text(
    request: r.CurveRequest, service: "Service", losses: BlockLosses, place: Place, watch: Watch
) -> None:
    """Raise RunError where other windows are asked for than those that the map was measured on."""
    from shortviz.model.load import prepare
    from shortviz.model.tokenizer import read_tokenizer
    from shortviz.text.tokens import make_windows

    ref, handle = request.model, service.models.get(request.model)
    tokenizer = read_tokenizer(ref.id, prepare(ref, watch=watch)) if handle is None else handle.tokenizer
    _check_same_text(losses, make_windows(request.text, request.windows, tokenizer).info, place)


def _check_same_text(losses: BlockLosses, found: TextInfo, place: Place) -> None:
    known = losses.text
    if found.fingerprint != known.fingerprint:
        raise RunError(
            f"The run's map is on {known.source}, {known.windows_words}, and the text asked for is {found.source}, "
            f"{found.windows_words}; {place.other_text}."
        )


def _with_greedy(
    request: r.CurveRequest, handle: "ModelHandle", windows: "WindowSet", run: Run, place: Place, watch: Watch
) -> Run:
    from shortviz.measure.search import greedy_removal
    from shortviz.model.delta import discard_checkpoint, model_facts

    if run.losses is not None:
        _check_same_text(run.losses, windows.info, place)
    known = run.greedy
    same = known is not None and known.text.fingerprint == windows.info.fingerprint
    if known is not None and same and len(known.line.points) > request.greedy:
        return run
    facts = (*model_facts(handle), *measure.text_facts(windows.info))
    with place.checkpoint("greedy", handle.info, *facts) as path:
        found = greedy_removal(handle, windows, max_removed=request.greedy, checkpoint=path, watch=watch)
        run = place.update(lambda old: replace(old or run, greedy=further((old or run).greedy, found)))
        if path is not None and found.complete:
            discard_checkpoint(path)
    return run


def _with_tasks(
    request: r.CurveRequest, service: "Service", handle: "ModelHandle", rows: TaskRows, run: Run, place: Place,
    watch: Watch,
) -> Run:  # fmt: skip
    curve = curve_of_run(run)
    assert curve is not None, "the map was measured or known"
    sizes = request.sizes or default_sizes(curve.num_layers)
    plans = plans_to_score(curve, request.strategies or strategies_of(curve), sizes)
    left = [plan for plan in plans if measure.known_score(service, request.model, run, plan, rows) is None]
    watch.say(f"{len(rows.rows)} questions with each of {len(left)} models")
    try:
        _score(service, request.model, handle, rows, plans, place, watch)
    except Stopped:
        watch.say("Stopped before the first model had answered every question.")
    return place.run or run


def score_tasks(request: r.TasksRequest, service: "Service", place: Place, watch: Watch) -> int:
    """Score the questions with each cut that has no score yet, into the run where there is one; returns how many."""
    watch.tell("read questions", done=0, total=1, unit="steps")
    rows = measure.rows_of(service, request.task, watch=watch)
    handle = service.models.load(request.model, watch)
    return _score(service, request.model, handle, rows, request.plans, place, watch)


def _score(
    service: "Service", ref: ModelRef, handle: "ModelHandle", rows: TaskRows, plans: Sequence[tuple[int, ...]],
    place: Place, watch: Watch,
) -> int:  # fmt: skip
    from shortviz.measure.tasks import score_plans

    def keep(score: TaskScore) -> None:
        service.tasks.put((ref, score.removed, rows.fingerprint), score)
        run = place.run
        if run is not None:
            place.update(lambda old: with_task(old or run, score))

    left = []
    for plan in plans:
        known = measure.known_score(service, ref, place.run, plan, rows)
        if known is None:
            left.append(plan)
        elif (run := place.run) is not None and run.task_of(plan, rows.fingerprint) is None:
            keep(known)
    return len(score_plans(handle, rows, left, on_score=keep, watch=watch)) if left else 0


def fetch_questions(request: r.FetchRequest, service: "Service", place: Place, watch: Watch) -> int:
    """Fetch the questions of a data set; returns how many there are."""
    watch.tell("fetch the questions", done=0, total=1, unit="steps")
    return len(measure.rows_of(service, request.task, watch=watch).rows)
