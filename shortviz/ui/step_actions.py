"""Jobs on the models of a ledger that is there: bring one back from beside its run, ask all of them questions."""

from typing import TYPE_CHECKING

from shortviz.errors import ResourceError
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ledger_steps import with_task_score
from shortviz.progress import Watch
from shortviz.records import ModelRef, PrunePlan, Run, TaskScore, TaskSpec
from shortviz.runs import with_ledger
from shortviz.ui import kept_models, task_actions
from shortviz.ui.resources import Bench, JobContext
from shortviz.words import layers_text

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle


def start_bring_back(bench: Bench, ref: ModelRef, removed: tuple[int, ...], step: LedgerStep, key: str) -> str:
    """Put a treated model into memory again from what is kept beside run `key`: nothing is repaired or trained."""

    def work(watch: Watch) -> None:
        handle = bench.models.load(ref, watch)
        found = kept_models.bring_back(bench, key, handle, removed, step)
        problem = kept_models.put_in_memory(bench, ref, removed, handle, found)
        if problem:
            raise ResourceError(problem)

    context = JobContext(kind="bring", ref=ref, run_key=key, removed=removed, methods=step.methods)
    return bench.submit(context, f"Bringing back: {step.label}", work, lane="inspect")


def start_questions(
    bench: Bench, ref: ModelRef, ledger: Ledger, spec: TaskSpec, *, key: str, kept_in: str | None, known: Run | None
) -> str:
    """Ask the model of every step the questions, as far as it is in memory or kept beside run `kept_in`.

    The scores go into run `key`, made from `known` where it is new; the result is how many steps were scored.
    """

    def work(watch: Watch) -> int:
        handle = bench.models.load(ref, watch)
        from shortviz.pruning import prune

        cut = prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=ledger.removed))
        done = 0
        for number, step in enumerate(ledger.steps):
            model = _model(bench, ref, handle, cut, ledger, step, kept_in)
            if model is None or watch.stopped:
                continue
            words = f"model {number + 1} of {len(ledger.steps)}, {step.label}"
            score = task_actions.model_score(
                bench, ref, bench.runs.get(key) or known, model, spec,
                watch=watch.labelled(detail=words, snapshot=None),
            )  # fmt: skip
            if score is None:
                break
            _keep(bench, key, known, ledger, step, score)
            done += 1
        return done

    context = JobContext(kind="ask", ref=ref, run_key=key, removed=ledger.removed, task=spec)
    return bench.submit(context, f"Questions for the cut of layers {layers_text(ledger.removed)}", work)


def _keep(bench: Bench, key: str, known: Run | None, ledger: Ledger, step: LedgerStep, score: TaskScore) -> None:
    """Put a step's score into the run's ledger of this cut and text, as it is by now."""

    def change(old: Run | None) -> Run | None:
        run = old or known
        if run is None:
            return None
        same = [each for each in run.ledgers if each.removed == ledger.removed and each.text == ledger.text]
        asked = with_task_score(same[-1] if same else ledger, step.name, step.methods, score)
        return with_ledger(run, asked)

    bench.runs.update(key, change)


def _model(
    bench: Bench, ref: ModelRef, base: "ModelHandle", cut: "ModelHandle", ledger: Ledger, step: LedgerStep,
    key: str | None,
) -> "ModelHandle | None":  # fmt: skip
    if step.name in ("uncut", "cut"):
        return base if step.name == "uncut" else cut
    found = bench.treated.get((ref, ledger.removed, step.methods))
    if found is None and key is not None and kept_models.is_kept(bench, key, ledger.removed, step.methods):
        found = kept_models.bring_back(bench, key, base, ledger.removed, step)
    return found
