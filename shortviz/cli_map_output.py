"""What `shortviz map` and `shortviz curve` print."""

from collections.abc import Sequence

from shortviz.agreement import agreement
from shortviz.cli_output import score_words
from shortviz.curve import RemovalCurve
from shortviz.curve_tasks import AccuracyLine, task_sets
from shortviz.map_tables import BestBlock, best_blocks, best_words
from shortviz.race import SearchResult
from shortviz.records import Block, BlockLosses, Run, TaskScore, perplexity
from shortviz.run_tables import agreement_words
from shortviz.table import Table, left, right
from shortviz.words import UNKNOWN, counted, layers_text, percent, with_error


def losses_text(run: Run, losses: BlockLosses, metric: str) -> str:
    """Return the best measured block of each n with its ties, and how well each criterion would have chosen."""
    grid, unit = (losses.kl, "KL, nats") if metric == "kl" else (losses.increase, "NLL increase, nats")

    def after(block: BestBlock) -> str:
        rise = losses.increase.at(Block(start=block.start, n=block.n))[0]
        return with_error(perplexity(losses.base.nll + rise))

    best = best_words(best_blocks(grid, run.model), unit, {"perplexity": after}, sign=metric != "kl")
    lines = [
        f"Uncut model: {score_words(losses.base)}. Text: {losses.text.source}; "
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
            f"Best start of each size by measured NLL. Text: {found.text.source}, windows of {found.text.max_length}.",
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
        f"Perplexity against layers removed. Text: {text.source}; {behind}.\n" + Table(right("n", *lines), rows).text()
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
