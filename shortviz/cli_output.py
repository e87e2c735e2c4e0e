"""What the commands print: results as plain text, progress with rate and ETA on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from shortviz import criteria
from shortviz.map_tables import best_blocks, best_words
from shortviz.progress import Progress
from shortviz.records import BlockDistances, Evaluation, ExportReport, ModelEstimate, ModelInfo, Run, Score
from shortviz.words import count, counted, duration, layers_text, percent, size, with_error

PLAIN_SECONDS = 2.0
"""Where stderr is no terminal, a progress line at most this often."""

NOT_FITTED = "Not measured: too few rows of text to fit it on some and score it on others; give 6 rows or more."


def estimate_line(estimate: ModelEstimate) -> str:
    """Return what loading will cost."""
    download = f", {size(estimate.download_bytes)} to download" if estimate.download_bytes else ""
    return (
        f"{estimate.id}: {estimate.architecture}, {estimate.num_layers} layers, "
        f"{count(estimate.parameters)} parameters, "
        f"{size(estimate.memory_bytes)} as {estimate.dtype} on {estimate.device}{download}"
    )


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
        f"Text: {text.source}; {distances.samples} rows of at most {text.max_length} tokens; BOS {text.bos}.",
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
    if base is not None:
        increase = with_error(evaluation.nll_increase, evaluation.nll_increase_stderr, sign=True)
        lines += [
            _score_line("uncut model", base),
            f"NLL increase      {increase} nats (paired)",
            f"KL(uncut || cut)  {with_error(evaluation.kl, evaluation.kl_stderr)} nats a token",
            f"same top token    {percent(evaluation.same_top1, evaluation.same_top1_stderr)}",
            f"removed           layers {layers_text(evaluation.removed)}: {_saved(base, score)}",
            f"forward pass      {score.forward_seconds:.3f} s a window, uncut {base.forward_seconds:.3f} s",
        ]
    windows = f"{counted(score.windows, 'window')} of" if score.windows > 1 else "one window, no error, of"
    lines.append(
        f"Over {counted(score.tokens, 'scored token')} in {windows} {text.max_length}; {text.source}; BOS {text.bos}."
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


def export_text(report: ExportReport) -> str:
    """Return what was written and proved."""
    layers = layers_text(report.removed)
    wrote = (
        f"Wrote {report.folder}: {len(report.kept)} layers, {report.parameters:,} parameters, "
        f"{size(report.bytes)}; removed layers {layers}.\n"
    )
    seconds = f"({duration(report.seconds)})."
    if report.proof == "bytes":
        return wrote + f"Checked that every kept byte is the original's; quantised weights are not run here {seconds}"
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
