"""`shortviz curve`: loss, and with --tasks accuracy, against layers removed. Heavy imports wait inside."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortviz.cli_map import CHECKPOINT, MapArgument, finish, source
from shortviz.cli_numbers import at_least
from shortviz.cli_options import TEXT_OPTIONS, JsonOption, LoadOptions, TextOptions, with_options
from shortviz.cli_session import INTERRUPTED, load_model, print_result, working
from shortviz.cli_task_options import TaskOptions
from shortviz.curve_tasks import check_sizes, check_strategies, strategies_to_come
from shortviz.errors import ShortvizError, Stopped
from shortviz.planning import parse_layers
from shortviz.progress import Watch
from shortviz.records import ModelRef, TaskRows

if TYPE_CHECKING:
    from shortviz.curve import RemovalCurve
    from shortviz.handle import ModelHandle
    from shortviz.records import BlockLosses, Run, TextSpec, WindowSet, WindowSpec


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command is to measure."""

    spec: "TextSpec"
    windows: "WindowSpec"
    greedy: int
    questions: TaskRows | None
    strategies: tuple[str, ...]
    sizes: tuple[int, ...]

    def fits(self, num_layers: int) -> None:
        """Raise PlanError where a model of so many layers has fewer than are to be removed."""
        from shortviz.greedy import check_removed

        if self.greedy:
            check_removed(num_layers, self.greedy)
        check_sizes(num_layers, self.sizes)


@with_options
def removal_curve(
    model: MapArgument,
    load: LoadOptions,
    text: TextOptions,
    task: TaskOptions,
    greedy: Annotated[int, typer.Option(help="Also remove so many single layers greedily; 0 is none.")] = 0,
    strategies: Annotated[
        str, typer.Option(help="--tasks: strategies to score, e.g. simple,greedy.  [default: all but random]")
    ] = "all",
    sizes: Annotated[
        str | None, typer.Option(help="--tasks: layers removed, e.g. 1,4-6.  [default: 1 and eighths of the layers]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory to keep what is measured in.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Loss against layers removed, for every strategy; measures the map where the run has none.

    With --tasks also multiple-choice accuracy, of the uncut model and of the strategies' cuts of the chosen sizes.
    """
    from shortviz import texts
    from shortviz.cli_map_output import curve_text
    from shortviz.curve import curve_of_run
    from shortviz.task_rows import read_task

    at_least(0, greedy=greedy)
    text.note_unused("max_length", "batch_size", "seed")
    spec = task.task()
    if spec is None and (strategies != "all" or sizes is not None):
        raise ShortvizError(
            "--strategies and --sizes say which cuts --tasks scores; give --tasks too, or leave them out."
        )
    ref, run, out = source(model, load, out)
    asked = _Asked(
        spec=text.spec(texts.DEFAULT_EVALUATION),
        windows=text.window_spec(),
        greedy=greedy,
        questions=read_task(spec) if spec is not None else None,
        strategies=() if strategies == "all" else tuple(name.strip() for name in strategies.split(",")),
        sizes=() if sizes is None else parse_layers(sizes),
    )
    check_strategies(strategies_to_come(run, greedy=greedy > 0), asked.strategies)
    losses = run.losses if run is not None else None
    if losses is not None and not losses.complete and out is not None and (out / CHECKPOINT).exists():
        losses = None  # a map cut short goes on from its checkpoint
    if losses is not None and text.typed & TEXT_OPTIONS:
        _refuse_other_text(asked, ref, losses)
    stopped = False
    if losses is None or greedy or asked.questions is not None:
        run, stopped = _measure(asked, ref, run, losses, out)
    elif out is not None and run is not None and out != Path(model):
        _saved(run, out)
    assert run is not None
    curve = curve_of_run(run)
    assert curve is not None, "the map was measured or known"
    print_result(_json(curve, run) if as_json else "\n\n".join([curve_text(curve), *_accuracy(curve, run)]))
    if losses is None and run.losses is not None:
        finish(run.losses, out)
    if stopped:
        print("Stopped; what was measured until then is above, and kept with --out.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _measure(
    asked: _Asked, ref: ModelRef, run: "Run | None", losses: "BlockLosses | None", out: Path | None
) -> tuple["Run", bool]:
    """Return the run with what was asked for and not known, and whether it was stopped.

    Saved after each stage, so that nothing is lost.
    """
    from shortviz import runs, texts

    with working() as watch:
        from shortviz.loss_map import measure_losses

        handle = load_model(ref, watch, fits=asked.fits)
        window_set = texts.make_windows(asked.spec, asked.windows, handle.tokenizer)
        run = run or runs.new_run(handle.info, window_set.info)
        if losses is None:
            checkpoint = out / CHECKPOINT if out is not None else None
            losses = measure_losses(handle, window_set, checkpoint=checkpoint, watch=watch)
            run = _saved(replace(run, losses=losses), out)
        if asked.greedy and not watch.stopped:
            run = _saved(_with_greedy(run, handle, window_set, asked.greedy, watch), out)
        if asked.questions is not None and not watch.stopped:
            run = _with_tasks(run, handle, asked, out, watch)
        return run, watch.stopped


def _refuse_other_text(asked: _Asked, ref: ModelRef, losses: "BlockLosses") -> None:
    """Raise ShortvizError where the text options say other windows than those that the map was measured on."""
    from shortviz import texts

    with working() as watch:
        from shortviz.loading import prepare, read_tokenizer

        tokenizer = read_tokenizer(ref.id, prepare(ref, watch=watch))
        found = texts.make_windows(asked.spec, asked.windows, tokenizer).info
    known = losses.text
    if found.fingerprint != known.fingerprint:
        raise ShortvizError(
            f"The run's map is on {known.source}, {known.rows} windows of {known.max_length}, and the text options say "
            f"{found.source}, {found.rows} windows of {found.max_length}; give the map's own, or the model with "
            "another --out to measure another map."
        )


def _saved(run: "Run", out: Path | None) -> "Run":
    from shortviz import runs

    if out is not None:
        runs.save_run(run, out)
    return run


def _with_greedy(run: "Run", handle: "ModelHandle", windows: "WindowSet", wanted: int, watch: Watch) -> "Run":
    from shortviz.curve import further
    from shortviz.greedy import greedy_removal

    losses, known = run.losses, run.greedy
    if losses is not None and losses.text.fingerprint != windows.info.fingerprint:
        raise ShortvizError(
            f"The run's map was measured on {losses.text.source}, windows of {losses.text.max_length}; greedy "
            f"removal would be on {windows.info.source}, windows of {windows.info.max_length}; give "
            "the same text and window options."
        )
    if known is not None and known.text.fingerprint == windows.info.fingerprint and len(known.line.points) > wanted:
        return run
    found = greedy_removal(handle, windows, max_removed=wanted, watch=watch)
    return replace(run, greedy=further(known, found))


def _with_tasks(run: "Run", handle: "ModelHandle", asked: _Asked, out: Path | None, watch: Watch) -> "Run":
    from shortviz.curve import curve_of_run
    from shortviz.curve_scoring import score_plans
    from shortviz.curve_tasks import default_sizes, plans_to_score, strategies_of
    from shortviz.runs import with_task

    curve, questions = curve_of_run(run), asked.questions
    assert curve is not None
    assert questions is not None
    sizes = asked.sizes or default_sizes(curve.num_layers)
    plans = plans_to_score(curve, asked.strategies or strategies_of(curve), sizes)
    left = [plan for plan in plans if run.task_of(plan, questions.fingerprint) is None]
    print(f"{len(questions.rows)} questions with each of {len(left)} models", file=sys.stderr)
    kept = [run]

    def keep(score: Any) -> None:
        kept[0] = _saved(with_task(kept[0], score), out)

    if left:
        try:
            score_plans(handle, questions, left, on_score=keep, watch=watch)
        except Stopped:
            print("Stopped before the first model had answered every question.", file=sys.stderr)
    return kept[0]


def _json(curve: "RemovalCurve", run: "Run") -> dict[str, Any]:
    from shortviz.record_json import plain

    found: dict[str, Any] = plain(curve)
    return found | {"tasks": run.tasks}


def _accuracy(curve: "RemovalCurve", run: "Run") -> Sequence[str]:
    from shortviz.cli_map_output import accuracy_text
    from shortviz.curve_tasks import accuracy_lines, task_sets

    found = {one: accuracy_lines(curve, run.tasks, one) for one in task_sets(run.tasks)}
    return [accuracy_text(lines) for lines in found.values() if lines]
