"""What a model, or a cut of it, loses and writes: a first look soon, then the windows, then continuations.

The uncut model's share of the first look is worked out as soon as the model is loaded, so that a click waits for the
cut model alone.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shortviz.analysis.gate import judge, require, verdict_words
from shortviz.errors import FieldError, ModelError, PlanError, ShortvizError, Stopped
from shortviz.progress import Progress, Watch
from shortviz.records.formatting import layers_text
from shortviz.records.measured import Evaluation, Gate, GateVerdict, TokenLoss, from_map
from shortviz.records.model import ModelEstimate, ModelInfo
from shortviz.records.plan import Removal
from shortviz.records.run import Run
from shortviz.records.text import TaskScore
from shortviz.runs.run import with_evaluation
from shortviz.service import measure
from shortviz.service import requests as r
from shortviz.service.place import Place
from shortviz.settings import settings

if TYPE_CHECKING:
    from shortviz.measure.losses import BaseScores, TokenScores
    from shortviz.model.handle import ModelHandle
    from shortviz.records.text import WindowSet
    from shortviz.service.service import Service
    from shortviz.text.sources import Text


FIRST_LOOK_TOKENS: Final = 128
"""The first number rests on the beginning of the first window alone: it is there within two seconds on two cores."""

WINDOWS_BEFORE_TEXT: Final = 3
"""The first numbers come before the continuations, the rest of the windows after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What is known about a clicked block so far."""

    evaluation: Evaluation | None = None
    prompt: str = ""
    uncut: str = ""
    """The uncut model's continuation of the prompt, as far as it is written."""
    cut: str = ""
    score: TaskScore | None = None
    """How many questions the model that was evaluated answers right, where questions were asked."""
    base_score: TaskScore | None = None
    """The same of the uncut model beside it."""
    gate: GateVerdict | None = None
    """What it was judged by, where limits were given and everything was measured."""


def size(request: r.SizeRequest, service: "Service", place: Place, watch: Watch) -> ModelEstimate:
    """Return what loading would cost."""
    return service.models.estimate(request.model)


def load(request: r.LoadRequest, service: "Service", place: Place, watch: Watch) -> ModelInfo:
    """Load the model, and have it ready for clicks that are scored on the text."""
    handle = service.models.load(request.model, watch)
    # Where it cannot start, because too many jobs wait, whoever clicks does without it.
    service.submit(r.PrepareRequest(model=request.model, text=request.text))
    return handle.info


def prepare(request: r.PrepareRequest, service: "Service", place: Place, watch: Watch) -> None:
    """Have the uncut model's share of the first look worked out, before anybody clicks."""
    handle = service.models.load(request.model, watch)
    look = first_look(measure.windows_of(service, request.model, request.text, handle))
    measure.base_scores(service, request.model, handle).window(look.tokens[0], watch)


def first_look(windows: "WindowSet") -> "WindowSet":
    """Return the beginning of the first window: as few tokens as say anything."""
    from shortviz.text.tokens import fingerprint

    tokens = windows.tokens[:1, :FIRST_LOOK_TOKENS]
    length = tokens.shape[1]
    info = replace(windows.info, rows=1, tokens=length, max_length=length, fingerprint=fingerprint(tokens))
    return replace(windows, tokens=tokens, info=info)


def token_losses(
    ids: Sequence[int], tokenizer: Any, before: "TokenScores", after: "TokenScores"
) -> tuple[TokenLoss, ...]:
    """Return what both models made of each token of a row; nothing predicts the first."""
    from shortviz.text.tokens import pieces, token_texts

    texts = token_texts([*before.top.flatten().tolist(), *after.top.flatten().tolist()], tokenizer)
    found, at = [], -1  # of the first token there is no score
    for text, count in pieces(ids, tokenizer):
        where = slice(max(at, 0), at + count)
        told: dict[str, Any] = {"uncut": (), "cut": ()}
        for name, scores in (("uncut", before), ("cut", after)) if at >= 0 else ():
            likely = zip(scores.top[at].tolist(), scores.shares[at].tolist(), strict=True)
            told[name] = tuple((texts[token], share) for token, share in likely)
        nll = [float(scores.nll[where].sum()) if at >= 0 else math.nan for scores in (before, after)]
        special = count == 1 and ids[at + 1] in tokenizer.all_special_ids
        found.append(TokenLoss(text=text, tokens=count, special=special, before=nll[0], after=nll[1], **told))
        at += count
    return tuple(found)


def evaluate(request: r.EvaluateRequest, service: "Service", place: Place, watch: Watch) -> Inspection | None:
    """Return the loss of a model, or of a cut one beside the uncut one, with what is asked for beside it.

    Inspections stream out as they grow; every step that is known already, in this process or in the run, is taken from
    there. Of several processes that stream, all but the one that writes return None.
    """
    text = measure.read_early(request.text)
    if request.task is not None:
        measure.rows_of(service, request.task, watch)
    if measure.streams(service, request.model, request.stream, watch):
        return _evaluate_by_streaming(request, text, watch)
    from shortviz.measure.processes import refuse_launcher

    refuse_launcher()
    cut = request.removal
    handle = service.models.load(request.model, watch, cut.of if cut is not None else None)
    windows = measure.windows_of(service, request.model, text, handle, request.windows)
    model = cut_model(handle, cut, request.adapter)
    found = _Found(request, service, place, watch, model, handle if model.plan is not None else None, windows)
    known = found.take()
    found.look()
    if known:  # there are numbers to look at: the text comes first
        found.write()
    found.score()
    found.write()
    if request.task is not None and not watch.stopped:
        with suppress(Stopped):  # the evaluation is there, and is not to be lost
            found.ask()
    return _judged(request.gate, found.inspection)


def _evaluate_by_streaming(request: r.EvaluateRequest, text: "Text", watch: Watch) -> Inspection | None:
    for what, asked in (("Questions", request.task), ("An adapter", request.adapter), ("A prompt", request.write)):
        if asked:
            raise ShortvizError(f"{what} cannot be used while a model is streamed; leave one of them out.")
    cuts = [request.removal] if request.removal is not None else []
    found = measure.evaluate_by_streaming(request, cuts, watch, text)
    return _judged(request.gate, Inspection(evaluation=found[0])) if found is not None else None


def _judged(gate: Gate, found: Inspection) -> Inspection:
    """Return what was found with the verdict on it, unless a stop left something unmeasured."""
    evaluation, score = found.evaluation, found.score
    measured = evaluation is not None and evaluation.complete
    answered = gate.min_accuracy is None or (score is not None and score.complete)
    if not (gate.asked and measured and answered):
        return found
    if gate.max_nll_increase is not None and evaluation is not None and evaluation.base is None:
        raise _nothing_beside()
    return replace(found, gate=judge(gate, evaluation, score))


def _nothing_beside() -> FieldError:
    return FieldError(
        "max_nll_increase", "is against the uncut model, and this one is cut already; give the model it was cut from"
    )


def let_through(
    request: r.ExportRequest, service: "Service", place: Place, watch: Watch,
    base: "ModelHandle | None" = None, model: "ModelHandle | None" = None,
) -> GateVerdict | None:  # fmt: skip
    """Return the verdict on the very model that is to be written; None where no limits were given.

    Without `model` it is streamed. Raises GateError where a limit is not shown to be held, Stopped where not everything
    was measured.
    """
    gate = request.gate
    if not gate.asked:
        return None
    if base is None or model is None:
        asked = r.EvaluateRequest(
            model=request.model, removal=request.removal, text=request.text, windows=request.windows,
            task=request.task, stream=True, gate=gate,
        )  # fmt: skip
        found = evaluate(asked, service, place, watch)
        verdict = found.gate if found is not None else None
    else:
        verdict = _verdict(request, service, place, watch, base, model)
    if verdict is None:
        raise Stopped("Stopped before the model was judged; nothing was written.")
    require(verdict, "; nothing was written")
    watch.say(verdict_words(verdict))
    return verdict


def _verdict(
    request: r.ExportRequest, service: "Service", place: Place, watch: Watch, base: "ModelHandle", model: "ModelHandle"
) -> GateVerdict | None:
    """Return the verdict on a model in memory; None after a stop."""
    from shortviz.measure import losses

    gate, evaluation, score = request.gate, None, None
    if gate.max_nll_increase is not None:
        if model.plan is None:
            raise _nothing_beside()
        windows = measure.windows_of(service, request.model, measure.read_early(request.text), base, request.windows)
        scores = measure.base_scores(service, request.model, base)
        evaluation = losses.evaluate(model, windows, base=base, base_scores=scores, watch=watch)
        if not evaluation.complete:
            return None
    if request.task is not None:
        score = measure.model_score(service, request.model, None, model, request.task, watch=watch)
        if score is None:
            return None
    return judge(gate, evaluation, score)


def cut_model(handle: "ModelHandle", cut: Removal | None, adapter: str | None) -> "ModelHandle":
    """Return the model without the layers, an adapter of `shortviz heal` merged in where one is named.

    Where no cut is given it is the adapter's own, unless the model has that cut behind it.
    Raises ModelError where there is no adapter of ours, PlanError where another cut is asked for than the adapter's.
    """
    from shortviz.model.prune import prune

    if adapter is not None:
        cut = _adapter_cut(Path(adapter), cut, handle.info.num_layers)
    model = prune(handle, cut.of(handle.info.num_layers)) if cut is not None else handle
    if adapter is None:
        return model
    from shortviz.heal.adapter import load_adapter

    return load_adapter(model, Path(adapter))


def _adapter_cut(adapter: Path, asked: Removal | None, num_layers: int) -> Removal | None:
    from shortviz.heal.adapter import cut_of

    whole, removed = cut_of(adapter)
    if asked is None:
        own = Removal(layers=removed) if removed and num_layers == whole else None
        if own is None and num_layers not in (whole, whole - len(removed)):
            raise ModelError(
                f"The adapter in {adapter} belongs to a cut of a model of {whole} layers, and this one has "
                f"{num_layers}; give the model that it was trained on."
            )
        return own
    if (layers := asked.of(num_layers).removed) != removed:
        raise PlanError(
            f"The adapter in {adapter} belongs to the cut of layers {layers_text(removed) or 'none'}, not of "
            f"{layers_text(layers)}; leave the cut out, and the adapter's own is made."
        )
    return asked


class _Found:
    """An inspection as it grows; every step that is known already is taken from the service or the run."""

    def __init__(
        self, request: r.EvaluateRequest, service: "Service", place: Place, watch: Watch, model: "ModelHandle",
        base: "ModelHandle | None", windows: "WindowSet",
    ) -> None:  # fmt: skip
        self.request, self.service, self.place, self.watch = request, service, place, watch
        self.model, self.base, self.windows = model, base, windows
        self.removed = model.removed
        self.kept = request.adapter is None
        """Whether results are known by the layers removed alone."""
        self.key = measure.measured_key(request.model, request.text, self.removed, request.windows)
        known = service.measured.get(self.key) if self.kept and base is not None else None
        self.inspection = Inspection(prompt=request.write, evaluation=known)

    def take(self) -> bool:
        """Take what the run knows of these windows; returns whether there are numbers now."""
        known = self.inspection.evaluation
        if self._is_compared and (known is None or not known.complete):
            known = _in_run(self.place.run, self.removed, self.windows.info.fingerprint)
            if known is not None:
                self._keep(known)
        return self.inspection.evaluation is not None

    def look(self) -> None:
        """Compare both models on very little text: the first number where there is none, and the loss of each token."""
        known = self.inspection.evaluation is not None
        if self.base is None or self.watch.stopped or (known and (not self.kept or self.service.words.get(self.key))):
            return
        from shortviz.measure.losses import evaluate

        look, hears = first_look(self.windows), Watch(stop=self.watch.stop)  # told are inspections; this alone is none

        def keep(before: "TokenScores", after: "TokenScores") -> None:
            if self.kept:
                ids = [int(token) for token in look.tokens[0]]
                self.service.words.put(self.key, token_losses(ids, self.model.tokenizer, before, after))

        with suppress(Stopped) if known else nullcontext():
            scores = self._base_scores()
            found = evaluate(self.model, look, base=self.base, base_scores=scores, watch=hears, on_tokens=keep)
            self._keep(replace(found, complete=False))
            self._show()

    def score(self) -> None:
        """Measure the loss, on more and more windows."""
        if (self.inspection.evaluation and self.inspection.evaluation.complete) or self.watch.stopped:
            return
        from shortviz.measure.losses import evaluate

        def then_write(progress: Progress) -> None:
            self._evaluating(progress)
            if self.base is not None and progress.done == WINDOWS_BEFORE_TEXT:  # between two windows: the model is free
                self.write()

        watch = Watch(then_write, self.watch.stop)
        done = evaluate(self.model, self.windows, base=self.base, base_scores=self._base_scores(), watch=watch)
        self._keep(done)
        if done.complete and self._is_compared and self.place.run is not None:
            self.place.update(lambda run: with_evaluation(run, done))  # type: ignore[arg-type]  # there is one

    @property
    def _is_compared(self) -> bool:
        return self.base is not None and self.kept

    def _base_scores(self) -> "BaseScores | None":
        if self.base is None:
            return None
        return measure.base_scores(self.service, self.request.model, self.base)

    def ask(self) -> None:
        """Score the questions with the uncut model and, where layers were removed, with the cut one."""
        base = self._answers(self.base or self.model)
        if self.base is None:
            self.inspection = replace(self.inspection, score=base)
            return
        self.inspection = replace(self.inspection, score=self._answers(self.model), base_score=base)

    def _answers(self, model: "ModelHandle") -> TaskScore:
        from shortviz.measure import tasks

        assert self.request.task is not None, "somebody asks"
        rows = measure.rows_of(self.service, self.request.task, self.watch)
        known = measure.known_score(self.service, self.request.model, self.place.run, model.removed, rows)
        plain = self.kept or model is self.base
        if known is not None and plain:
            return known
        found = tasks.score_tasks(model, rows, watch=self.watch)
        if found.complete and plain:
            self.service.tasks.put((self.request.model, model.removed, rows.fingerprint), found)
        return found

    def write(self) -> None:
        """Have both models continue the prompt."""
        prompt = self.inspection.prompt
        if not prompt.strip():
            return
        models = [("uncut", self.base, ()), ("cut", self.model, self.removed)]
        for name, model, removed in models if self.base is not None else [("uncut", self.model, ())]:
            if self.watch.stopped or model is None:
                return
            key = (self.request.model, removed, prompt)
            kept = self.kept or model is self.base
            text = self.service.continuations.get(key) if kept else getattr(self.inspection, name) or None
            if text is None:
                text = self._continue(name, model, prompt)
                if kept and not self.watch.stopped:
                    self.service.continuations.put(key, text)
            self._show_text(name, text, measure.NEW_TOKENS)

    def _continue(self, name: str, model: "ModelHandle", prompt: str) -> str:
        from shortviz.measure.generation import continue_text

        written: list[str] = []

        def on_text(piece: str) -> None:
            written.append(piece)
            self._show_text(name, "".join(written), len(written))

        return continue_text(
            model,
            prompt,
            max_new_tokens=min(measure.NEW_TOKENS, settings().max_new_tokens),
            on_text=on_text,
            watch=self.watch,
        )

    def _show_text(self, name: str, text: str, tokens: int) -> None:
        self.inspection = (
            replace(self.inspection, uncut=text) if name == "uncut" else replace(self.inspection, cut=text)
        )
        shown = self.inspection
        self.watch.tell(f"write, {name}", done=tokens, total=measure.NEW_TOKENS, unit="tokens", snapshot=lambda: shown)

    def _show(self) -> None:
        shown, total = self.inspection, len(self.windows.tokens)
        self.watch.tell("evaluate", done=0, total=total, unit="windows", snapshot=lambda: shown)

    def _evaluating(self, progress: Progress) -> None:
        def snapshot() -> Inspection:
            if progress.snapshot is not None:
                self._keep(progress.snapshot())
            return self.inspection

        self.watch.report(replace(progress, snapshot=snapshot))

    def _keep(self, done: Evaluation) -> None:
        """Keep the evaluation that rests on most text."""
        old = self.inspection.evaluation
        if old is None or done.score.tokens >= old.score.tokens:
            self.inspection = replace(self.inspection, evaluation=done)
            if self._is_compared:
                self.service.measured.put(self.key, done)


def _in_run(run: Run | None, removed: tuple[int, ...], fingerprint: str) -> Evaluation | None:
    """Return what the run holds of exactly these windows: the measured map's cell, a finished evaluation, or None."""
    if run is None:
        return None
    block = Removal.of_layers(removed).block
    if block is not None and run.losses is not None and run.losses.complete:
        cell = from_map(run.losses, run.model, block) if run.losses.text.fingerprint == fingerprint else None
        if cell is not None:
            return cell
    same = (removed, fingerprint, True)
    return next((e for e in run.evaluations if (e.removed, e.text.fingerprint, e.complete) == same), None)
