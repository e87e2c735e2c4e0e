"""What the commands print: results as plain text, progress with rate and ETA on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from shortviz import criteria
from shortviz.analysis.agreement import agreement
from shortviz.analysis.compare import check_comparable, grid_difference, shift_words, start_shifts
from shortviz.analysis.curve import AccuracyLine, RemovalCurve, task_sets
from shortviz.analysis.evidence import evidence_table, notes
from shortviz.analysis.planning import best_start
from shortviz.analysis.rows_needed import rows_needed_words
from shortviz.errors import RunError
from shortviz.figures.cells import BestBlock, best_blocks, best_words
from shortviz.measure.search import SearchResult
from shortviz.progress import Progress
from shortviz.records.formatting import UNKNOWN, counted, duration, layers_text, percent, size, times, with_error
from shortviz.records.json import plain
from shortviz.records.ledger import Ledger, LedgerStep, verdicts
from shortviz.records.measured import (
    BlockDistances,
    BlockLosses,
    Evaluation,
    ExportReport,
    Score,
    perplexity,
    windows_words,
)
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.table import Table, left, right
from shortviz.records.text import TaskScore
from shortviz.runs.report import agreement_words, ledger_table

PLAIN_SECONDS = 2.0
"""Where stderr is no terminal, a progress line at most this often."""

NOT_FITTED = "Not measured: too few rows of text to fit it on some and score it on others; give 6 rows or more."


def best_table(distances: BlockDistances, criterion: str, model: ModelInfo) -> str:
    """Return the best block of each n that can be exported, with its ties inside the error and the sink it removes."""
    grid, settling = distances.criteria[criterion], distances.settling.get(criterion)
    more = {} if settling is None else {"rows needed": lambda block: settling.words(block.n)}
    return best_words(best_blocks(grid, model, distances.norms.sink_layers), "distance", more).text()


def distances_text(distances: BlockDistances, model: ModelInfo) -> str:
    """Return the best blocks by every criterion measured, and what stands behind the numbers."""
    text = distances.text
    sinks = layers_text(distances.norms.sink_layers).replace("none", "none found")
    lines = [
        f"Text: {text.words}; {counted(distances.samples, 'row')} of at most {text.max_length} tokens; BOS {text.bos}.",
        f"Layers that write the attention sink: {sinks}.",
    ]
    if distances.tokens_per_row is not None:
        lines.insert(1, f"Token means are over {distances.tokens_per_row} evenly spaced tokens of each row.")
    for name in distances.criteria:
        found = best_table(distances, name, model) if distances.criteria[name].samples else NOT_FITTED
        lines += ["", f"Best block of each size by {criteria.label(name)} ({name})", found]
    return "\n".join(lines)


def evaluation_text(evaluation: Evaluation) -> str:
    """Return an evaluation in words, each number with its error and what it is taken over."""
    score, base, text = evaluation.score, evaluation.base, evaluation.text
    lines = [_score_line("perplexity", score)]
    if base is not None:  # first what the cut does, paired: the perplexities themselves are as hard as the text
        lines = [
            f"perplexity        {times(evaluation.nll_increase, evaluation.nll_increase_stderr)}, paired",
            _score_line("cut model", score),
            _score_line("uncut model", base),
            f"KL(uncut || cut)  {with_error(evaluation.kl, evaluation.kl_stderr)} nats a token",
            f"same top token    {percent(evaluation.same_top1, evaluation.same_top1_stderr)}",
            f"removed           layers {layers_text(evaluation.removed)}: {_saved(base, score)}",
        ]
    lines.append(
        f"Over {counted(score.tokens, 'scored token')} in {windows_words(score.windows, text)}; {text.words}; "
        f"BOS {text.bos}."
    )
    return "\n".join(lines)


def score_words(score: Score) -> str:
    """Return the loss of a model in both its units, with errors."""
    return (
        f"NLL {with_error(score.nll, score.nll_stderr)}, "
        f"perplexity {with_error(score.perplexity, score.perplexity_stderr)}"
    )


def _score_line(label: str, score: Score) -> str:
    return (
        f"{label:<18}{with_error(score.perplexity, score.perplexity_stderr)}   "
        f"NLL {with_error(score.nll, score.nll_stderr)} nats a token"
    )


def _saved(base: Score, score: Score) -> str:
    parameters, saved = base.parameters - score.parameters, base.bytes - score.bytes
    cache = base.cache_bytes_per_token - score.cache_bytes_per_token
    return (
        f"{parameters:,} parameters ({percent(parameters / base.parameters)}), {size(saved)}, "
        f"{size(cache)} of KV cache a token"
    )


def export_json(report: ExportReport | None) -> dict[str, Any] | None:
    """Return an export in the shape of `shortviz prune --json`; None where there is none.

    `gate` is there where limits were given. The kind of proof is left out: where no generation was run it was
    streamed, where no logits were compared it was by bytes.
    """
    if report is None:
        return None
    found: dict[str, Any] = plain(report)
    del found["proof"]
    if report.gate is None:
        found.pop("gate", None)
    return found


def export_text(report: ExportReport) -> str:
    """Return what was written and proved."""
    layers = layers_text(report.removed) or "none"
    wrote = (
        f"Wrote {report.folder}: {len(report.kept)} layers, {report.parameters:,} parameters, "
        f"{size(report.bytes)}{' in ' * bool(report.dtypes)}{report.dtypes}; removed layers {layers}.\n"
        + "".join(f"{note}\n" for note in report.notes)
    )
    seconds = f"({duration(report.seconds)})."
    if report.proof == "bytes":
        return wrote + f"Checked that every kept byte is the original's; the weights were not run {seconds}"
    if report.proof == "streamed":
        return wrote + (
            f"Proved by streaming both: largest logit difference {report.max_logit_diff:g} against the original with "
            f"the layers bypassed; generation not run, since the model does not fit in memory {seconds}"
        )
    return wrote + (
        f"Proved in a fresh process: largest logit difference {report.max_logit_diff:g}, cached generation "
        f"{'equal' if report.generation_equal else 'NOT equal'} to uncached {seconds}"
    )


def run_text(run: Run) -> str:
    """Return a saved run: the model, its best blocks and its evaluations."""
    model = run.model
    lines = [
        f"{model.id} ({model.architecture}, {model.num_layers} layers, {model.parameters:,} parameters, "
        f"{model.dtype}), measured {run.created}"
    ]
    lines.append(distances_text(run.distances, model) if run.distances is not None else "No distances measured.")
    for evaluation in run.evaluations:
        lines += ["", f"Evaluated with layers removed: {layers_text(evaluation.removed)}", evaluation_text(evaluation)]
    return "\n".join(lines)


@contextmanager
def progress(stream: TextIO | None = None) -> Iterator[Callable[[Progress], None]]:
    """Yield the `on_progress` that draws a bar on a terminal and prints a line now and then elsewhere."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        tasks: dict[str, Any] = {}
        plain = PlainProgress(stream)

        def show(step: Progress) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task(step.stage, total=step.total, state="")
            bars.update(tasks[step.stage], completed=step.done, total=step.total or None, state=plain.state(step))

        yield show


class PlainProgress:
    """Progress as lines of text with rate and ETA: a stage's first and last step, and one every two seconds between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = ""
        self._began = self._first = self._printed = 0.0
        self._complete = False

    def state(self, step: Progress) -> str:
        """Return where the stage stands, e.g. `24/64 rows, 12.1 rows/s, 3 s left`."""
        now = time.monotonic()
        if step.stage != self._stage:
            self._stage, self._began, self._first = step.stage, now, step.done
            self._printed, self._complete = now - PLAIN_SECONDS, False
        spent = now - self._began
        rate = (step.done - self._first) / spent if spent > 0 else 0.0
        if step.unit == "bytes":
            text, speed = f"{size(step.done)} of {size(step.total)}", f", {size(rate)}/s"
        else:
            text, speed = f"{step.done:g}/{step.total:g} {step.unit}", f", {rate:.3g} {step.unit}/s"
        left = f", {duration((step.total - step.done) / rate)} left" if rate > 0 and step.done < step.total else ""
        return (
            text + (speed if rate > 0 and step.total > 1 else "") + left + (f" ({step.detail})" if step.detail else "")
        )

    def __call__(self, step: Progress) -> None:
        """Print the state where it is time to."""
        text, now = self.state(step), time.monotonic()
        last = step.done >= step.total > 0
        if not self._complete and (last or now - self._printed >= PLAIN_SECONDS):
            print(f"{step.stage}: {text}", file=self._stream, flush=True)
            self._printed, self._complete = now, last


# What the commands print of a ledger: every step with its loss, its errors and what it won back.


def evidence_text(ledger: Ledger, base: ModelInfo) -> str:
    """Return what a ledger's models can still do, as a table, with what must be known to read it."""
    head = f"Evidence of the cut of layers {layers_text(ledger.removed)}"
    return "\n".join([head, evidence_table(ledger, base).text(), *notes(ledger)])


def ledger_text(ledger: Ledger) -> str:
    """Return a ledger as a table, with the text behind its numbers and what was said of each treatment."""
    text, cut = ledger.text, ledger.step("cut")
    score = cut.evaluation.score if cut is not None else None
    scored = f"{counted(score.tokens, 'scored token')} in {windows_words(score.windows, text)}" if score else "nothing"
    lines = [
        *verdicts(ledger),
        f"Ledger of the cut of layers {layers_text(ledger.removed)} ({len(ledger.removed)} layers)",
        ledger_table(ledger).text(),
        f"Over {scored}; {text.words}; BOS {text.bos}. NLL in nats a token; what stands over uncut and share won "
        "back with paired errors.",
        *_questions(ledger),
    ]
    lines += [f"{step.label}: {note}" for step in ledger.steps for note in _notes(step)]
    return "\n".join(lines + _continuations(ledger))


def _questions(ledger: Ledger) -> list[str]:
    """Return what stands behind the accuracies, and the steps that were not asked the same questions."""
    asked = ledger.task(ledger.steps[0])
    if asked is None:
        return []
    others = [step.label for step in ledger.steps if ledger.task(step) is None]
    left = f" Not scored on them: {', '.join(others)}." if others else ""
    return [f"Accuracy over {asked.behind}. Change from uncut with its paired error.{left}"]


def _notes(step: LedgerStep) -> list[str]:
    notes = [t.note for t in step.treatments[-1:] if t.note]
    text = step.treatments[-1].text if step.treatments else None
    return notes + ([f"fitted on {text.words}, {counted(text.tokens, 'token')}."] if text is not None else [])


def _continuations(ledger: Ledger) -> list[str]:
    found = [f"{step.label}: {' '.join(step.continuation.split())}" for step in ledger.steps if step.continuation]
    return [f"Continuations of {ledger.prompt!r}:", *found] if found else []


# What `shortviz map` and `shortviz curve` print.


def losses_text(run: Run, losses: BlockLosses, metric: str) -> str:
    """Return the best measured block of each n with its ties, and how well each criterion would have chosen."""
    grid, unit = (losses.kl, "KL, nats") if metric == "kl" else (losses.increase, "NLL increase, nats")

    def after(block: BestBlock) -> str:
        rise = losses.increase.at(Block(start=block.start, n=block.n))[0]
        return with_error(perplexity(losses.base.nll + rise))

    best = best_words(best_blocks(grid, run.model), unit, {"perplexity": after}, sign=metric != "kl")
    lines = [
        f"Uncut model: {score_words(losses.base)}. Text: {losses.text.words}; "
        f"{int(losses.tokens.max()):,} scored tokens a block, windows of {losses.text.max_length}.",
        f"Best block of each size by measured {metric.upper()}",
        best.text(),
    ]
    if not losses.replayed:
        lines.append("Every pruned model was really run: this family's layers cannot be replayed exactly.")
    if run.distances is not None:
        lines += ["", agreement_text(run, losses)]
    return "\n".join(lines)


def agreement_text(run: Run, losses: BlockLosses) -> str:
    """Return how well each criterion predicts the measured loss."""
    assert run.distances is not None
    found = agreement_words(agreement(run.distances, losses, run.model))
    return f"How well each criterion predicts the measured increase in NLL\n{found.text()}"


def search_text(found: SearchResult) -> str:
    """Return the best start of each n with the starts tied with it, and what the search cost."""
    rows = [
        [
            str(row.n),
            str(row.start),
            with_error(row.increase, row.stderr, sign=True),
            str(row.windows),
            f"tied with start {', '.join(str(s) for s in row.tied if s != row.start)}" if len(row.tied) > 1 else "",
        ]
        for row in found.rows
    ]
    return "\n".join(
        [
            f"Best start of each size by measured NLL. Text: {found.text.words}, windows of {found.text.max_length}.",
            Table(right("n", "start", "NLL increase, nats", "windows") + left(""), rows).text(),
            f"Measured {counted(found.cells_measured, 'block-window')}, "
            f"{percent(found.cells_measured / found.cells_exhaustive)} of {found.cells_exhaustive:,} for all.",
        ]
    )


def curve_text(curve: RemovalCurve) -> str:
    """Return perplexity against layers removed, one column a strategy."""
    lines = {line.strategy: {point.n: point for point in line.points} for line in curve.lines}
    rows = [
        [str(n), *(with_error(points[n].perplexity if n in points else None) for points in lines.values())]
        for n in range(curve.num_layers)
    ]
    text = curve.text
    behind = f"at most {counted(text.rows, 'window')} of {text.max_length} tokens"
    return (
        f"Perplexity against layers removed. Text: {text.words}; {behind}.\n" + Table(right("n", *lines), rows).text()
    )


def accuracy_text(lines: Sequence[AccuracyLine]) -> str:
    """Return accuracy against layers removed, one column a strategy, with chance and majority."""
    any_score = lines[0].points[0][1]
    by_n = {line.strategy: dict(line.points) for line in lines}
    sizes = sorted({n for points in by_n.values() for n in points})
    rows = [[str(n), *(_accuracy(points.get(n)) for points in by_n.values())] for n in sizes]
    return f"Accuracy against layers removed, over {any_score.behind}.\n" + Table(right("n", *by_n), rows).text()


def scored_text(run: Run) -> list[str]:
    """Return what a run holds of greedy removal and of task accuracy, one paragraph each."""
    found = []
    if run.greedy is not None:
        text, points = run.greedy.text, run.greedy.line.points
        rows = [
            [
                str(p.n),
                with_error(p.nll, p.stderr),
                with_error(p.perplexity),
                layers_text(p.removed),
            ]
            for p in points
        ]
        found.append(
            f"Greedy removal of single layers, {counted(text.rows, 'window')} of {text.max_length} of {text.source}\n"
            + Table(right("n", "NLL, nats", "perplexity") + left("layers"), rows).text()
        )
    for fingerprint, one in task_sets(run.tasks).items():
        scores = sorted((s for s in run.tasks if s.fingerprint == fingerprint), key=lambda s: len(s.removed))
        rows = [[_accuracy(s), layers_text(s.removed) if s.removed else "none (uncut)"] for s in scores]
        found.append(f"Accuracy over {one.behind}\n" + Table(right("accuracy") + left("layers removed"), rows).text())
    return found


def _accuracy(score: TaskScore | None) -> str:
    return UNKNOWN if score is None else percent(score.accuracy, score.accuracy_stderr)


# Runs side by side in words, as a table and as JSON: how far a choice depends on its text. No torch.


def comparison_text(runs: Mapping[str, Run], criterion: str | None = None) -> str:
    """Return the best start of each n on every text, where it moves, and how many rows it needs.

    Raises RunError for fewer than two runs, runs of different models, or a criterion that one of them lacks.
    """
    measured, name = _checked(runs, criterion)
    model = next(iter(runs.values())).model
    letters = [chr(ord("A") + i) for i in range(len(measured))]
    rows = []
    for n in range(1, model.num_layers):
        starts = [best_start(one.criteria[name], n, model) for one in measured]
        moves = "" if len(set(starts)) == 1 else "moves"
        cells = [_start_words(one, name, n, start) for one, start in zip(measured, starts, strict=True)]
        rows.append([str(n), *cells, moves])
    lines = [f"Best start of each n by {criteria.label(name)}; in brackets the rows of text that the choice needs."]
    for letter, (folder, run), one in zip(letters, runs.items(), measured, strict=True):
        behind = f"{counted(one.samples, 'row')} of at most {run.text.max_length}"
        lines.append(f"  {letter}: {run.text.source}, {behind} ({folder})")
    lines += [Table(right("n", *letters) + left(""), rows).text(), ""]
    for letter, one in zip(letters[1:], measured[1:], strict=True):
        lines.append(
            f"A to {letter}: {shift_words(start_shifts(measured[0].criteria[name], one.criteria[name], model))}"
        )
    for letter, one in zip(letters, measured, strict=True):
        lines.append(f"{letter}: {_rows_needed_line(one, name, model)}")
    fingerprints = {one.text.fingerprint for one in measured}
    if len(fingerprints) < len(measured):
        lines.append("Note: some of the runs are of the same text.")
    models = dict.fromkeys(run.model.id for run in runs.values())
    if len(models) > 1:
        lines.append(
            f"Note: the runs are of different models ({', '.join(models)}): a move need not come from the text."
        )
    return "\n".join(lines)


def comparison_json(runs: Mapping[str, Run], criterion: str | None = None) -> dict[str, Any]:
    """Return the comparison, for one JSON object; differences are from the first run to each other one.

    Raises as `comparison_text`.
    """
    measured, name = _checked(runs, criterion)
    model = next(iter(runs.values())).model
    first = measured[0].criteria[name]
    return {
        "criterion": name,
        "model": model.id,
        "runs": [
            {
                "folder": folder,
                "model": run.model.id,
                "text": run.text,
                "best_starts": [best_start(one.criteria[name], n, model) for n in range(1, model.num_layers)],
                "rows_needed": [_needed(one, name, n) for n in range(1, model.num_layers)],
                "rows": one.samples,
            }
            for (folder, run), one in zip(runs.items(), measured, strict=True)
        ],
        "shifts": [start_shifts(first, one.criteria[name], model) for one in measured[1:]],
        "difference": [grid_difference(first, one.criteria[name], per_n=False) for one in measured[1:]],
        "difference_per_n": [grid_difference(first, one.criteria[name]) for one in measured[1:]],
    }


def _checked(runs: Mapping[str, Run], criterion: str | None) -> tuple[list[BlockDistances], str]:
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run was named; name at least two different ones to compare.")
    first = next(iter(runs.values()))
    measured = []
    for folder, run in runs.items():
        check_comparable(first, run)
        if run.distances is None:
            raise RunError(f"{folder} holds no distances; measure them first (shortviz measure ... --out {folder}).")
        measured.append(run.distances)
    common = [name for name in measured[0].criteria if all(name in one.criteria for one in measured)]
    if not common:
        raise RunError("The runs have no criterion in common; measure one in all of them.")
    chosen = criterion or ("angular_last" if "angular_last" in common else common[0])
    if chosen not in common:
        raise RunError(f"Criterion {chosen!r} is not in all of the runs; choose from {', '.join(common)}.")
    return measured, chosen


def _start_words(one: BlockDistances, name: str, n: int, start: int | None) -> str:
    found = one.settling.get(name)
    if start is None:
        return "-"
    return f"{start} ({found.words(n)})" if found is not None else str(start)


def _needed(one: BlockDistances, name: str, n: int) -> int | None:
    """Return the rows that the choice needs; None where the rows there are do not say."""
    found = one.settling.get(name)
    return found.needed[n - 1] if found is not None and found.enough(n) else None


def _rows_needed_line(one: BlockDistances, name: str, model: ModelInfo) -> str:
    found = one.settling.get(name)
    if found is None:
        return "how many rows a choice needs was not recorded."
    sizes = [n for n in range(1, model.num_layers) if best_start(one.criteria[name], n, model) is not None]
    return rows_needed_words(found, sizes)
