"""What `shortviz map` and `shortviz curve` print."""

import math
from collections.abc import Sequence

from shortviz import criteria
from shortviz.agreement import agreement
from shortviz.cli_output import table
from shortviz.curve import RemovalCurve
from shortviz.curve_tasks import AccuracyLine, task_sets
from shortviz.map_cells import exportable
from shortviz.planning import best_start, tied_starts
from shortviz.race import SearchResult
from shortviz.records import Block, BlockLosses, Run, TaskScore
from shortviz.words import percent


def losses_text(run: Run, losses: BlockLosses, metric: str) -> str:
    """Return the best measured block of each n with its ties, and how well each criterion would have chosen."""
    grid, unit = (losses.kl, "KL, nats") if metric == "kl" else (losses.increase, "NLL increase, nats")
    rows, possible = [], exportable(grid, run.model)
    for n in range(1, losses.num_layers):
        start = best_start(possible, n)
        if start is None:
            continue
        block = Block(start=start, n=n)
        mean, error = grid.at(block)
        nll = losses.base.nll + losses.increase.at(block)[0]
        ties = ", ".join(str(s) for s in tied_starts(possible, n) if s != start)
        layers = str(start) if n == 1 else f"{start}-{start + n - 1}"
        perplexity = f"{math.exp(nll):.2f}" if nll < 20 else "> 1e8"
        rows.append(
            [str(n), layers, f"{mean:+.4f}", _error(error), perplexity, f"tied with start {ties}" if ties else ""]
        )
    lines = [
        f"Uncut model: NLL {losses.base.nll:.4f}, perplexity {losses.base.perplexity:.2f}. Text: {losses.text.source}; "
        f"{int(losses.tokens.max())} scored tokens a block, windows of {losses.text.max_length}.",
        f"Best block of each size by measured {metric.upper()}",
        table(["n", "layers", unit, "+-", "perplexity", ""], rows),
    ]
    if not losses.replayed:
        lines.append("Every pruned model was really run: this family's layers cannot be replayed exactly.")
    if run.distances is not None:
        lines += ["", agreement_text(run, losses)]
    return "\n".join(lines)


def agreement_text(run: Run, losses: BlockLosses) -> str:
    """Return how well each criterion predicts the measured loss."""
    assert run.distances is not None
    rows = [
        [
            criteria.label(found.criterion),
            f"{found.spearman:.3f}",
            f"{found.spearman_within:.3f}",
            f"{found.mean_regret:.3f}",
            f"{sum(r.picked == r.best for r in found.regrets)} of {len(found.regrets)}",
        ]
        for found in agreement(run.distances, losses, run.model)
    ]
    head = ["criterion", "Spearman, all", "within n", "mean regret, nats", "picks the best start"]
    return "How well each criterion predicts the measured increase in NLL\n" + table(head, rows)


def search_text(found: SearchResult) -> str:
    """Return the best start of each n with the starts tied with it, and what the search cost."""
    rows = [
        [
            str(row.n),
            str(row.start),
            f"{row.increase:+.4f}",
            _error(row.stderr),
            str(row.windows),
            f"tied with start {', '.join(str(s) for s in row.tied if s != row.start)}" if len(row.tied) > 1 else "",
        ]
        for row in found.rows
    ]
    share = 100 * found.cells_measured / found.cells_exhaustive
    return "\n".join(
        [
            f"Best start of each size by measured NLL. Text: {found.text.source}, windows of {found.text.max_length}.",
            table(["n", "start", "NLL increase, nats", "+-", "windows", ""], rows),
            f"Measured {found.cells_measured} block-windows, {share:.0f} % of {found.cells_exhaustive} for all.",
        ]
    )


def curve_text(curve: RemovalCurve) -> str:
    """Return perplexity against layers removed, one column a strategy."""
    lines = {line.strategy: {point.n: point for point in line.points} for line in curve.lines}
    head = ["n", *lines, ""]
    rows = [
        [str(n), *(f"{points[n].perplexity:.4g}" if n in points else "-" for points in lines.values()), ""]
        for n in range(curve.num_layers)
    ]
    text = curve.text
    behind = f"at most {text.rows} windows of {text.max_length} tokens"
    return f"Perplexity against layers removed. Text: {text.source}; {behind}.\n" + table(head, rows)


def accuracy_text(lines: Sequence[AccuracyLine]) -> str:
    """Return accuracy against layers removed, one column a strategy, with chance and majority."""
    any_score = lines[0].points[0][1]
    by_n = {line.strategy: dict(line.points) for line in lines}
    sizes = sorted({n for points in by_n.values() for n in points})
    rows = [[str(n), *(_accuracy(points.get(n)) for points in by_n.values()), ""] for n in sizes]
    return (
        f"Accuracy in % against layers removed, over {any_score.questions} questions of {any_score.source}; "
        f"chance {100 * any_score.chance:.1f} %, always the most frequent label {100 * any_score.majority:.1f} %.\n"
        + table(["n", *by_n, ""], rows)
    )


def scored_text(run: Run) -> list[str]:
    """Return what a run holds of greedy removal and of task accuracy, one paragraph each."""
    found = []
    if run.greedy is not None:
        text, points = run.greedy.text, run.greedy.line.points
        rows = [
            [
                str(p.n),
                f"{p.nll:.4f}",
                _error(p.stderr),
                f"{p.perplexity:.4g}",
                ", ".join(map(str, p.removed)) or "none",
            ]
            for p in points
        ]
        found.append(
            f"Greedy removal of single layers, {text.rows} windows of {text.max_length} of {text.source}\n"
            + table(["n", "NLL, nats", "+-", "perplexity", "layers"], rows)
        )
    for fingerprint, one in task_sets(run.tasks).items():
        scores = sorted((s for s in run.tasks if s.fingerprint == fingerprint), key=lambda s: len(s.removed))
        rows = [[_accuracy(s), _layers(s.removed) or "none (uncut)"] for s in scores]
        found.append(
            f"Accuracy in % over {one.questions} questions of {one.source}; chance {100 * one.chance:.1f} %, always "
            f"the most frequent label {100 * one.majority:.1f} %\n" + table(["accuracy", "layers removed"], rows)
        )
    return found


def _layers(removed: Sequence[int]) -> str:
    return ", ".join(map(str, removed))


def _accuracy(score: TaskScore | None) -> str:
    return "-" if score is None else percent(score.accuracy, score.accuracy_stderr).removesuffix(" %")


def _error(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
