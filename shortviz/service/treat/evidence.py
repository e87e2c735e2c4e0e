"""Evidence for every step of a cut's ledger: other texts, questions, probes and speed, each part kept once it is done.

The cut shares the uncut model's tensors, and treated models are made one after another, so that a machine without room
for two whole models has room for this.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shortviz.analysis.evidence import score_of, speed
from shortviz.progress import Watch
from shortviz.records.json import plain
from shortviz.records.ledger import Ledger, LedgerStep, Treatment, with_evidence, with_task_score
from shortviz.records.measured import Evaluation
from shortviz.records.plan import Removal
from shortviz.records.text import TextSpec
from shortviz.service import measure
from shortviz.service.inspect import cut_model
from shortviz.service.ledger import CutLedger, Treating
from shortviz.service.place import Place
from shortviz.service.requests import EvidenceRequest, RepairRequest
from shortviz.service.treat import command_of, of_step
from shortviz.text.sources import builtin_names, read_rows

if TYPE_CHECKING:
    from shortviz.measure.evidence.harness import Harness
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import WindowSet
    from shortviz.service.service import Service

OTHER_WINDOW = 128
"""Tokens in a window of the other texts: of the built-in kinds, a few thousand characters each, there are ten then."""


def evidence(request: EvidenceRequest, service: "Service", place: Place, watch: Watch) -> Treating:
    """Measure what is missing of the evidence for every model of a cut's ledger, and return that.

    The models are the uncut and the cut one, the repaired and the healed one that are asked for, and those of the
    run's ledger that are in memory or kept beside it. Each part is in the place's run once it is done, so that a stop
    loses the part it falls into alone.
    """
    from shortviz.heal.adapter import cut_of
    from shortviz.measure.evidence.harness import open_harness
    from shortviz.repair.repair import check_method

    if request.repair is not None:
        check_method(request.repair)
    if request.adapter is not None:  # what cannot be used is told before minutes of work
        cut_of(Path(request.adapter))
    harness = open_harness(request.lm_eval) if request.lm_eval else None
    texts = [read_rows(_text(name)) for name in request.other_texts]
    work = CutLedger(request, service, place, watch, fits=request.removal.of)
    windows = replace(request.windows, window=min(OTHER_WINDOW, request.windows.window))
    others = [measure.windows_of(service, request.model, text, work.base, windows) for text in texts]
    work.cut_out(request.removal.of(work.base.info.num_layers).removed)
    work.open(work.fit_rows(request.fit_tokens).info)
    _make_probes(work, request)
    done = set()
    for model in _models(work, request):
        step = _step_of(_ledger(work), model)
        done.add(step.key)
        _measure(work, model, step.key, others)
        if harness is not None:
            _ask_harness(work, model, step.key, harness, request.lm_eval_limit)
        if step.name == "cut":
            _pace(work)
    left = [step.label for step in _ledger(work).steps if step.key not in done]
    if left:
        work.say(f"Not in memory, and not kept beside the run: {', '.join(left)}.")
    work.finish()
    return replace(work.shown, applied=True)


def _text(name: str) -> TextSpec:
    return TextSpec(kind="builtin" if name in builtin_names() else "file", value=name)


def _ledger(work: CutLedger) -> Ledger:
    assert work.shown.ledger is not None, "the ledger is opened first"
    return work.shown.ledger


def _step(work: CutLedger, key: tuple[object, ...]) -> LedgerStep:
    return next(each for each in _ledger(work).steps if each.key == key)


def _make_probes(work: CutLedger, request: EvidenceRequest) -> None:
    """Put the items of the probes into the ledger, unless they are there."""
    from shortviz.measure.evidence.probes import MAKERS, make_probe

    ledger = _ledger(work)
    probes = tuple(make_probe(name, work.base, seed=request.seed, items=request.probe_items) for name in MAKERS)
    if ledger.probes != probes:
        work.keep(replace(ledger, probes=probes))


def _models(work: CutLedger, request: EvidenceRequest) -> Iterator["ModelHandle"]:
    """Yield the model of every step, one after another; those that are made anew are added to the ledger first."""
    from shortviz.heal.adapter import trained_cut

    yield work.base
    yield work.cut
    made: set[tuple[str, ...]] = set()
    learned_on = trained_cut(work.cut, Path(request.adapter)) if request.adapter is not None else None
    if learned_on is not None and learned_on.methods == (request.repair,):
        # What was won back by the training is told from what the repair below it won, and no minute goes into another.
        work.say("The repaired model is the one that the adapter was trained on.")
        yield _added(work, learned_on, "")
        made.add(learned_on.methods)
    elif request.repair is not None:
        repaired = work.repaired(work.fit_rows(request.fit_tokens), request.repair, request.batch_size)
        if repaired.applied:
            same = RepairRequest(
                model=request.model, removal=request.removal, text=request.text, method=request.repair,
                fit_tokens=request.fit_tokens, batch_size=request.batch_size,
            )  # fmt: skip
            yield _added(work, repaired.handle, command_of(same, work.base.info))
            made.add((request.repair,))
        else:
            work.say(f"The repair was not applied: {repaired.treatment.note or 'it did not help.'}")
    if request.adapter is not None:
        healed = cut_model(work.base, Removal.of_layers(work.cut.removed), request.adapter)
        yield _added(work, healed, "")
        made.add(healed.methods)
    for step in _ledger(work).steps:
        known = of_step(request, work.service, work.place, work.base, step) if step.treatments else None
        if known is not None and step.methods not in made:
            yield known


def _added(work: CutLedger, model: "ModelHandle", command: str) -> "ModelHandle":
    """Return a treated model, its step in the ledger: the very same one that is there keeps what is known of it."""
    same = [step for step in _ledger(work).steps if _essence(step.treatments) == _essence(model.treatments)]
    if not same:
        work.add(model, command)
    return model


def _essence(treatments: tuple[Treatment, ...]) -> object:
    return plain([replace(treatment, seconds=0.0) for treatment in treatments])


def _step_of(ledger: Ledger, model: "ModelHandle") -> LedgerStep:
    """Return the ledger's step of a model."""
    if not model.treatments:
        return ledger.steps[0 if model.plan is None else 1]
    return next(step for step in ledger.steps if step.methods == model.methods)


def _measure(
    work: CutLedger, model: "ModelHandle", key: tuple[object, ...], others: list["WindowSet"]
) -> None:  # fmt: skip
    """Measure of one model what its step lacks, and keep each part."""
    from shortviz.export.weights import stored_bytes
    from shortviz.measure.evidence.probes import score_probe

    step = partial(_step, work, key)

    def keep(**parts: object) -> None:
        found = replace(step().evidence, **parts)  # type: ignore[arg-type]
        work.keep(with_evidence(_ledger(work), step(), found))

    label = step().label
    if work.request.task is not None and _ledger(work).task(step()) is None:
        score = work.accuracy(model, label)
        if score is not None:
            work.keep(with_task_score(_ledger(work), step().key, score))
    for windows in others:
        known = {one.text.fingerprint for one in step().evidence.texts}
        if windows.info.fingerprint not in known:
            watch = work.watch.labelled(detail=f"{label}, {windows.info.source}", snapshot=lambda: work.shown)
            keep(texts=(*step().evidence.texts, _evaluated(work, model, windows, watch)))
    for probe in _ledger(work).probes:
        if not probe.refused and score_of(step(), probe) is None:
            watch = work.watch.labelled(detail=f"{label}, {probe.name}", snapshot=lambda: work.shown)
            others_kept = tuple(one for one in step().evidence.probes if one.probe != probe.name)
            keep(probes=(*others_kept, score_probe(model, probe, watch=watch)))
    keep(disk_bytes=stored_bytes(model, model.info.bytes))


def _ask_harness(
    work: CutLedger, model: "ModelHandle", key: tuple[object, ...], harness: "Harness", limit: int | None
) -> None:
    """Have lm_eval score one model in the tasks that its step lacks."""
    for task in harness.tasks:
        step = _step(work, key)
        about = (task, harness.version, limit)
        known = [one for one in step.evidence.harness if (one.task, one.version, one.limit) == about]
        if not known:
            work.watch.check("Stopped before all tasks of lm_eval were scored.")
            work.watch.tell("lm_eval", done=0, total=1, unit="tasks", detail=f"{step.label}, {task}")
            others = tuple(one for one in step.evidence.harness if one.task != task)
            found = replace(step.evidence, harness=(*others, *harness.score(model, task, limit)))
            work.keep(with_evidence(_ledger(work), step, found))


def _evaluated(work: CutLedger, model: "ModelHandle", windows: "WindowSet", watch: Watch) -> Evaluation:
    """Return a model's loss on a text of another kind, whole; Stopped is raised where it is not."""
    from shortviz.measure.losses import evaluate, evaluation_of

    scores = measure.base_scores(work.service, work.request.model, work.base)
    if model is work.base:
        return evaluation_of(model, windows, [scores.window(tokens, watch).score for tokens in windows.tokens])
    found = evaluate(model, windows, base=work.base, base_scores=scores, watch=watch)
    watch.check(f"Stopped on {windows.info.source}.")
    return found


def _pace(work: CutLedger) -> None:
    """Measure the speed of uncut and cut in turns, unless the clock could tell it already."""
    from shortviz.measure.evidence.speed import measure_paces

    ledger = _ledger(work)
    if not ledger.paces or any(speed(pace).busy for pace in ledger.paces):
        watch = work.watch.labelled(snapshot=lambda: work.shown)
        paces = measure_paces(work.base, work.cut, work.windows.tokens.reshape(-1), watch=watch)
        work.keep(replace(ledger, paces=paces))
