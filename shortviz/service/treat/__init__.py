"""The work after a cut: repair, shrink, heal, ask, bring back, continue a prompt; each adds to the cut's ledger."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shortviz.errors import FieldError, ResourceError, RunError
from shortviz.progress import Progress, Watch
from shortviz.records.formatting import layers_text
from shortviz.records.ledger import Ledger, LedgerStep, with_task_score
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import TaskScore, WindowSpec
from shortviz.runs.run import new_run, with_ledger
from shortviz.service import kept, measure
from shortviz.service.place import Place
from shortviz.service.requests import (
    FIT_TEXT,
    TRAINING_TEXT,
    AskRequest,
    BringBackRequest,
    ContinueRequest,
    EvidenceRequest,
    HealRequest,
    RepairRequest,
    ShrinkRequest,
)
from shortviz.service.spelling import to_command
from shortviz.text.tokens import DEFAULT_EVALUATION

if TYPE_CHECKING:
    from shortviz.heal.heal import Healed
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import TokenSet, WindowSet
    from shortviz.service.service import Service
    from shortviz.text.sources import TextRows

from shortviz.service.ledger import (
    SHRINK_WINDOWS,
    CutLedger,
    Treating,
    known_ledger,
    ledger_of,
    treated,
    write,
)


def command_of(request: RepairRequest | ShrinkRequest | HealRequest, info: ModelInfo) -> str:
    """Return the command that makes the same weights again: without where files lie, and without pasted text.

    What a model is only scored on is left out, but for layers that are chosen on it; "" where that was pasted.
    """
    made_of = ModelRef(id=info.shown_name, revision=info.revision, dtype=info.dtype)
    same = replace(request, model=made_of, task=None, write="", anyway=False)
    chooses = isinstance(request, ShrinkRequest) and not request.choose_on_text
    if chooses and request.evaluation.kind == "paste":
        return ""
    if not chooses:
        same = replace(same, evaluation=DEFAULT_EVALUATION, windows=WindowSpec())
    if request.text.kind == "paste":
        usual, own = TRAINING_TEXT if isinstance(request, HealRequest) else FIT_TEXT, request.text
        as_read = {name: getattr(own, name) for name in ("limit", "max_length", "bos", "special_tokens")}
        same = replace(same, text=replace(usual, **as_read))
    return to_command(same, share=True)


# Repair, shrink, heal.


def repair(request: RepairRequest, service: "Service", place: Place, watch: Watch) -> Treating:
    """Repair a cut and score it; where the repair does not help, the cut stays as it is."""
    from shortviz.repair.repair import check_method

    check_method(request.method)
    work = CutLedger(request, service, place, watch, fits=request.removal.of)
    rows = work.fit_rows(request.fit_tokens)
    work.cut_out(request.removal.of(work.base.info.num_layers).removed)
    done = work.repaired(rows, request.method, request.batch_size)
    work.open(rows.info)
    if done.applied:
        work.add(done.handle, command_of(request, work.base.info))
    else:
        work.say(f"The repair was not applied: {done.treatment.note or 'it did not help.'}")
    work.finish()
    return replace(work.shown, treatment=done.treatment, applied=done.applied)


def shrink(request: ShrinkRequest, service: "Service", place: Place, watch: Watch) -> Treating:
    """Remove the layer that costs least, repair, measure again, and so on; then score the cut that it ended with.

    Layers are chosen on the windows of the ledger, which then says so, or on the text that repairs are fitted to. A
    stop keeps what is done, and scores it.
    """
    from shortviz.repair.repair import check_method
    from shortviz.repair.shrink import check_layers, shrink
    from shortviz.text.tokens import make_windows

    check_method(request.method)
    work = CutLedger(request, service, place, watch, fits=lambda layers: check_layers(layers, request.to_layers))
    base = work.base
    gone = sorted(base.info.layer_bytes, reverse=True)[: base.info.num_layers - request.to_layers]
    work.check_room(base, fewer_bytes=sum(gone))
    rows = work.fit_rows(request.fit_tokens)
    if request.choose_on_text:
        windows = make_windows(work.text, SHRINK_WINDOWS, base.tokenizer)
    else:
        windows = work.windows
        work.named("which the layers were chosen on")
    facts = (windows.info.fingerprint, rows.info.fingerprint, request.method, request.batch_size)

    def as_treating(progress: Progress) -> Progress:
        def snapshot() -> Treating:
            steps = progress.snapshot().steps if progress.snapshot is not None else ()
            return Treating(model=request.model, removed=steps[-1].removed if steps else ())

        return replace(progress, snapshot=snapshot)

    path = work.unfinished("shrink", *facts)  # however many layers are to be left
    shrunk = shrink(
        base, windows, rows, request.to_layers,
        method=request.method, batch_size=request.batch_size, checkpoint=path, watch=watch.mapped(as_treating),
    )  # fmt: skip
    work.cut_out(shrunk.steps[-1].removed)
    work.open(rows.info)
    work.say(shrunk.note)
    if shrunk.handle.treatments:
        left = replace(request, to_layers=shrunk.handle.info.num_layers)
        work.add(shrunk.handle, command_of(left, base.info))
    if shrunk.complete:
        work.finish()
    return replace(
        work.shown, steps=shrunk.steps, base_nll=shrunk.base_nll, complete=shrunk.complete, applied=True
    )  # fmt: skip


def heal(request: HealRequest, service: "Service", place: Place, watch: Watch) -> Treating | None:
    """Train a cut model, repaired first where asked to, and score it; HealHistory streams out inside Treating.

    A stop keeps the best weights so far, scores them, and leaves a checkpoint from which the same request goes on. On
    several devices (`accelerate launch`) the first process returns what was made, the others None.
    """
    from shortviz.heal.own_text import read_prompts
    from shortviz.heal.student import check_packages, check_quantiser
    from shortviz.repair.repair import check_method

    check_packages(request.settings())
    if request.repair is not None:
        check_method(request.repair)
    writes = request.own.self_share is not None
    if writes and (world := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise FieldError(
            "self_share", f"needs one process, for each of {world} would write a text of its own; leave it out"
        )
    prompts = read_prompts(request.own) if writes else None
    with together(request.model) as (ref, is_main):
        request = replace(request, model=ref)
        place = place if is_main else Place(None)
        work = CutLedger(request, service, place, watch, fits=request.removal.of, scores=is_main)
        recipe = request.settings(work.base.info)
        if recipe.quantize == "4bit":  # told before the cut is scored and repaired
            check_quantiser(work.base.model.device)
        tokens, heldout, plain = _split(work, recipe.length, prompts)
        begin = work.cut_out(request.removal.of(work.base.info.num_layers).removed)
        work.open(tokens.info)
        if request.repair is not None:
            begin = _begin(work, request, request.repair, plain)
        healed = _trained(work, begin, tokens, heldout)
        if not is_main:
            return None
        work.shown = replace(work.shown, history=healed.history, methods=begin.methods)
        work.say(healed.treatment.note)
        if healed.applied:
            work.add(healed.handle, command_of(request, work.base.info), healed)
        complete = healed.history.complete or not watch.stopped
        if complete:
            work.finish()
        return replace(work.shown, treatment=healed.treatment, applied=healed.applied, complete=complete)


def _split(work: CutLedger, length: int, prompts: "TextRows | None") -> "tuple[TokenSet, WindowSet, TokenSet | None]":
    """Return the text to train on, what is held out of it, and what of it is of the plain text that was read."""
    from shortviz.heal.data import part_of, split_heldout
    from shortviz.heal.own_text import mixed, write_text
    from shortviz.text.tokens import tokenize

    assert isinstance(work.request, HealRequest)
    own, base = work.request.own, work.base
    share = own.self_share
    plain = tokenize(work.text, base.tokenizer) if share != 1 else None
    if share is None or prompts is None:
        assert plain is not None, "there is no other text"
        tokens, heldout = split_heldout(plain, window=length)
        return tokens, heldout, tokens
    spec, same = work.text.spec, replace(own, self_share=None, prompts=None)  # of another share, the same text
    path = work.unfinished("own-text", same, prompts.rows, spec.bos, spec.special_tokens)
    written = write_text(base, prompts, own, spec, checkpoint=path, watch=work.watch)
    every, which = mixed(tokenize(written, base.tokenizer), plain, share, length)
    tokens, heldout = split_heldout(every, window=length)
    rest = tuple(row for row, is_own in zip(tokens.rows, which, strict=False) if not is_own)
    return tokens, heldout, part_of(tokens, rest) if rest else None


def _begin(work: CutLedger, request: HealRequest, method: str, tokens: "TokenSet | None") -> "ModelHandle":
    """Return the repaired cut, added to the ledger; the cut where the repair does not help.

    `tokens` is what the training sees of the text that was read; a text that the model wrote itself is not fitted to.
    """
    rows = work.fit_rows(request.fit_tokens, before=tokens)
    done = work.repaired(rows, method)
    if not done.applied:
        told = f"The repair was not applied. {done.treatment.note}"
        work.say(told)
        work.watch.say(told)
        return work.cut
    same = RepairRequest(
        model=request.model, removal=request.removal, text=replace(request.text, max_length=request.text.fit_length),
        method=method, fit_tokens=rows.info.tokens,
    )  # fmt: skip
    work.add(done.handle, command_of(same, work.base.info))
    return done.handle


def _trained(work: CutLedger, begin: "ModelHandle", tokens: "TokenSet", heldout: "WindowSet") -> "Healed":
    """Return what training made of a cut model; it is kept while it is unfinished."""
    from shortviz.heal import heal as training

    assert isinstance(work.request, HealRequest)
    recipe = work.request.settings(work.base.info)
    path = None
    if work.scores:
        before = [(t.method, sorted(t.settings.items(), key=str)) for t in begin.treatments]
        texts, world = (tokens.info.fingerprint, heldout.info.fingerprint), os.environ.get("WORLD_SIZE", "1")
        path = work.unfinished("heal", begin.removed, before, recipe, *texts, world)

    def as_treating(progress: Progress) -> Progress:
        def snapshot() -> Treating:
            if progress.snapshot is not None:
                work.shown = replace(work.shown, history=progress.snapshot())
            return work.shown

        return replace(progress, snapshot=snapshot)

    return training.heal(
        begin, tokens, recipe, base=work.base, heldout=heldout, checkpoint=path, watch=work.watch.mapped(as_treating)
    )  # fmt: skip


@contextmanager
def together(ref: ModelRef) -> Iterator[tuple[ModelRef, bool]]:
    """Join the other processes of `accelerate launch`; gives (model on this process's device, is it the first).

    Alone, nothing happens.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ref, True
        return
    import torch
    from accelerate import PartialState

    state: Any = PartialState(cpu=ref.device == "cpu" or not torch.cuda.is_available())
    on = state.device
    try:
        yield replace(ref, device="cpu" if on.type == "cpu" else str(on)), bool(state.is_main_process)
    finally:
        state.destroy_process_group()


# On the models of a ledger that is there: ask them questions, bring one back, let them write.


def ask(request: AskRequest, service: "Service", place: Place, watch: Watch) -> int:
    """Ask the model of every step the questions, as far as it is in memory or kept; return how many were scored."""
    base = service.models.load(request.model, watch)
    from shortviz.model.prune import prune

    removed = request.removal.removed
    ledger = known_ledger(service, request.model, place.run, removed, request.text)
    if ledger is None:
        raise RunError(f"There is no ledger of the cut of layers {layers_text(removed)}; repair or heal it first.")
    cut = prune(base, PrunePlan(num_layers=base.info.num_layers, removed=removed))
    done = 0
    for number, step in enumerate(ledger.steps):
        model = {"uncut": base, "cut": cut}.get(step.name) or of_step(request, service, place, base, step)
        if model is None or watch.stopped:
            continue
        words = f"model {number + 1} of {len(ledger.steps)}, {step.label}"
        score = measure.model_score(
            service, request.model, place.run, model, request.task, watch=watch.labelled(detail=words, snapshot=None)
        )
        if score is None:
            break
        place.update(lambda run, step=step, score=score: _asked(run, ledger, step, score, base.info))  # type: ignore[misc]
        done += 1
    return done


def _asked(run: Run | None, ledger: Ledger, step: LedgerStep, score: TaskScore, info: ModelInfo) -> Run:
    """Return the run with a step's score in its ledger of this cut and text, as that is by now."""
    run = run or new_run(info, ledger.text)
    same = [each for each in run.ledgers if each.removed == ledger.removed and each.text == ledger.text]
    return with_ledger(run, with_task_score(same[-1] if same else ledger, step.key, score))


def of_step(
    request: AskRequest | BringBackRequest | EvidenceRequest, service: "Service", place: Place, base: "ModelHandle",
    step: LedgerStep,
) -> "ModelHandle | None":  # fmt: skip
    """Return a treated model from memory, else from what is kept beside the place's runs, else None."""
    removed = request.removal.removed
    found = service.treated.get((request.model, removed, step.methods))
    key = kept.kept_by(service, place.keys, removed, step.methods)
    return found or (kept.bring_back(service, key, base, removed, step) if key is not None else None)


def bring_back(request: BringBackRequest, service: "Service", place: Place, watch: Watch) -> None:
    """Put a treated model into memory again from what is kept beside the run: nothing is repaired or trained."""
    base = service.models.load(request.model, watch)
    ledger = ledger_of(place.run, request.removal.removed)
    step = ledger.treated(request.methods) if ledger is not None else None
    found = of_step(request, service, place, base, step) if step is not None else None
    if found is None:
        raise RunError("Nothing of this model is kept beside the run; repair or heal again.")
    problem = kept.put_in_memory(service, request.model, request.removal.removed, base, found)
    if problem:
        raise ResourceError(problem)


def write_continuations(request: ContinueRequest, service: "Service", place: Place, watch: Watch) -> None:
    """Let every model of a ledger that is in memory continue the prompt, the uncut and the cut one always."""
    base = service.models.load(request.model, watch)
    from shortviz.model.prune import prune

    ref, removed, prompt = request.model, request.removal.removed, request.prompt
    ledger = ledger_of(place.run, removed)
    cut = prune(base, PrunePlan(num_layers=base.info.num_layers, removed=removed))
    write(service, ref, "uncut", base, prompt, watch)
    write(service, ref, "cut", cut, prompt, watch)
    for step in ledger.steps if ledger is not None else ():
        found = treated(service, ref, removed, step) if step.methods else None
        if found is not None:
            write(service, ref, step.name, found, prompt, watch)
